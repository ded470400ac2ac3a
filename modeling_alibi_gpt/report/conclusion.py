"""The conclusion of a report: two sentences, judged by the rules of the report, and a table for the terminal."""

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from modeling_alibi_gpt.report.comparison import Comparison
from modeling_alibi_gpt.report.formats import BETA, format_count, format_nats, format_perplexity, format_ratio
from modeling_alibi_gpt.report.frames import Frames, alibi_first, by_text, distinct_names, pick, rows_of
from modeling_alibi_gpt.report.page import render_lines
from modeling_alibi_gpt.report.screen import is_screen
from modeling_alibi_gpt.report.statistics import (
    Difference,
    between_trainings,
    block_differences,
    choose_trial,
    trial_difference,
    within_a_model,
)
from modeling_alibi_gpt.report.tables import Table, by_length, of_columns, table_text
from modeling_alibi_gpt.runtime.records import Record


TEMPLATE = "conclusion.j2"
NUM_SENTENCES = 2
TERMINAL_COLUMNS = 80
MAX_LENGTHS, MAX_NAME_CHARS = 5, 20  # fills a line, with two spaces between columns and ten characters per perplexity


@dataclass(frozen=True)
class Conclusion:
    """At most two sentences and the numbers behind them; no sentences if the records answer neither question."""

    sentences: list[str] = field(default_factory=list)
    table: Table | None = None

    def text(self) -> str:
        """The sentences and the table, wrapped for a terminal of 80 columns."""
        lines = [textwrap.fill(sentence, TERMINAL_COLUMNS) for sentence in self.sentences]
        return "\n\n".join([*lines, *([table_text(self.table)] if self.table else [])])


def conclude(compared: Frames, by_kind: Frames) -> Conclusion:
    """Summarize how the models extrapolate beyond their training length, and which beta is best.

    The rules are those of the sections: a difference between training runs is shown only if it exceeds the noise and
    has the same sign in every one of at least ``MIN_SEEDS`` seeds. Only the first comparison or study is summarized;
    in a series of budgets, this is the largest budget. If there are others, the sentences begin with its name.

    Args:
        compared: Records of comparisons, by kind.
        by_kind: All other records, used if there is no comparison.
    """
    if "comparison" in compared:
        groups = [Comparison(frame) for _, frame in compared["comparison"].groupby("comparison", sort=False)]
        grids = [grid for grid in groups if not is_screen(grid)]
        return _of_first(grids) if grids else Conclusion()
    of_lengths, lengths = _of_lengths(by_kind["extrapolation"]) if "extrapolation" in by_kind else ([], None)
    of_betas, betas = _of_trials(by_kind["beta_trial"]) if "beta_trial" in by_kind else ([], None)
    return Conclusion([*of_lengths, *of_betas], lengths or betas)


def _of_first(grids: Sequence[Comparison]) -> Conclusion:
    series = [grid for grid in grids if grid.series is not None and grid.series == grids[0].series]
    chosen = max(series, key=lambda grid: grid.budget_tokens or 0) if series else grids[0]
    found = _of_comparison(chosen)
    if len(grids) == 1:
        return found
    return Conclusion([f"{chosen.name}: {sentence}" for sentence in found.sentences], found.table)


def _of_comparison(grid: Comparison) -> Conclusion:
    methods, betas = grid.split()
    whole = methods or betas
    assert whole is not None  # a comparison has cells
    whole = whole.from_training_length() or whole
    own, near, far = whole.alibi or whole.reference, whole.lengths[0], whole.lengths[-1]
    sentences = [_sentence_at(whole, own, far)] if far > near else []
    if betas is not None and len(curve := betas.curve("geometric", near)) > 1:
        taken = curve.choice.taken
        other = _other_beta(taken, curve.choice.lowest, [(row["nats_per_token"], beta) for beta, row in curve.items()])
        values = {"taken": curve[taken], "other": curve[other], "num_betas": len(curve), "mode": "retrain"}
        sentences.append(_beta_sentence(curve.between(other, taken), **values))
    if len(sentences) < NUM_SENTENCES and len(whole.variants) > 1:
        sentences.append(_sentence_at(whole, own, near))
    return Conclusion([each for each in sentences if each], _lengths_table(whole.as_trained, whole.main_protocol))


def _sentence_at(grid: Comparison, own: str, length: int) -> str:
    """Compare ``own`` with the best other variant at a length, with their change from the shortest length."""
    others = [variant for variant in grid.variants if variant != own]
    found = {name: each for name, each in grid.differences(length, others, against=own).items() if each is not None}
    rival = min(found, key=lambda name: found[name].mean) if found else None
    change = grid.change(own, grid.main_protocol, length)
    if change is None:
        return ""
    names = [own] if rival is None else [own, rival]
    ends = grid.lengths[0], length
    paths = [[grid.cell(name, grid.main_protocol, end)["perplexity"] for end in ends] for name in names]
    return _length_sentence(
        names, paths, ends, change if rival is None else found[rival], len(others), grid.main_protocol
    )


def _of_lengths(frame: pd.DataFrame) -> tuple[list[str], Table | None]:
    """Describe the first ALiBi model, or else the first model, from its training length to the longest length."""
    ((text, frame), *_) = by_text(frame)
    frame = distinct_names(frame)
    protocol = "sliding" if (frame["protocol"] == "sliding").any() else str(frame["protocol"].iloc[0])
    every = alibi_first(pick(frame, protocol=protocol)).drop_duplicates(["name", "length_tokens"], keep="last")
    cells = {(row["name"], row["length_tokens"]): row for row in rows_of(every[every["error"].isna()])}
    if not cells:
        return [], None
    own = next(iter(cells))[0]
    lengths = sorted(length for name, length in cells if name == own)
    trained = cells[own, lengths[0]]["train_context_length"]
    near, far = trained if trained in lengths else lengths[0], lengths[-1]
    table = _lengths_table(every, protocol)
    if far <= near:
        return [], table
    tokens = cells[own, far]["provenance"].get("stream_fingerprint")  # nats per other tokens cannot be compared
    model = cells[own, far]["model"]
    comparable = {
        name
        for (name, _), row in cells.items()
        if row["provenance"].get("stream_fingerprint") == tokens and (name == own or row["model"] != model)
    }
    rivals = [name for name, length in cells if length == far and name in comparable - {own} and (name, near) in cells]
    others = comparable - {own}
    read = {name for name, length in cells if length == far} & others
    failed = {row["name"] for row in rows_of(every[every["error"].notna()]) if row["length_tokens"] == far} & others
    # Words about all other models need others that were tried there: those that were read, at both lengths, or failed.
    num_others = len(read | failed) if read == {*rivals} and (rivals or failed == others) else min(1, len(rivals))
    names = [own, *sorted(rivals, key=lambda name: cells[name, far]["nats_per_token"])[:1]]
    paths = [[cells[name, length]["perplexity"] for length in (near, far)] for name in names]
    one, other = (cells[own, near], cells[own, far]) if len(names) == 1 else (cells[own, far], cells[names[1], far])
    difference = _difference(one, other, is_one_model=len(names) == 1)
    sentence = _length_sentence(names, paths, (near, far), difference, num_others, protocol)
    return [f"{text}: {sentence}" if text else sentence], table


def _difference(one: Record, other: Record, *, is_one_model: bool) -> Difference:
    by_seed = [other["nats_per_token"] - one["nats_per_token"]]
    if not is_one_model:
        return between_trainings(by_seed)
    blocks = [record.get("nats_per_token_by_block") for record in (other, one)]
    return within_a_model(by_seed, block_differences(*(row and [row] for row in blocks)))


def _length_sentence(
    names: list[str],
    paths: list[list[float]],
    lengths: tuple[int, int],
    difference: Difference,
    num_others: int,
    protocol: str,
) -> str:
    values = {"names": names, "paths": paths, "lengths": lengths, "difference": difference, "num_others": num_others}
    return " ".join(render_lines(TEMPLATE, "length", **values, protocol=protocol))


def _beta_sentence(difference: Difference, **values: Any) -> str:
    return " ".join(render_lines(TEMPLATE, "beta", difference=difference, **values))


def _of_trials(frame: pd.DataFrame) -> tuple[list[str], Table | None]:
    """Describe the first study, preferably one that retrained."""
    retrained = pick(frame, mode="retrain")
    first = retrained if len(retrained) else frame
    trials = rows_of(pick(first, study=first["study"].iloc[0], mode=first["mode"].iloc[0], state="COMPLETE"))
    chosen = choose_trial(trials)
    if chosen is None or len({trial["beta"] for trial in trials}) < 2:
        return [], None
    taken, choice = chosen
    other = _other_beta(taken["beta"], choice.lowest, [(trial["nats_per_token"], trial["beta"]) for trial in trials])
    beside = min((trial for trial in trials if trial["beta"] == other), key=lambda trial: trial["nats_per_token"])
    values = {"num_betas": len({trial["beta"] for trial in trials}), "mode": taken["mode"]}
    difference = trial_difference(beside, taken)
    sentence = _beta_sentence(difference, taken=taken, other=beside, **values)
    trials.sort(key=lambda trial: trial["beta"])
    columns = {
        BETA: [format_ratio(trial["beta"]) for trial in trials],
        "perplexity": [format_perplexity(trial["perplexity"]) for trial in trials],
        "nats per token": [format_nats(trial["nats_per_token"]) for trial in trials],
    }
    return [sentence], of_columns(columns)


def _other_beta(taken: float, lowest: float, betas: Sequence[tuple[float, float]]) -> float:
    """The beta to compare the chosen one with: 1 (the paper's), else the lowest loss, else the next lowest."""
    tried = {beta for _, beta in betas}
    if taken != 1.0 and 1.0 in tried:
        return 1.0
    return lowest if lowest != taken else min(pair for pair in betas if pair[1] != taken)[1]


def _lengths_table(frame: pd.DataFrame, protocol: str) -> Table:
    """Perplexity of each model at up to five lengths, including the shortest and the longest."""
    rows = alibi_first(pick(frame, protocol=protocol))
    cells = [format_perplexity(row["perplexity"]) if row["error"] is None else "failed" for row in rows_of(rows)]
    wide = by_length(rows, ["name"], cells)
    last = len(wide.columns) - 1
    num_shown = min(MAX_LENGTHS, last + 1)
    shown = sorted({round(place * last / max(1, num_shown - 1)) for place in range(num_shown)})
    names = _short_names(list(wide.index))
    lines = [[name, *texts] for name, texts in zip(names, wide.iloc[:, shown].to_numpy(), strict=True)]
    return Table(["perplexity at tokens", *(format_count(wide.columns[place]) for place in shown)], lines)


def _short_names(names: Sequence[str]) -> list[str]:
    """The names, cut to the width of a column: their beginnings, or their ends if two begin alike."""
    is_long = [len(name) > MAX_NAME_CHARS for name in names]
    heads = [name[: MAX_NAME_CHARS - 3] + "..." if cut else name for name, cut in zip(names, is_long, strict=True)]
    tails = ["..." + name[3 - MAX_NAME_CHARS :] if cut else name for name, cut in zip(names, is_long, strict=True)]
    return next((cut for cut in (heads, tails) if len(set(cut)) == len(set(names))), list(names))
