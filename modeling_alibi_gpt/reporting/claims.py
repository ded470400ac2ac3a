"""What is said of position methods and of beta, and whether it holds: a function for each claim."""

from collections.abc import Callable, Iterable, Sequence

from modeling_alibi_gpt.reporting.findings import best_beta, beta_curve, beta_moves, name_best
from modeling_alibi_gpt.reporting.grid import AS_TRAINED, Grid, format_mean, paired, sign
from modeling_alibi_gpt.reporting.page import Section
from modeling_alibi_gpt.reporting.records import Record
from modeling_alibi_gpt.reporting.tables import BETA, Table, format_count, format_ratio


# Whether a claim holds on a comparison and the numbers that say so, or None where they were not measured.
Verdict = tuple[bool, str] | None
# With sliding windows every scored token has most of a window behind it.
PROTOCOL = "sliding"
RIVALS = ("sinusoidal", "rope", "t5")


def claims_section(grids: Sequence[Grid], trainings: Sequence[Record]) -> list[Section]:
    """One table: a row for every claim that at least one of the comparisons can speak to."""
    rows = []
    for text, test in CLAIMS:
        verdicts = {grid.corpus: verdict for grid in grids if (verdict := test(grid)) is not None}
        if verdicts:
            evidence = "; ".join(f"{corpus}: {numbers}" for corpus, (_, numbers) in verdicts.items())
            rows.append([text, _in_words({corpus: holds for corpus, (holds, _) in verdicts.items()}), evidence])
    if not rows:
        return []
    spread = max(
        max(record["nats_per_token_by_seed"]) - min(record["nats_per_token_by_seed"])
        for grid in grids
        for record in grid.as_trained
        if record["error"] is None
    )
    sentence = (
        f"For models of {_range(record['num_parameters'] / 1e6 for record in trainings)} million parameters after "
        f"{_range(record['num_train_tokens'] / 1e6 for record in trainings)} million tokens of training. Numbers are "
        "nats per token, means over seeds, with sliding windows unless said otherwise; which differences count is "
        f"said below. Trainings of one variant with other seeds lie up to {spread:.2f} nats apart. What larger models "
        "and longer trainings do was not measured."
    )
    return [Section("What holds", sentence, tables=[Table(["claim", "", "measured"], rows, num_text_columns=3)])]


def _reads_on(grid: Grid) -> Verdict:
    if grid.is_sweep:
        return None
    change = _change(grid, grid.reference)
    return sign(change) <= 0, f"{format_mean(change)} {_reach(grid)}"


def _uses_distant_text(grid: Grid) -> Verdict:
    if grid.is_sweep or "nonoverlapping" not in grid.protocols:
        return None
    sliding, whole = (
        grid.change(grid.reference, protocol, grid.lengths[-1]) for protocol in (PROTOCOL, "nonoverlapping")
    )
    assert sliding is not None and whole is not None
    numbers = f"non-overlapping {format_mean(whole)}, sliding {format_mean(sliding)} {_reach(grid)}"
    return sign(sliding) < 0, numbers


def _no_worse_where_trained(grid: Grid) -> Verdict:
    differences = _differences(grid, RIVALS, grid.lengths[0])
    if not differences:
        return None
    numbers = f"{_listed(differences)} against it at {format_count(grid.lengths[0])} tokens"
    return all(sign(values) >= 0 for values in differences.values()), numbers


def _rivals_fail(grid: Grid) -> Verdict:
    changes = {variant: _change(grid, variant) for variant in RIVALS if variant in grid.variants}
    if not changes:
        return None
    return all(sign(values) > 0 for values in changes.values()), f"{_listed(changes)} {_reach(grid)}"


def _nothing_is_better(grid: Grid) -> Verdict:
    if grid.is_sweep:
        return None
    others = [variant for variant in grid.variants if variant != grid.reference]
    differences = _differences(grid, others, grid.lengths[-1])
    lowest = dict(sorted(differences.items(), key=lambda item: sum(item[1]))[:3])
    numbers = f"lowest are {_listed(lowest)} against it at {format_count(grid.lengths[-1])} tokens"
    return all(sign(values) >= 0 for values in differences.values()), numbers


def _flatter_slopes_help(grid: Grid) -> Verdict:
    readings = grid.readings(grid.reference)[1:]
    if grid.is_sweep or not readings:
        return None
    gains = {
        f"{reading} at {format_count(length)} tokens": paired(
            grid.cell(grid.reference, PROTOCOL, length, reading), grid.cell(grid.reference, PROTOCOL, length)
        )
        for reading in readings
        for length in grid.lengths[1:]
    }
    best, gain = min(gains.items(), key=lambda item: sum(item[1]))
    return any(sign(values) < 0 for values in gains.values()), f"at best {format_mean(gain)}, {best}"


def _rope_is_extended(grid: Grid) -> Verdict:
    readings = grid.readings("rope")[1:]
    if not readings:
        return None
    near = grid.cell("rope", PROTOCOL, grid.lengths[0])
    changes = {
        reading: paired(grid.cell("rope", PROTOCOL, grid.lengths[-1], reading), near)
        for reading in (AS_TRAINED, *readings)
    }
    best = min(readings, key=lambda reading: sum(changes[reading]))
    numbers = f"at best {_listed({best: changes[best]})} {_reach(grid)}, {_listed({AS_TRAINED: changes[AS_TRAINED]})}"
    return any(sign(changes[reading]) <= 0 for reading in readings), numbers


def _one_is_the_best_beta(grid: Grid) -> Verdict:
    if not grid.is_sweep:
        return None
    costs = {}
    for length in grid.lengths:
        curve = beta_curve(grid, "geometric", PROTOCOL, length)
        costs[f"{name_best(curve)} at {format_count(length)} tokens"] = paired(curve[best_beta(curve)], curve[1.0])
    return all(sign(values) >= 0 for values in costs.values()), f"{_listed(costs)} against {BETA} 1"


def _best_beta_moves(grid: Grid) -> Verdict:
    if not grid.is_sweep:
        return None
    curves = [beta_curve(grid, "geometric", PROTOCOL, length) for length in grid.lengths]
    places = [
        f"{name_best(curve)} at {format_count(length)} tokens"
        for length, curve in zip(grid.lengths, curves, strict=True)
    ]
    return beta_moves(curves), ", ".join(places)


def _heads_should_differ(grid: Grid) -> Verdict:
    if not (grid.is_sweep and beta_curve(grid, "uniform", PROTOCOL, grid.lengths[0])):
        return None
    differences = {}
    for length in grid.lengths:
        geometric, uniform = (beta_curve(grid, kind, PROTOCOL, length) for kind in ("geometric", "uniform"))
        name = f"{name_best(uniform)} at {format_count(length)} tokens"
        differences[name] = paired(uniform[best_beta(uniform)], geometric[best_beta(geometric)])
    numbers = f"one slope of {_listed(differences)} against the best geometric slopes"
    return all(sign(values) > 0 for values in differences.values()), numbers


def _learning_helps(variant: str) -> Callable[[Grid], Verdict]:
    def test(grid: Grid) -> Verdict:
        if variant not in grid.variants:
            return None
        differences = {
            f"at {format_count(length)} tokens": grid.cell(variant, PROTOCOL, length)["difference_nats_by_seed"]
            for length in grid.lengths
        }
        return all(sign(values) < 0 for values in differences.values()), f"{_listed(differences)} against {BETA} 1"

    return test


def _another_beta_reads_better(grid: Grid) -> Verdict:
    if not grid.is_sweep or len(grid.readings(grid.reference)) == 1:
        return None
    gains = {}
    for length in grid.lengths:
        curve = beta_curve(grid, "geometric", PROTOCOL, length, after_training=True)
        best = min((beta for beta in curve if beta != 1.0), key=lambda beta: curve[beta]["nats_per_token"])
        gains[f"{BETA} {format_ratio(best)} at {format_count(length)} tokens"] = paired(curve[best], curve[1.0])
    return any(sign(values) < 0 for values in gains.values()), f"at best {_listed(gains)}"


# Press, Smith and Lewis 2022 is the paper of ALiBi, arXiv:2108.12409.
CLAIMS: tuple[tuple[str, Callable[[Grid], Verdict]], ...] = (
    ("Trained on short text, ALiBi reads far longer text no worse (its paper, section 4)", _reads_on),
    ("It reads better the more text it is given", _uses_distant_text),
    ("Where it was trained it is no worse than sinusoidal, RoPE and T5", _no_worse_where_trained),
    ("Sinusoidal, RoPE and T5 read far longer text worse", _rivals_fail),
    ("No other method reads better than ALiBi far out", _nothing_is_better),
    ("Slopes made flatter at inference help it beyond the training length", _flatter_slopes_help),
    ("NTK or YaRN let RoPE read far out as well as where it was trained", _rope_is_extended),
    (f"No {BETA} is better to train with than the paper's 1", _one_is_the_best_beta),
    (f"The best {BETA} moves with the length that is read", _best_beta_moves),
    ("Slopes should differ by head", _heads_should_differ),
    (f"A {BETA} that each layer learns is better than 1", _learning_helps("learned beta")),
    ("Slopes that each head learns are better than the paper's", _learning_helps("learned slopes")),
    (f"A trained model reads better with another {BETA}", _another_beta_reads_better),
)


def _change(grid: Grid, variant: str) -> list[float]:
    change = grid.change(variant, PROTOCOL, grid.lengths[-1])
    assert change is not None
    return change


def _differences(grid: Grid, variants: Iterable[str], length: int) -> dict[str, list[float]]:
    """Nats above the reference, of those variants that can be read at ``length``."""
    cells = {variant: grid.cell(variant, PROTOCOL, length) for variant in variants if variant in grid.variants}
    return {variant: cell["difference_nats_by_seed"] for variant, cell in cells.items() if cell["error"] is None}


def _reach(grid: Grid) -> str:
    return f"from {format_count(grid.lengths[0])} to {format_count(grid.lengths[-1])} tokens"


def _listed(differences: dict[str, list[float]]) -> str:
    return ", ".join(f"{name} {format_mean(values)}" for name, values in differences.items())


def _in_words(holds: dict[str, bool]) -> str:
    where = [corpus for corpus, held in holds.items() if held]
    if not where:
        return "does not hold"
    return "holds" if len(where) == len(holds) else f"holds on {' and '.join(where)} only"


def _range(values: Iterable[float]) -> str:
    ends = sorted(values)
    return " to ".join(dict.fromkeys((f"{ends[0]:.2f}", f"{ends[-1]:.2f}")))
