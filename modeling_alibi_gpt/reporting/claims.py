"""What is said of position methods and of beta, and whether it holds: a function for each claim."""

from collections.abc import Callable, Iterable, Sequence

from modeling_alibi_gpt.reporting.findings import best_beta, beta_curve, beta_moves, name_best
from modeling_alibi_gpt.reporting.grid import Grid, format_mean, paired, sign
from modeling_alibi_gpt.reporting.page import Section
from modeling_alibi_gpt.reporting.records import Record
from modeling_alibi_gpt.reporting.tables import BETA, Table, format_count, format_range, format_ratio, protocol_name


# 1 where a claim holds on a comparison, -1 where it does not, 0 where the rule of differences cannot tell, and the
# numbers that say so; None where they were not measured.
Verdict = tuple[int, str] | None
WORDS = {1: "holds", 0: "not shown", -1: "does not hold"}
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
            rows.append([text, _in_words({corpus: verdict for corpus, (verdict, _) in verdicts.items()}), evidence])
    if not rows:
        return []
    spread = max(
        max(record["nats_per_token_by_seed"]) - min(record["nats_per_token_by_seed"])
        for grid in grids
        for record in grid.as_trained
        if record["error"] is None and record["length_tokens"] == grid.lengths[0]
    )
    sentence = (
        f"For models of {format_range(record['num_parameters'] / 1e6 for record in trainings)} million parameters "
        f"after {format_range(record['num_train_tokens'] / 1e6 for record in trainings)} million tokens of training, "
        "with settings that are the same for all. Numbers are nats per token, means over seeds, with sliding windows "
        "unless said otherwise; which differences count is said below. Trainings of one variant lie up to "
        f"{spread:.2f} nats apart at the training length; differences are taken within a seed. What larger models and "
        "longer trainings do, and how much depends on the text that was read, was not measured."
    )
    return [Section("What holds", sentence, tables=[Table(["claim", "", "measured"], rows, num_text_columns=3)])]


def _reads_on(grid: Grid) -> Verdict:
    if grid.is_sweep:
        return None
    change = _change(grid, grid.reference)
    return _no_worse([change]), f"{format_mean(change)} {grid.reach} tokens"


def _uses_distant_text(grid: Grid) -> Verdict:
    if grid.is_sweep or "nonoverlapping" not in grid.protocols:
        return None
    whole = grid.change(grid.reference, "nonoverlapping", grid.lengths[-1])
    assert whole is not None
    change = _change(grid, grid.reference)
    numbers = (
        f"{format_mean(change)} {grid.reach} tokens; non-overlapping {format_mean(whole)}, where fewer tokens stand "
        "near the start of a window"
    )
    return (1 if sign(change) < 0 else -1), numbers


def _no_worse_where_trained(grid: Grid) -> Verdict:
    differences = _differences(grid, RIVALS, grid.lengths[0])
    if not differences:
        return None
    numbers = f"{_listed(differences)} against it at {format_count(grid.lengths[0])} tokens"
    return (-1 if any(sign(values) < 0 for values in differences.values()) else 1), numbers


def _rivals_fail(grid: Grid) -> Verdict:
    changes = {variant: _change(grid, variant) for variant in RIVALS if variant in grid.variants}
    if not changes:
        return None
    return _worse(changes.values()), f"{_listed(changes)} {grid.reach} tokens"


def _alone_stays_level(grid: Grid) -> Verdict:
    if grid.is_sweep:
        return None
    changes = {variant: grid.change(variant, PROTOCOL, grid.lengths[-1]) for variant in grid.variants}
    level = {variant: values for variant, values in changes.items() if values is not None and sign(values) <= 0}
    others = {variant: values for variant, values in level.items() if variant != grid.reference}
    numbers = f"{_listed(others)} {grid.reach} tokens" if others else "all others read worse"
    return (1 if list(level) == [grid.reference] else -1), numbers


def _nothing_is_better(grid: Grid) -> Verdict:
    if grid.is_sweep:
        return None
    others = [variant for variant in grid.variants if variant != grid.reference]
    differences = _differences(grid, others, grid.lengths[-1])
    lowest = dict(sorted(differences.items(), key=lambda item: sum(item[1]))[:3])
    numbers = f"lowest are {_listed(lowest)} against it at {format_count(grid.lengths[-1])} tokens"
    return (-1 if any(sign(values) < 0 for values in differences.values()) else 1), numbers


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
    return (1 if any(sign(values) < 0 for values in gains.values()) else -1), f"at best {format_mean(gain)}, {best}"


def _rope_is_extended(grid: Grid) -> Verdict:
    """Each extension at the length that its factor is for, dynamic ones at the longest."""
    near, changes = grid.lengths[0], {}
    for reading in grid.readings("rope")[1:]:
        cells = {length: grid.cell("rope", PROTOCOL, length, reading) for length in grid.lengths}
        factor = cells[near]["reading_fields"]["rope_extension"].get("factor")
        length = max(n for n in grid.lengths if factor is None or n <= factor * near)
        changes[reading, length] = paired(cells[length], grid.cell("rope", PROTOCOL, near))
    if not changes:
        return None
    (best, length), change = min(changes.items(), key=lambda item: sum(item[1]))
    numbers = (
        f"at best {best} {format_mean(change)} at {format_count(length)} tokens, where RoPE as trained stands "
        f"{format_mean(_change(grid, 'rope', length))}"
    )
    return (1 if any(sign(values) <= 0 for values in changes.values()) else -1), numbers


def _another_beta_is_better(grid: Grid) -> Verdict:
    if not grid.is_sweep:
        return None
    gains = {}
    for length in grid.lengths:
        curve = beta_curve(grid, "geometric", PROTOCOL, length)
        gains[f"{name_best(curve)} at {format_count(length)} tokens"] = paired(curve[best_beta(curve)], curve[1.0])
    return _better(gains.values()), f"{_listed(gains)} against {BETA} 1"


def _best_beta_moves(grid: Grid) -> Verdict:
    if not grid.is_sweep:
        return None
    curves = [beta_curve(grid, "geometric", PROTOCOL, length) for length in grid.lengths]
    places = [
        f"{name_best(curve)} at {format_count(length)} tokens"
        for length, curve in zip(grid.lengths, curves, strict=True)
    ]
    return int(beta_moves(curves)), ", ".join(places)


def _heads_should_differ(grid: Grid) -> Verdict:
    """With either protocol, for what tips the balance here is small."""
    if not (grid.is_sweep and beta_curve(grid, "uniform", PROTOCOL, grid.lengths[0])):
        return None
    differences = {}
    for protocol in grid.protocols:
        for length in grid.lengths:
            geometric, uniform = (beta_curve(grid, kind, protocol, length) for kind in ("geometric", "uniform"))
            one, many = uniform[best_beta(uniform)], geometric[best_beta(geometric)]
            differences[f"{protocol_name(protocol)} at {format_count(length)} tokens"] = paired(one, many)
    numbers = f"the best one slope against the best geometric slopes {_listed(differences)}"
    return _worse(differences.values()), numbers


def _learning_finds_the_best(variant: str) -> Callable[[Grid], Verdict]:
    def test(grid: Grid) -> Verdict:
        if variant not in grid.variants:
            return None
        length = grid.lengths[0]
        curve, learned = beta_curve(grid, "geometric", PROTOCOL, length), grid.cell(variant, PROTOCOL, length)
        best = curve[best_beta(curve)]
        against_one = {"learned": paired(learned, curve[1.0]), name_best(curve): paired(best, curve[1.0])}
        numbers = f"{_listed(against_one)} against {BETA} 1 at {format_count(length)} tokens"
        return _no_worse([paired(learned, best)]), numbers

    return test


def _another_beta_reads_better(grid: Grid) -> Verdict:
    if not grid.is_sweep or len(grid.readings(grid.reference)) == 1:
        return None
    gains = {}
    for length in grid.lengths:
        curve = beta_curve(grid, "geometric", PROTOCOL, length, after_training=True)
        best = min((beta for beta in curve if beta != 1.0), key=lambda beta: curve[beta]["nats_per_token"])
        gains[f"{BETA} {format_ratio(best)} at {format_count(length)} tokens"] = paired(curve[best], curve[1.0])
    return _better(gains.values()), f"at best {_listed(gains)} against the {BETA} of training"


# Its paper is Press, Smith and Lewis 2022, arXiv:2108.12409.
CLAIMS: tuple[tuple[str, Callable[[Grid], Verdict]], ...] = (
    ("Trained on short text, ALiBi reads far longer text no worse (its paper, section 4)", _reads_on),
    ("It makes use of text beyond the training length", _uses_distant_text),
    ("Where all were trained it is no worse than sinusoidal, RoPE and T5", _no_worse_where_trained),
    ("Sinusoidal, RoPE and T5 read far longer text worse", _rivals_fail),
    ("ALiBi alone stays level", _alone_stays_level),
    ("No other method reads better than ALiBi far out", _nothing_is_better),
    ("Slopes made flatter at inference help it beyond the training length", _flatter_slopes_help),
    ("NTK or YaRN, without fine-tuning, let RoPE read as far as they are set for no worse", _rope_is_extended),
    (f"Another {BETA} than the paper's 1 is better to train with", _another_beta_is_better),
    (f"The best {BETA} is another where longer text is read", _best_beta_moves),
    ("Slopes that differ by head are better than one for all heads", _heads_should_differ),
    (f"A {BETA} that each layer learns is as good as the best fixed one", _learning_finds_the_best("learned beta")),
    ("Slopes that each head learns are as good as the best fixed ones", _learning_finds_the_best("learned slopes")),
    (f"A trained model reads better with another {BETA} than its own", _another_beta_reads_better),
)


def _better(differences: Iterable[Sequence[float]]) -> int:
    """1 where all are below zero beyond the noise, -1 where one is above, else 0."""
    return _worse([-value for value in values] for values in differences)


def _worse(differences: Iterable[Sequence[float]]) -> int:
    """1 where all are above zero beyond the noise, -1 where one is below, else 0."""
    return min(sign(values) for values in differences)


def _no_worse(differences: Iterable[Sequence[float]]) -> int:
    """1 where none is above zero beyond the noise, else -1."""
    return -1 if any(sign(values) > 0 for values in differences) else 1


def _change(grid: Grid, variant: str, length: int | None = None) -> list[float]:
    change = grid.change(variant, PROTOCOL, length or grid.lengths[-1])
    assert change is not None
    return change


def _differences(grid: Grid, variants: Iterable[str], length: int) -> dict[str, list[float]]:
    """Nats above the reference, of those variants that can be read at ``length``."""
    cells = {variant: grid.cell(variant, PROTOCOL, length) for variant in variants if variant in grid.variants}
    return {variant: cell["difference_nats_by_seed"] for variant, cell in cells.items() if cell["error"] is None}


def _listed(differences: dict[str, list[float]]) -> str:
    return ", ".join(f"{name} {format_mean(values)}" for name, values in differences.items())


def _in_words(verdicts: dict[str, int]) -> str:
    corpora = {WORDS[value]: [corpus for corpus in verdicts if verdicts[corpus] == value] for value in WORDS}
    found = {word: where for word, where in corpora.items() if where}
    if len(found) == 1:
        return next(iter(found))
    return "; ".join(f"{word} on {' and '.join(where)}" for word, where in found.items())
