"""Claims on beta, a function each: what one comparison says of it, or nothing where it cannot speak."""

from collections.abc import Callable, Sequence

from modeling_alibi_gpt.reporting.findings import (
    beta_curve,
    beta_moves,
    learned_variants,
    lowest_beta,
    name_choice,
    trained_beta,
)
from modeling_alibi_gpt.reporting.grid import Grid, format_mean, listed, paired
from modeling_alibi_gpt.reporting.records import Record
from modeling_alibi_gpt.reporting.statistics import Finding, Verdict, judge, judge_any
from modeling_alibi_gpt.reporting.tables import BETA, format_count, format_ratio, protocol_name


LEARNED = {
    "beta": f"A {BETA} that each layer learns is as good as the best fixed one",
    "slopes": "Slopes that each head learns are as good as the best fixed ones",
}


def _another_beta_is_better(grid: Grid) -> list[Finding]:
    curves = _curves(grid, "geometric")
    if not all(1.0 in curve and len(curve) > 1 for curve in curves.values()):
        return []
    verdicts, gains = [], []
    for length, curve in curves.items():
        against_one = {b: d for b in curve if b != 1.0 and (d := paired(curve[b], curve[1.0])) is not None}
        verdicts.append(judge_any([difference.sign for difference in against_one.values()], -1))
        lowest = min(against_one, key=lambda beta: against_one[beta].mean)
        gains.append(
            f"{name_choice(curve)} at {format_count(length)} tokens, {format_mean(against_one[lowest])} at the lowest"
        )
    claim = f"Another {BETA} than the paper's 1 is better to train with"
    return [Finding(claim, _all_agree(verdicts), f"{', '.join(gains)}, against {BETA} 1")]


def _best_beta_moves(grid: Grid) -> list[Finding]:
    curves = _curves(grid, "geometric")
    if len(curves) < 2 or not all(len(curve) > 1 for curve in curves.values()):
        return []
    places = [f"{name_choice(curve)} at {format_count(length)} tokens" for length, curve in curves.items()]
    verdict = judge([int(beta_moves(list(curves.values())))], 1)
    return [Finding(f"The best {BETA} is another where longer text is read", verdict, ", ".join(places))]


def _heads_should_differ(grid: Grid) -> list[Finding]:
    """With either protocol, for what tips the balance here is small."""
    differences = {}
    for protocol in grid.protocols:
        for length in grid.lengths:
            geometric, uniform = (beta_curve(grid, kind, protocol, length) for kind in ("geometric", "uniform"))
            if not (geometric and uniform):
                continue
            difference = paired(uniform[lowest_beta(uniform)], geometric[lowest_beta(geometric)])
            if difference is not None:
                differences[f"{protocol_name(protocol)} at {format_count(length)} tokens"] = difference
    if not differences:
        return []
    verdict = judge([difference.sign for difference in differences.values()], 1)
    numbers = f"the lowest with one slope against the lowest with geometric slopes {listed(differences)}"
    return [Finding("Slopes that differ by head are better than one for all heads", verdict, numbers)]


def _learning_finds_the_best(grid: Grid) -> list[Finding]:
    length, findings = grid.lengths[0], []
    curve = _curves(grid, "geometric")[length]
    for variant in learned_variants(grid) if 1.0 in curve else ():
        learned, lowest = grid.cell(variant, grid.main_protocol, length), lowest_beta(curve)
        to_best, to_one = paired(learned, curve[lowest]), paired(learned, curve[1.0])
        best_to_one = paired(curve[lowest], curve[1.0])
        if to_best is None or to_one is None or best_to_one is None:
            continue
        against_one = {"learned": to_one, f"{BETA} {format_ratio(lowest)}": best_to_one}
        numbers = f"{listed(against_one)} against {BETA} 1 at {format_count(length)} tokens"
        findings.append(Finding(LEARNED[learned["fields"]["alibi_trainable"]], judge([to_best.sign], -1), numbers))
    return findings


def _another_beta_reads_better(grid: Grid) -> list[Finding]:
    own, signs, gains = trained_beta(grid), [], {}
    for length in grid.lengths:
        curve = beta_curve(grid, "geometric", grid.main_protocol, length, after_training=True)
        others = {b: d for b in curve if b != own and (d := paired(curve[b], curve[own])) is not None}
        if not others:
            return []
        signs.append(judge_any([difference.sign for difference in others.values()], -1))
        best = min(others, key=lambda beta: others[beta].mean)
        gains[f"{BETA} {format_ratio(best)} at {format_count(length)} tokens"] = others[best]
    claim = f"A trained model reads better with another {BETA} than its own"
    return [Finding(claim, _all_agree(signs), f"at best {listed(gains)} against the {BETA} of training")]


BETA_CLAIMS: tuple[Callable[[Grid], list[Finding]], ...] = (
    _another_beta_is_better,
    _best_beta_moves,
    _heads_should_differ,
    _learning_finds_the_best,
    _another_beta_reads_better,
)


def _curves(grid: Grid, kind: str) -> dict[int, dict[float, Record]]:
    """A training for each beta, by the length that is read."""
    return {length: beta_curve(grid, kind, grid.main_protocol, length) for length in grid.lengths}


def _all_agree(verdicts: Sequence[Verdict]) -> Verdict:
    """What holds at every length holds, what does not hold at one does not."""
    return judge([{Verdict.HOLDS: 1, Verdict.DOES_NOT_HOLD: -1}.get(verdict, 0) for verdict in verdicts], 1)
