"""Every number of RESULTS.md that comes from records, worked out anew by code that the report does not use."""

import math
import re
from collections.abc import Callable
from pathlib import Path

import yaml

from tests.support.recomputation import (
    DASH,
    MINUS,
    PLUS_MINUS,
    PROTOCOLS,
    Grid,
    Record,
    deviation,
    full,
    mean,
    number,
    ratio,
    read,
    sections_of,
    signed,
    span,
    tables_of,
)


ROOT = Path(__file__).resolve().parents[1]
BETA = "\N{GREEK SMALL LETTER BETA}"
CONFIG = yaml.safe_load((ROOT / "configs" / "report" / "results.yaml").read_text(encoding="utf-8"))
RECORDS = read([ROOT / path for path in CONFIG["records"]])
SECTIONS = sections_of((ROOT / "RESULTS.md").read_text(encoding="utf-8"))
GRIDS = {
    name: Grid([record for record in RECORDS if record.get("comparison") == name])
    for name in dict.fromkeys(r["comparison"] for r in RECORDS if r["kind"] == "comparison")
}
# What may stay of a line once its numbers are taken out.
LEFT_OVER = re.compile(rf"[+{MINUS}]\d|\d\.\d")


def tokens(text: str) -> int:
    return int(text.replace(",", ""))


def of_kind(kind: str) -> list[Record]:
    return [record for record in RECORDS if record["kind"] == kind]


def grid_before(place: int) -> Grid:
    """That of the last section before ``place`` which has the name of a comparison."""
    for title, _ in reversed(SECTIONS[: place + 1]):
        for name, grid in GRIDS.items():
            if title == name[0].upper() + name[1:]:
                return grid
    raise AssertionError(f"section {place} belongs to no comparison")


def take_out(line: str, expected: list[str]) -> None:
    """Fail unless each text is in the line, once each, and no number of nats is left when all are taken out."""
    for text in sorted(expected, key=len, reverse=True):
        assert text in line, f"{text!r} is not in {line!r}"
        line = line.replace(text, "", 1)
    assert not LEFT_OVER.search(line), line


def named(name: str, values: list[float] | None) -> str:
    return name if values is None else f"{name} {full(values)}"


def changes(grid: Grid, match: re.Match[str]) -> list[str]:
    protocol = next(key for key, word in PROTOCOLS.items() if word == match["protocol"])
    assert (tokens(match["near"]), tokens(match["far"])) == (grid.lengths[0], grid.lengths[-1])
    return [named(name, grid.change(name, protocol)) for name in grid.names(reading="as trained")]


def reference_changes(grid: Grid, match: re.Match[str]) -> list[str]:
    return [named(PROTOCOLS[protocol], grid.change(match["name"], protocol)) for protocol in PROTOCOLS]


def differences(grid: Grid, match: re.Match[str]) -> list[str]:
    length, other = tokens(match["length"]), match["name"]
    return [
        named(name, grid.above((name, "sliding", length), (other, "sliding", length)))
        for name in grid.names(reading="as trained")
        if name != other
    ]


def gains(grid: Grid, match: re.Match[str]) -> list[str]:
    name, length = match["name"], tokens(match["length"])
    return [
        named(row["reading"], grid.above((row["name"], "sliding", length), (name, "sliding", length)))
        for row in grid.of_kind("extrapolation")
        if (row["variant"], row["reading"] != "as trained") == (name, True)
        and (row["seed"], row["protocol"], row["length_tokens"]) == (0, "sliding", length)
    ]


def moves(grid: Grid, match: re.Match[str]) -> list[str]:
    """The largest change of a bias within the training length, against that of distance 0."""
    record = next(r for r in grid.of_kind("bias_by_distance") if (r["variant"], r["seed"]) == (match["name"], 0))
    largest = 0.0
    for layer, heads in enumerate(record["bias_after"]):
        for head, after in enumerate(heads):
            before = record["bias_before"][layer][head]
            for place, distance in enumerate(record["distances_tokens"]):
                if distance < record["train_context_length"]:
                    moved = (after[place] - after[0]) - (before[place] - before[0])
                    largest = max(largest, abs(moved))
    return [f"further than {largest:.2f}"]


def lowest_betas(grid: Grid, match: re.Match[str]) -> list[str]:
    kind, length = match["kind"], tokens(match["length"])
    lowest, level = grid.lowest(kind, "sliding", length), grid.level("sliding", length, kind)
    curve = grid.curve(kind, "sliding", length)
    found = [f"lowest at {BETA} {ratio(lowest)}"]
    if lowest != 1:
        found.append(
            f"{BETA} 1 costs {full(grid.above((curve[1.0], 'sliding', length), (curve[lowest], 'sliding', length)))}"
        )
    if len(level) > 1:
        nearest = min(level, key=lambda beta: abs(math.log(beta)))
        listed = ", ".join(map(ratio, level))
        found.append(f"not told apart: {listed}, of which {ratio(nearest)} is nearest 1")
    return found


def uniform_above_geometric(grid: Grid, match: re.Match[str]) -> list[str]:
    return [f"is {full(lowest_uniform(grid, 'sliding', tokens(match['length'])))} above"]


def lowest_uniform(grid: Grid, protocol: str, length: int) -> list[float]:
    ends = []
    for kind in ("uniform", "geometric"):
        name = grid.curve(kind, protocol, length)[grid.lowest(kind, protocol, length)]
        ends.append((name, protocol, length))
    found = grid.above(*ends)
    assert found is not None
    return found


def read_with_another_beta(grid: Grid, match: re.Match[str]) -> list[str]:
    length = tokens(match["length"])
    curve = grid.curve("set after training", "sliding", length)
    return [
        named(ratio(beta), grid.above((name, "sliding", length), (curve[1.0], "sliding", length)))
        for beta, name in curve.items()
        if beta != 1
    ]


def learned_against(grid: Grid, match: re.Match[str]) -> list[str]:
    name, other = match["name"], match["other"]
    found = []
    for length in grid.lengths:
        values = grid.above((name, "sliding", length), (other, "sliding", length))
        assert values is not None
        found.append(f"{full(values)} at {length:,} tokens")
    return found


FINDINGS: dict[str, Callable[[Grid, re.Match[str]], list[str]]] = {
    r"From (?P<near>\S+) to (?P<far>\S+) tokens with (?P<protocol>\S+) windows: ": changes,
    r"(?P<name>.+) from \S+ to \S+ tokens, in nats per token: ": reference_changes,
    r"Read further, ": lambda grid, match: [],
    r"Against (?P<name>.+) at (?P<length>\S+) tokens with sliding windows: ": differences,
    r"(?P<name>.+) at (?P<length>\S+) tokens, sliding, against itself as trained: ": gains,
    r"(?P<name>.+): within the training length": moves,
    rf"(?P<kind>\S+) slopes at (?P<length>\S+) tokens, sliding: lowest at {BETA}": lowest_betas,
    rf"The best {BETA} of \S+ slopes ": lambda grid, match: [],
    r"At (?P<length>\S+) tokens the best uniform slope": uniform_above_geometric,
    rf"Trained with {BETA} 1, read at (?P<length>\S+) tokens": read_with_another_beta,
    r"(?P<name>.+) against (?P<other>.+), sliding: ": learned_against,
}
OWN_FINDINGS = ("What holds", "Beside the paper", "Along the training")


def test_the_findings_of_comparisons() -> None:
    num_checked = 0
    for place, (title, lines) in enumerate(SECTIONS):
        for line in (line[2:] for line in lines if line.startswith("- ") and title not in OWN_FINDINGS):
            (pattern,) = [pattern for pattern in FINDINGS if re.match(pattern, line)][:1] or [None]
            assert pattern is not None, f"no rule for {line!r}"
            match = re.match(pattern, line)
            assert match is not None
            grid = grid_before(place)
            take_out(line, FINDINGS[pattern](grid, match))
            num_checked += 1
    assert num_checked == sum(
        line.startswith("- ") for title, lines in SECTIONS if title not in OWN_FINDINGS for line in lines
    )


def test_the_settings_of_comparisons() -> None:
    found = 0
    for place, (_, lines) in enumerate(SECTIONS):
        for line in (line for line in lines if re.match(r"\d+ variants, ", line)):
            grid = grid_before(place)
            trainings = grid.of_kind("training")
            first = trainings[0]
            num_tokens = max(row["num_tokens"] for row in grid.of_kind("extrapolation") if row["num_tokens"])
            num_seeds = len({record["seed"] for record in trainings})
            windows = math.ceil(num_tokens / grid.lengths[-1])
            seeds = "1 seed" if num_seeds == 1 else f"{num_seeds} seeds"
            start = (
                f"{len({r['variant'] for r in trainings})} variants, {seeds} each: "
                f"{span([r['num_parameters'] / 1e6 for r in trainings])} million parameters, "
                f"{first['num_train_tokens'] / 1e6:.2f} million tokens of training at "
                f"{first['train_length_tokens']:,} tokens a sequence in bfloat16. Every length is read over the same "
                f"{num_tokens:,} tokens of validation text, {windows:,} windows of {grid.lengths[-1]:,}."
            )
            assert line.startswith(start), f"{line[: len(start)]!r} is not {start!r}"
            assert f"Learned from {grid.of_kind('corpus')[0]['num_bytes'] / 1e6:.1f} MB of text" in line
            found += 1
    assert found == len(GRIDS)


def check_perplexities(grid: Grid, rows: list[list[str]]) -> None:
    lengths = [tokens(text) for text in rows[0][2:-1]]
    for name, protocol, *cells, trained in rows[1:]:
        key = protocol_of(protocol)
        for length, cell in zip(lengths, cells, strict=True):
            expected = grid.perplexity(name, key, length)
            assert cell == expected or (expected == DASH and cell.startswith("failed")), (name, protocol, length)
        assert tokens(trained) == grid.of_kind("training")[0]["train_length_tokens"]
    named_rows = {(row[0], protocol_of(row[1])) for row in rows[1:]}
    assert len(named_rows) == len(rows) - 1 > 0


def check_differences(grid: Grid, rows: list[list[str]]) -> None:
    reference = rows[0][0].removeprefix("nats above ")
    assert reference in grid.names(reading="as trained")
    for name, protocol, *cells in rows[1:]:
        key = protocol_of(protocol)
        for length, cell in zip(map(tokens, rows[0][2:]), cells, strict=True):
            values = grid.above((name, key, length), (reference, key, length))
            if values is None:
                assert cell == DASH
                continue
            spread = f" {PLUS_MINUS} {deviation(values):.3f}" if len(values) > 1 else ""
            assert cell == signed(mean(values)) + spread, (name, protocol, length)


def check_betas(grid: Grid, rows: list[list[str]], protocol: str) -> None:
    for column, head in enumerate(rows[0][1:], start=1):
        kind, _, length = head.partition(", ")
        curve = grid.curve(kind, protocol, tokens(length))
        level = grid.level(protocol, tokens(length), kind)
        found = {}
        for row in rows[1:]:
            for beta, name in curve.items():
                if ratio(beta) == row[0]:
                    star = " *" if beta in level else ""
                    found[row[0]] = grid.perplexity(name, protocol, tokens(length)) + star
        expected = [found.get(row[0], DASH) for row in rows[1:]]
        if kind != "set after training":  # its stars go by blocks, or by a number taken for them
            assert [row[column] for row in rows[1:]] == expected, head
        else:
            assert [row[column].removesuffix(" *") for row in rows[1:]] == [c.removesuffix(" *") for c in expected]
        assert len(found) == len(curve)


def check_learned_betas(grid: Grid, rows: list[list[str]]) -> None:
    records = sorted(grid.of_kind("trained_beta"), key=lambda r: (r["alibi_trainable"], r["seed"]))
    for row, record in zip(rows[1:], records, strict=True):
        betas = record["beta_by_layer"]
        layers = [DASH] * (len(rows[0]) - 4) if betas is None else [ratio(beta) for beta in betas]
        start = [record["alibi_trainable"], str(record["seed"]), number(record["perplexity"])]
        assert row == [*start, f"{record['nats_per_token']:.4f}", *layers]


def check_learned_slopes(grid: Grid, rows: list[list[str]]) -> None:
    expected = []
    for record in sorted(grid.of_kind("trained_beta"), key=lambda r: r["seed"]):
        if record["alibi_trainable"] == "slopes":
            for layer, slopes in enumerate(record["slopes_by_layer"], start=1):
                expected.append([str(record["seed"]), str(layer), *map(ratio, slopes)])
    assert rows[1:] == expected


def check_published(rows: list[list[str]]) -> None:
    for name, _, *cells, trained in rows[1:]:
        found = {r["length_tokens"]: r for r in of_kind("published") if r["name"] == name}
        for length, cell in zip(map(tokens, rows[0][2:-1]), cells, strict=True):
            known = length in found and found[length]["perplexity"] is not None
            assert known is (cell != DASH and not cell.startswith("failed"))
            assert not known or cell == number(found[length]["perplexity"])
        assert {r["train_context_length"] for r in found.values()} == {tokens(trained)}


def check_milestones(rows: list[list[str]]) -> None:
    num_checked = 0
    for name, step, num_tokens, *cells in rows[1:]:
        for length, cell in zip(map(tokens, rows[0][3:]), cells, strict=True):
            found = [
                r
                for r in of_kind("milestone")
                if (r["name"], r["step"], r["protocol"], r["length_tokens"])
                == (name, tokens(step), "nonoverlapping", length)
            ]
            assert (cell == DASH) is (not found)
            for record in found:
                assert record["num_train_tokens"] == tokens(num_tokens)
                assert cell == number(record["perplexity"]) if record["error"] is None else "failed" in cell
                num_checked += 1
    assert num_checked == sum(record["protocol"] == "nonoverlapping" for record in of_kind("milestone"))


def check_speeds(rows: list[list[str]]) -> None:
    for row, record in zip(rows[1:], of_kind("model_speed"), strict=True):
        mebibytes = DASH if record["extra_bytes"] is None else f"{record['extra_bytes'] / 2**20:,.0f}"
        times = [f"{record['length_tokens']:,}", f"{record['seconds']:.2f}", f"{record['times_reference']:.2f}"]
        assert row == [record["name"], record["mode"].replace("_", " "), *times, mebibytes]


def protocol_of(words: str) -> str:
    return "sliding" if words.startswith("sliding") else "nonoverlapping"


OWN_TABLES = {
    "Beside the paper": check_published,
    "Along the training": check_milestones,
    "Speed of models": check_speeds,
}


def check_table_of_comparison(grid: Grid, rows: list[list[str]], protocols: list[str]) -> None:
    first, last = rows[0][0], rows[0][-1]
    if last == "trained at":
        check_perplexities(grid, rows)
    elif first.startswith("nats above "):
        check_differences(grid, rows)
    elif first == BETA:
        check_betas(grid, rows, protocols.pop(0))
    elif first == "trained":
        check_learned_betas(grid, rows)
    elif rows[0][:2] == ["seed", "layer"]:
        check_learned_slopes(grid, rows)
    else:
        raise AssertionError(f"no rule for the table {rows[0]}")


def test_every_table() -> None:
    for place, (title, lines) in enumerate(SECTIONS):
        protocols = list(PROTOCOLS)
        for rows in tables_of(lines):
            if title in OWN_TABLES:
                OWN_TABLES[title](rows)
            elif title == "Provenance":
                assert sum(int(cell.split()[0]) for cell in rows[0][1:]) == len(RECORDS)
            elif title != "What holds":
                check_table_of_comparison(grid_before(place), rows, protocols)


def lines_of(title: str) -> list[str]:
    (lines,) = (lines for other, lines in SECTIONS if other == title)
    return lines


def test_the_paper_beside_what_was_measured() -> None:
    checked = []
    for line in (line[2:] for line in lines_of("Beside the paper") if line.startswith("- ")):
        method = line.split(":")[0]
        curves = {
            name: [r for r in of_kind("published") if r["name"] == name and r["perplexity"] is not None]
            for name in (method, "alibi")
        }
        near, far = curves[method][0], curves[method][-1]
        rise = math.log(far["perplexity"]) - math.log(near["perplexity"])
        expected = [f"the paper {signed(rise)} nats from {near['length_tokens']:,} to {far['length_tokens']:,} tokens"]
        if method != "alibi":
            beside = math.log(near["perplexity"]) - math.log(curves["alibi"][0]["perplexity"])
            expected.append(f"against alibi: the paper {signed(beside)}")
        for grid in GRIDS.values():
            if grid.lengths[-1] == 32 * grid.lengths[0]:
                first, last = grid.lengths[0], grid.lengths[-1]
                change = grid.change(method, "nonoverlapping")
                assert change is not None
                expected.append(f"{full(change)} from {first:,} to {last:,} on {grid.corpus}")
                if method != "alibi":
                    trained = grid.above((method, "nonoverlapping", first), ("alibi", "nonoverlapping", first))
                    assert trained is not None
                    expected.append(f"{full(trained)} on {grid.corpus}")
        take_out(line, expected)
        checked.append(method)
    assert checked == ["sinusoidal", "rope", "t5", "alibi"]


def milestone(name: str, step: int, protocol: str, length: int) -> Record:
    (found,) = (
        r
        for r in of_kind("milestone")
        if (r["name"], r["step"], r["protocol"], r["length_tokens"]) == (name, step, protocol, length)
    )
    return found


def test_what_is_said_along_the_training() -> None:
    start = of_kind("milestone")[0]
    goal = number(start["perplexity"])
    for line in (line[2:] for line in lines_of("Along the training") if line.startswith("- ")):
        name = line.split(":")[0]
        own = [r for r in of_kind("milestone") if r["name"] == name and r["error"] is None]
        last = max(r["step"] for r in own)
        expected = [f"{number(milestone(name, 0, 'nonoverlapping', 128)['perplexity'])} at 128 tokens before"]
        for record in own:
            if record["step"] == last:
                expected.append(f"{number(record['perplexity'])} at {record['length_tokens']:,} tokens")
        reached = [
            r
            for r in own
            if (r["protocol"], r["length_tokens"]) == ("nonoverlapping", 128)
            and r["perplexity"] <= start["perplexity"]
        ]
        if reached[0]["step"]:
            expected.append(f"as good as {start['name']} ({goal}) after {reached[0]['num_train_tokens']:,} tokens")
        expected.append(f"after {max(r['num_train_tokens'] for r in own):,} tokens ")
        take_out(line, expected)


def claim_parts(measured: str) -> list[tuple[Grid, str]]:
    """What is said of each comparison: every one begins with its corpus and what the verdict rests on."""
    heads = {f"{grid.corpus} ({grid.basis()}): ": grid for grid in GRIDS.values()}
    starts = sorted((measured.index(head), head) for head in heads if head in measured)
    ends = [start for start, _ in starts[1:]] + [len(measured) + 2]
    assert starts and starts[0][0] == 0, measured
    return [
        (heads[head], measured[start + len(head) : end - 2]) for (start, head), end in zip(starts, ends, strict=True)
    ]


def claimed_changes(grid: Grid, said: str) -> list[str]:
    """Means of changes from the shortest to the longest length, of ALiBi where no method is named."""
    first, last = grid.lengths[0], grid.lengths[-1]
    expected = [f"from {first:,} to {last:,} tokens"]
    if "non-overlapping" in said:
        expected.append(f"non-overlapping {signed(mean(grid.change('alibi', 'nonoverlapping') or []))}")
    for name in grid.names(reading="as trained"):
        value = grid.change(name, "sliding")
        if value is None:
            continue
        text = signed(mean(value))
        if name == "alibi" and said.startswith(text):
            expected.append(text)
        elif name != "alibi" and f" {name} {text}" in f" {said}":
            expected.append(f"{name} {text}")
    return expected


def claimed_differences(grid: Grid, said: str) -> list[str]:
    match = re.search(r"against it at (\S+) tokens", said)
    assert match is not None
    length, expected = tokens(match[1]), [match[0]]
    for name in grid.names(reading="as trained"):
        value = grid.above((name, "sliding", length), ("alibi", "sliding", length))
        if value is not None and f" {name} {signed(mean(value))}" in f" {said}":
            expected.append(f"{name} {signed(mean(value))}")
    return expected


def claimed_readings(grid: Grid, said: str) -> list[str]:
    """The lowest of the readings of ALiBi, or of RoPE as far as each is set for."""
    if said.startswith("at best rope") or "RoPE as trained" in said:
        gains = []
        for row in grid.of_kind("extrapolation"):
            extension = row["overrides"].get("rope_extension")
            if extension and row["protocol"] == "sliding":
                far = extension.get("factor", math.inf) * grid.lengths[0]
                if row["length_tokens"] == max(n for n in grid.lengths if n <= far):
                    ends = (row["name"], "sliding", row["length_tokens"]), ("rope", "sliding", grid.lengths[0])
                    gains.append((mean(grid.above(*ends) or []), row["reading"], row["length_tokens"]))
        value, reading, length = min(gains)
        trained = mean(grid.above(("rope", "sliding", length), ("rope", "sliding", grid.lengths[0])) or [])
        return [
            f"at best {reading} {signed(value)} at {length:,} tokens",
            f"where RoPE as trained stands {signed(trained)}",
        ]
    gains = []
    for row in grid.of_kind("extrapolation"):
        if "alibi_scaling" in row["overrides"] and row["protocol"] == "sliding":
            if (length := row["length_tokens"]) > grid.lengths[0]:
                value = mean(grid.above((row["name"], "sliding", length), ("alibi", "sliding", length)) or [])
                gains.append((value, row["reading"], length))
    value, reading, length = min(gains)
    return [f"at best {signed(value)}, {reading} at {length:,} tokens"]


def claimed_betas(grid: Grid, said: str) -> list[str]:
    """The beta taken at every length, with those not told apart, and what the lowest loss is below that of beta 1."""
    expected = []
    for length in grid.lengths:
        curve, level = grid.curve("geometric", "sliding", length), grid.level("sliding", length)
        taken = min(level, key=lambda beta: abs(math.log(beta)))
        notes = [f"not told apart: {', '.join(map(ratio, level))}"] if len(level) > 1 else []
        notes += [f"{ratio(level[0])} is the smallest tried"] if level[0] == min(curve) else []
        notes += [f"{ratio(level[-1])} is the largest tried"] if level[-1] == max(curve) else []
        text = f"{BETA} {ratio(taken)}{' (' + '; '.join(notes) + ')' if notes else ''} at {length:,} tokens"
        if "at the lowest" in said:
            one = (curve[1.0], "sliding", length)
            gaps = [mean(grid.above((n, "sliding", length), one) or []) for b, n in curve.items() if b != 1]
            text += f", {signed(min(gaps))} at the lowest"
        expected.append(text)
    return expected


def claimed_slopes(grid: Grid, said: str) -> list[str]:
    return [
        f"{words} at {length:,} tokens {signed(mean(lowest_uniform(grid, protocol, length)))}"
        for protocol, words in PROTOCOLS.items()
        for length in grid.lengths
    ]


def claimed_other_betas(grid: Grid, said: str) -> list[str]:
    expected = []
    for length in grid.lengths:
        curve = grid.curve("set after training", "sliding", length)
        gaps = [
            (mean(grid.above((name, "sliding", length), (curve[1.0], "sliding", length)) or []), beta)
            for beta, name in curve.items()
            if beta != 1
        ]
        value, beta = min(gaps)
        expected.append(f"{BETA} {ratio(beta)} at {length:,} tokens {signed(value)}")
    return expected


CLAIMS: dict[str, Callable[[Grid, str], list[str]]] = {
    "reads far longer text no worse": claimed_changes,
    "makes use of text beyond": claimed_changes,
    "read far longer text worse": claimed_changes,
    "alone stays level": claimed_changes,
    "it is no worse than": claimed_differences,
    "none reads better": claimed_differences,
    "Slopes made flatter": claimed_readings,
    "lets RoPE read": claimed_readings,
    "is better to train with": claimed_betas,
    f"The best {BETA} is another": claimed_betas,
    "Slopes that differ by head": claimed_slopes,
    "reads better with another": claimed_other_betas,
}


def test_the_numbers_behind_the_verdicts() -> None:
    (rows,) = tables_of(lines_of("What holds"))
    for claim, _, measured in rows[1:]:
        (rule,) = (rule for words, rule in CLAIMS.items() if words in claim)
        for grid, said in claim_parts(measured):
            take_out(said, rule(grid, said))


def test_the_setting_of_the_verdicts() -> None:
    text = next(line for line in lines_of("What holds") if line)
    trainings = [record for grid in GRIDS.values() for record in grid.of_kind("training")]
    spreads = [
        max(nats.values()) - min(nats.values())
        for grid in GRIDS.values()
        for (name, _, length), nats in grid.nats.items()
        if length == grid.lengths[0] and name in grid.names(reading="as trained")
    ]
    for expected in (
        f"models of {span([r['num_parameters'] / 1e6 for r in trainings])} million parameters",
        f"after {span([r['num_train_tokens'] / 1e6 for r in trainings])} million tokens",
        f"lie up to {max(spreads):.2f} nats apart",
    ):
        assert expected in text
