"""The numbers behind the verdicts of docs/results/tables.md, worked out anew by code that the report does not use."""

import math
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path

from tests.support.recomputation import (
    BETA,
    GRIDS,
    PROTOCOLS,
    Grid,
    lines_of,
    lowest_uniform,
    mean,
    ratio,
    signed,
    span,
    tables_of,
    take_out,
    tokens,
)


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
        value = grid.change(name, grid.main)
        if value is None:
            continue
        text = signed(mean(value))
        if name == "alibi" and said.startswith(text):
            expected.append(text)
        elif name != "alibi" and f" {name} {text}" in f" {said}":
            expected.append(f"{name} {text}")
    return expected


def claimed_gains(grid: Grid, said: str) -> list[str]:
    """The change of ALiBi from the first length with windows that all reach the training length."""
    near, far = next(n for n in grid.lengths if n - n // 4 >= grid.lengths[0]), grid.lengths[-1]
    value = mean(grid.above(("alibi", grid.main, far), ("alibi", grid.main, near)) or [])
    return [f"{signed(value)} from {near:,} to {far:,} tokens"]


def claimed_differences(grid: Grid, said: str) -> list[str]:
    match = re.search(r"against it at (\S+) tokens", said)
    assert match is not None
    length, expected = tokens(match[1]), [match[0]]
    for name in grid.names(reading="as trained"):
        value = grid.above((name, grid.main, length), ("alibi", grid.main, length))
        if value is not None and f" {name} {signed(mean(value))}" in f" {said}":
            expected.append(f"{name} {signed(mean(value))}")
    return expected


def claimed_readings(grid: Grid, said: str) -> list[str]:
    """The lowest of the readings of ALiBi, or of RoPE as far as each is set for."""
    if said.startswith("at best rope") or "RoPE as trained" in said:
        gains = []
        for row in grid.of_kind("extrapolation"):
            extension = row["overrides"].get("rope_extension")
            if extension and row["protocol"] == grid.main:
                far = extension.get("factor", math.inf) * grid.lengths[0]
                if row["length_tokens"] == max(n for n in grid.lengths if n <= far):
                    ends = (row["name"], grid.main, row["length_tokens"]), ("rope", grid.main, grid.lengths[0])
                    gains.append((mean(grid.above(*ends) or []), row["reading"], row["length_tokens"]))
        value, reading, length = min(gains)
        trained = mean(grid.above(("rope", grid.main, length), ("rope", grid.main, grid.lengths[0])) or [])
        return [
            f"at best {reading} {signed(value)} at {length:,} tokens",
            f"where RoPE as trained changes by {signed(trained)}",
        ]
    gains = []
    for row in grid.of_kind("extrapolation"):
        length = row["length_tokens"]
        is_scaled = "alibi_scaling" in row["overrides"] and length > grid.lengths[0]
        if is_scaled and row["protocol"] == grid.main:
            value = mean(grid.above((row["name"], grid.main, length), ("alibi", grid.main, length)) or [])
            gains.append((value, row["reading"], length))
    value, reading, length = min(gains)
    return [f"at best {signed(value)}, {reading} at {length:,} tokens"]


def claimed_betas(grid: Grid, said: str) -> list[str]:
    """The beta taken at every length, with those not told apart, and what the lowest loss is below that of beta 1."""
    expected = []
    for length in grid.lengths:
        curve, level = grid.curve("geometric", grid.main, length), grid.level(grid.main, length)
        taken = min(level, key=lambda beta: abs(math.log(beta)))
        notes = [f"not told apart: {', '.join(map(ratio, level))}"] if len(level) > 1 else []
        notes += [f"{ratio(level[0])} is the smallest tried"] if level[0] == min(curve) else []
        notes += [f"{ratio(level[-1])} is the largest tried"] if level[-1] == max(curve) else []
        text = f"{BETA} {ratio(taken)}{' (' + '; '.join(notes) + ')' if notes else ''} at {length:,} tokens"
        if "at the lowest" in said:
            one = (curve[1.0], grid.main, length)
            gaps = [mean(grid.above((n, grid.main, length), one) or []) for b, n in curve.items() if b != 1]
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
        curve = grid.curve("set after training", grid.main, length)
        gaps = [
            (mean(grid.above((name, grid.main, length), (curve[1.0], grid.main, length)) or []), beta)
            for beta, name in curve.items()
            if beta != 1
        ]
        value, beta = min(gaps)
        expected.append(f"{BETA} {ratio(beta)} at {length:,} tokens {signed(value)}")
    return expected


def claimed_learning(trainable: str, grid: Grid, said: str) -> list[str]:
    rows = (row for row in grid.of_kind("extrapolation") if row["fields"].get("alibi_trainable") == trainable)
    length, (name,) = grid.lengths[0], {row["variant"] for row in rows}
    curve, lowest = grid.curve("geometric", grid.main, length), grid.lowest("geometric", grid.main, length)
    learned, best = (
        signed(mean(grid.above((one, grid.main, length), (curve[1.0], grid.main, length)) or []))
        for one in (name, curve[lowest])
    )
    tried = ", ".join(map(ratio, curve))
    return [
        f"learned {learned}",
        f"{BETA} {ratio(lowest)} (the lowest of {tried}) {best} against {BETA} 1 at {length:,} tokens",
    ]


CLAIMS: dict[str, Callable[[Grid, str], list[str]]] = {
    "does no worse on far longer text": claimed_changes,
    "gains from text beyond": claimed_gains,
    "do worse on far longer text": claimed_changes,
    "only ALiBi stays level": claimed_changes,
    "it is no worse than": claimed_differences,
    "none is better": claimed_differences,
    "Flatter slopes": claimed_readings,
    "keeps RoPE": claimed_readings,
    "other than the paper's 1 is better": claimed_betas,
    f"The best {BETA} depends": claimed_betas,
    "that each layer learns": partial(claimed_learning, "beta"),
    "that each head learns": partial(claimed_learning, "slopes"),
    "Slopes that differ by head": claimed_slopes,
    "other than its own": claimed_other_betas,
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
        f"differ by up to {max(spreads):.2f} nats",
    ):
        assert expected in text


def test_the_page_on_comparisons_has_the_same_verdicts() -> None:
    (rows,) = tables_of(lines_of("What holds"))
    page = (Path(__file__).parents[1] / "docs" / "comparing.md").read_text(encoding="utf-8").splitlines()
    (copied,) = [table for table in tables_of(page) if table[0] == ["said", "found"]]
    assert copied[1:] == [row[:2] for row in rows[1:]]
