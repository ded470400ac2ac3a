"""Every number of docs/results/tables.md, worked out anew from the records by code that the report does not use."""

import math
import re
from collections.abc import Callable
from functools import partial

import pytest

from tests.support import recomputed_budgets as budgets
from tests.support import recomputed_context as context
from tests.support.recomputation import (
    BETA,
    DASH,
    GRIDS,
    PLUS_MINUS,
    PROTOCOLS,
    RECORDS,
    SECTIONS,
    Grid,
    Record,
    answers_of,
    deviation,
    full,
    grid_before,
    half_width,
    lines_of,
    lowest_uniform,
    mean,
    named,
    number,
    of_kind,
    ratio,
    shares_of,
    signed,
    span,
    tables_of,
    take_out,
    tokens,
)


def changes(grid: Grid, match: re.Match[str]) -> list[str]:
    protocol = next(key for key, word in PROTOCOLS.items() if word == match["protocol"])
    assert (tokens(match["near"]), tokens(match["far"])) == (grid.lengths[0], grid.lengths[-1])
    return [named(name, grid.change(name, protocol)) for name in grid.names(reading="as trained")]


def reference_changes(grid: Grid, match: re.Match[str]) -> list[str]:
    read = [protocol for protocol in PROTOCOLS if protocol in {protocol for _, protocol, _ in grid.nats}]
    return [named(PROTOCOLS[protocol], grid.change(match["name"], protocol)) for protocol in read]


def differences(grid: Grid, match: re.Match[str]) -> list[str]:
    length, other = tokens(match["length"]), match["name"]
    return [
        named(name, grid.above((name, grid.main, length), (other, grid.main, length)))
        for name in grid.names(reading="as trained")
        if name != other
    ]


def gains(grid: Grid, match: re.Match[str]) -> list[str]:
    name, length = match["name"], tokens(match["length"])
    return [
        named(row["reading"], grid.above((row["name"], grid.main, length), (name, grid.main, length)))
        for row in grid.of_kind("extrapolation")
        if (row["variant"], row["reading"] != "as trained") == (name, True)
        and (row["seed"], row["protocol"], row["length_tokens"]) == (0, grid.main, length)
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
    lowest, level = grid.lowest(kind, grid.main, length), grid.level(grid.main, length, kind)
    curve = grid.curve(kind, grid.main, length)
    found = [f"lowest at {BETA} {ratio(lowest)}"]
    if lowest != 1:
        found.append(
            f"{BETA} 1 costs {full(grid.above((curve[1.0], grid.main, length), (curve[lowest], grid.main, length)))}"
        )
    if len(level) > 1:
        nearest = min(level, key=lambda beta: abs(math.log(beta)))
        listed = ", ".join(map(ratio, level))
        found.append(f"not told apart: {listed}, of which {ratio(nearest)} is nearest to 1")
    return found


def uniform_above_geometric(grid: Grid, match: re.Match[str]) -> list[str]:
    return [f"is {full(lowest_uniform(grid, grid.main, tokens(match['length'])))} above"]


def read_with_another_beta(grid: Grid, match: re.Match[str]) -> list[str]:
    length = tokens(match["length"])
    curve = grid.curve("set after training", grid.main, length)
    return [
        named(ratio(beta), grid.above((name, grid.main, length), (curve[1.0], grid.main, length)))
        for beta, name in curve.items()
        if beta != 1
    ]


def learned_against(grid: Grid, match: re.Match[str]) -> list[str]:
    name, other = match["name"], match["other"]
    found = []
    for length in grid.lengths:
        values = grid.above((name, grid.main, length), (other, grid.main, length))
        assert values is not None
        found.append(f"{full(values)} at {length:,} tokens")
    return found


FINDINGS: dict[str, Callable[[Grid, re.Match[str]], list[str]]] = {
    r"From (?P<near>\S+) to (?P<far>\S+) tokens with (?P<protocol>\S+) windows: ": changes,
    r"(?P<name>.+) from \S+ to \S+ tokens, in nats per token: ": reference_changes,
    r"On longer text, ": lambda grid, match: [],
    r"Against (?P<name>.+) at (?P<length>\S+) tokens with (?:sliding|non-overlapping) windows: ": differences,
    r"(?P<name>.+) at (?P<length>\S+) tokens, (?:sliding|non-overlapping), against itself as trained: ": gains,
    r"(?P<name>.+): within the training length": moves,
    rf"(?P<kind>\S+) slopes at (?P<length>\S+) tokens, (?:sliding|non-overlapping): lowest at {BETA}": lowest_betas,
    rf"The best {BETA} of \S+ slopes ": lambda grid, match: [],
    r"At (?P<length>\S+) tokens the best uniform slope": uniform_above_geometric,
    rf"Trained with {BETA} 1, evaluated at (?P<length>\S+) tokens": read_with_another_beta,
    r"(?P<name>.+) against (?P<other>.+), (?:sliding|non-overlapping): ": learned_against,
}
TASKS = {"Associative recall": "associative recall", "Passkey": "passkey", "Copying": "copying"}
OTHERS = (budgets.TITLE, "What holds", "Comparison with the paper", "Milestones of training")
OWN_FINDINGS = (*TASKS, *context.TABLES, *OTHERS)


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
                f"{first['num_train_tokens'] / 1e6:.2f} million training tokens in sequences of "
                f"{first['train_length_tokens']:,} tokens in bfloat16. Every length is evaluated on the same "
                f"{num_tokens:,} tokens of validation text, {windows:,} windows of {grid.lengths[-1]:,}."
            )
            assert line.startswith(start), f"{line[: len(start)]!r} is not {start!r}"
            assert f"Trained on {grid.of_kind('corpus')[0]['num_bytes'] / 1e6:.1f} MB of text" in line
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
            spread = f" {PLUS_MINUS} {deviation(values):.3f}" if len(values) == 2 else ""
            if len(values) > 2:
                spread = f" {PLUS_MINUS} {half_width(values):.3f}"
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


def two_digits(value: float) -> str:
    return f"{round(value, 9):.2f}"


def check_recall(task: str, rows: list[list[str]]) -> None:
    lengths = [tokens(cell) for cell in rows[0][2:]]
    for name, depth, *cells in rows[1:]:
        for length, cell in zip(lengths, cells, strict=True):
            shares = shares_of(task, name, length, None if depth == "\N{EN DASH}" else float(depth))
            expected = "failed"
            if shares:
                low, middle, high = map(two_digits, (min(shares), mean(shares), max(shares)))
                expected = f"{middle} ({low} to {high})"
            assert cell.startswith(expected)


@pytest.mark.parametrize("title", TASKS)
def test_the_findings_of_recall(title: str) -> None:
    task, lines = TASKS[title], [line[2:] for line in lines_of(title) if line.startswith("- ")]
    for line in lines:
        name = line.partition(":")[0]
        lengths = sorted({r["length_tokens"] for r in answers_of(task) if r["variant"] == name and r["error"] is None})
        near, far = (two_digits(mean(shares_of(task, name, length))) for length in (lengths[0], lengths[-1]))
        expected = f"{near} at {lengths[0]:,} tokens, {far} at {lengths[-1]:,}"
        if task != "copying":
            ends = (two_digits(mean(shares_of(task, name, lengths[-1], depth))) for depth in (0.0, 1.0))
            expected += " ({} at depth 0, {} at depth 1)".format(*ends)
        assert expected in line or len(lengths) == 1, line
    assert len(lines) == len({r["variant"] for r in answers_of(task)})


OWN_TABLES = {
    **{title: partial(check_recall, task) for title, task in TASKS.items()},
    **context.TABLES,
    budgets.TITLE: budgets.check_budgets,
    "Comparison with the paper": check_published,
    "Milestones of training": check_milestones,
    "Speed of models": check_speeds,
}


def check_screen(grid: Grid, rows: list[list[str]]) -> None:
    """Each cell of a screen is the loss of the one training whose settings its column names; the lowest has a star."""
    keys = {"positions \N{MULTIPLICATION SIGN}": "position_learning_rate", "amplitude ": "sinusoidal_amplitude"}
    for name, *cells, edge in rows[1:]:
        found = []
        for cell, column in zip(cells, rows[0][1:-1], strict=True):
            rate, *others = column.split(", ")
            wanted = {"training.learning_rate": float(rate)}
            wanted |= {
                field: float(other.removeprefix(key))
                for other in others
                for key, field in keys.items()
                if key in other
            }
            (record,) = (
                r
                for r in grid.of_kind("extrapolation")
                if r["variant"].startswith(f"{name.removeprefix('alibi, ')} 0.") and r["length_tokens"] == 128
                if {k: v for k, v in r["fields"].items() if isinstance(v, float | int)} == wanted
            )
            assert cell.removesuffix(" *") == f"{record['nats_per_token']:.4f}"
            found.append((record["nats_per_token"], cell, column))
        assert [cell.endswith("*") for _, cell, _ in found] == [nats == min(found)[0] for nats, _, _ in found]
        assert (edge == DASH) or all(
            part.split(" is the ")[0] in min(found)[2].split(", ") for part in edge.split("; ")
        )


def check_table_of_comparison(grid: Grid, rows: list[list[str]], protocols: list[str]) -> None:
    first, last = rows[0][0], rows[0][-1]
    if last == "trained at":
        check_perplexities(grid, rows)
    elif first.startswith("nats above "):
        check_differences(grid, rows)
    elif first == "nats per token":
        check_screen(grid, rows)
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


def test_the_paper_beside_what_was_measured() -> None:
    checked = []
    for line in (line[2:] for line in lines_of("Comparison with the paper") if line.startswith("- ")):
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
    said = [line[2:] for line in lines_of("Milestones of training") if line.startswith("- ")]
    assert len(said) == len({record["name"] for record in of_kind("milestone")}) - 1  # one of them is the start
    for line in said:
        name = line.split(":")[0]
        own = [r for r in of_kind("milestone") if r["name"] == name and r["error"] is None]
        last = max(r["step"] for r in own)
        expected = [f"{number(milestone(name, 0, 'nonoverlapping', 128)['perplexity'])} at 128 tokens before"]
        ends = [record for record in own if record["step"] == last]
        expected += [f"{number(record['perplexity'])} at {record['length_tokens']:,} tokens" for record in ends]
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
