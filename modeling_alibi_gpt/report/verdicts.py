"""Verdicts of one comparison on each claim about ALiBi, with the numbers behind them.

There is one function per claim; it yields nothing if the comparison cannot test the claim. The sentences are macros of
the same names in ``templates/claims.j2``. Variants in ``Comparison.withdrawn`` get no verdict.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from modeling_alibi_gpt.report.comparison import AFTER_TRAINING, Comparison, best_moves, paired
from modeling_alibi_gpt.report.statistics import LEVEL_NATS, MIN_SEEDS, Difference, Verdict, judge


Findings = Iterator[tuple[Verdict, dict[str, Any]]]
# Methods in common use when ALiBi was published.
RIVALS = ("sinusoidal", "rope", "t5")


def reads_on(grid: Comparison) -> Findings:
    if change := _change(grid):
        yield judge([change.rise], -1), {"change": change}


def gains_from_distant_text(grid: Comparison) -> Findings:
    """Compare the longest windows with the shortest that give every scored token the training length as context.

    Still shorter windows also lack text within the training length, so their loss is higher for that reason, too.
    """
    alibi, far = grid.alibi, grid.lengths[-1]
    if alibi and grid.main_protocol == "sliding":
        cells = [grid.cell(alibi, "sliding", length) for length in grid.lengths]
        reach = {cell["length_tokens"]: cell["length_tokens"] - cell["stride_tokens"] for cell in cells}
        near = min((length for length in reach if reach[length] >= grid.lengths[0]), default=far)
        if near < far and (change := paired(cells[-1], grid.cell(alibi, "sliding", near))):
            yield judge([change.sign_above(-LEVEL_NATS)], -1), {"change": change, "near": near}


def no_worse_where_trained(grid: Comparison) -> Findings:
    if differences := _against_alibi(grid, _rivals(grid), grid.lengths[0]):
        values = {"differences": differences, "methods": _methods(grid, differences)}
        yield judge((difference.shown for difference in differences.values()), 1), values


def rivals_fail(grid: Comparison) -> Findings:
    if changes := _changes(grid, _rivals(grid)):
        values = {"changes": changes, "methods": _methods(grid, changes)}
        yield judge((change.rise for change in changes.values()), 1), values


def alone_stays_level(grid: Comparison) -> Findings:
    own, others = _change(grid), _changes(grid, _other_methods(grid))
    if own and others:
        signs = [-own.rise, *(change.rise for change in others.values())]
        yield judge(signs, 1), {"own": own, "others": list(others), "lowest": _lowest(others, 3)}


def nothing_is_better(grid: Comparison) -> Findings:
    differences = _against_alibi(grid, _other_methods(grid), grid.lengths[-1])
    if differences and len(grid.lengths) > 1:
        values = {"others": list(differences), "lowest": _lowest(differences, 3)}
        yield judge((difference.shown for difference in differences.values()), 1), values


def flatter_slopes_help(grid: Comparison) -> Findings:
    gains = {
        (reading, length): gain
        for length in grid.lengths[1:]
        for reading, gain in (_known(grid.gains(grid.alibi, length, "alibi_scaling")) if grid.alibi else {}).items()
    }
    if gains:
        ((reading, length), gain) = min(gains.items(), key=lambda item: item[1].mean)
        verdict = judge((gain.shown for gain in gains.values()), -1, each=False)
        yield verdict, {"gain": gain, "reading": reading, "length": length}


def rope_is_extended(grid: Comparison) -> Findings:
    """Judge each extension at the length that its factor is meant for, and dynamic ones at the longest length."""
    near, protocol = grid.lengths[0], grid.main_protocol
    changes: dict[tuple[str, str, int], Difference] = {}
    kinds: list[str] = []
    for variant in (variant for variant in grid.variants if grid.method(variant) == "rope"):
        for reading in grid.gains(variant, near, "rope_extension"):
            extension = grid.cell(variant, protocol, near, reading)["reading_fields"]["rope_extension"]
            factor = extension.get("factor")
            length = max(n for n in grid.lengths if factor is None or n <= factor * near)
            if change := grid.change(variant, protocol, length, reading):
                changes[variant, reading, length] = change
                kinds.append(extension["type"])
    if changes and len(grid.lengths) > 1:
        ((variant, reading, length), change) = min(changes.items(), key=lambda item: item[1].mean)
        values = {"kinds": list(dict.fromkeys(kinds)), "reading": reading, "length": length, "change": change}
        verdict = judge((change.rise for change in changes.values()), -1, each=False)
        yield verdict, {**values, "trained": grid.change(variant, protocol, length)}


def another_beta_is_better(grid: Comparison) -> Findings:
    curves = grid.curves("geometric")
    if curves and all(curve.above(1.0) for curve in curves.values()):
        gains = {length: min(curve.above(1.0).values(), key=_mean) for length, curve in curves.items()}
        verdicts = [judge((gain.shown for gain in c.above(1.0).values()), -1, each=False) for c in curves.values()]
        yield _all_agree(verdicts), {"curves": curves, "gains": gains}


def best_beta_moves(grid: Comparison) -> Findings:
    curves = grid.curves("geometric")
    if len(curves) > 1 and all(len(curve) > 1 for curve in curves.values()):
        is_shown = len(grid.seeds) >= MIN_SEEDS and best_moves(curves.values())
        yield judge([int(is_shown)], 1), {"curves": curves}


def heads_should_differ(grid: Comparison) -> Findings:
    """Judge with every protocol, because the differences are small."""
    differences: dict[tuple[str, int], Difference] = {}
    for protocol in grid.protocols:
        for length in grid.lengths:
            geometric, uniform = (grid.curve(kind, length, protocol) for kind in ("geometric", "uniform"))
            if geometric and uniform and (difference := uniform.lowest_above(geometric)):
                differences[protocol, length] = difference
    if differences:
        yield judge((difference.shown for difference in differences.values()), 1), {"differences": differences}


def learning_finds_the_best(grid: Comparison) -> Findings:
    length = grid.lengths[0]
    curve = grid.curve("geometric", length)
    for variant in grid.judged(grid.learned) if 1.0 in curve else ():
        best, one = (curve[beta]["variant"] for beta in (curve.lowest, 1.0))
        to_best, to_one = (grid.difference(variant, grid.main_protocol, length, against=to) for to in (best, one))
        if to_best and to_one:
            trainable = grid.cell(variant, grid.main_protocol, length)["fields"]["alibi_trainable"]
            values = {"trainable": trainable, "learned": to_one, "best": curve.between(curve.lowest, 1.0)}
            yield judge([to_best.shown], -1), {**values, "beta": curve.lowest, "tried": list(curve)}


def another_beta_reads_better(grid: Comparison) -> Findings:
    above = {length: grid.curve(AFTER_TRAINING, length).above(grid.own_beta) for length in grid.lengths}
    if all(above.values()):
        verdicts = [judge((gain.shown for gain in gains.values()), -1, each=False) for gains in above.values()]
        best = {length: min(gains.items(), key=lambda item: item[1].mean) for length, gains in above.items()}
        yield _all_agree(verdicts), {"best": best}


# The ALiBi paper is Press, Smith and Lewis 2022, arXiv:2108.12409.
METHOD_CLAIMS: tuple[Callable[[Comparison], Findings], ...] = (
    reads_on,
    gains_from_distant_text,
    no_worse_where_trained,
    rivals_fail,
    alone_stays_level,
    nothing_is_better,
    flatter_slopes_help,
    rope_is_extended,
)
BETA_CLAIMS: tuple[Callable[[Comparison], Findings], ...] = (
    another_beta_is_better,
    best_beta_moves,
    heads_should_differ,
    learning_finds_the_best,
    another_beta_reads_better,
)


def _change(grid: Comparison) -> Difference | None:
    """Change of ALiBi from the shortest to the longest length; None without ALiBi or sliding windows."""
    return _changes(grid, [grid.alibi]).get(grid.alibi) if grid.alibi else None


def _changes(grid: Comparison, variants: Iterable[str]) -> dict[str, Difference]:
    """Changes from the shortest to the longest length, of the variants that were evaluated at both.

    Empty with one length, and without sliding windows: in longer windows without overlap, fewer tokens are near a
    start, which lowers the loss whatever the model can read.
    """
    can_tell = grid.main_protocol == "sliding" and len(grid.lengths) > 1
    return _known(grid.changes("sliding", variants)) if can_tell else {}


def _against_alibi(grid: Comparison, variants: Iterable[str], length: int) -> dict[str, Difference]:
    """Nats above ALiBi for the variants that can be evaluated at ``length``; empty without ALiBi."""
    return _known(grid.differences(length, variants, against=grid.alibi)) if grid.alibi else {}


def _known(differences: dict[str, Difference | None]) -> dict[str, Difference]:
    return {name: difference for name, difference in differences.items() if difference is not None}


def _lowest(differences: dict[str, Difference], count: int) -> dict[str, Difference]:
    return dict(sorted(differences.items(), key=lambda item: item[1].mean)[:count])


def _mean(difference: Difference) -> float:
    return difference.mean


def _rivals(grid: Comparison) -> list[str]:
    return grid.judged(variant for method in RIVALS for variant in grid.variants if grid.method(variant) == method)


def _other_methods(grid: Comparison) -> list[str]:
    return grid.judged(variant for variant in grid.variants if grid.method(variant) != "alibi")


def _methods(grid: Comparison, variants: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(map(grid.method, variants)))


def _all_agree(verdicts: Iterable[Verdict]) -> Verdict:
    """A claim holds if it holds at every length, and does not hold if it fails at one."""
    return judge(({Verdict.HOLDS: 1, Verdict.DOES_NOT_HOLD: -1}.get(verdict, 0) for verdict in verdicts), 1)
