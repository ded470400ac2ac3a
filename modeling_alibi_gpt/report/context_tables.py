"""Tables about the use of distant text: accuracy by length and depth, and loss by amount of context."""

from collections.abc import Sequence
from statistics import fmean

import pandas as pd

from modeling_alibi_gpt.report.formats import MISSING_CELL, format_count, format_nats, with_minus
from modeling_alibi_gpt.report.frames import Records, alibi_first, frame_of, pick, rows_of
from modeling_alibi_gpt.report.statistics import Difference, block_differences, within_a_model
from modeling_alibi_gpt.report.tables import Table, by_length
from modeling_alibi_gpt.runtime.records import Record


READINGS = ("replaced", "cut")


def recall_table(records: Records) -> Table:
    """Accuracy averaged over seeds, one row per model and depth and one column per length.

    The lowest and the highest seed are in brackets. Errors become footnotes.
    """
    frame = with_share(alibi_first(frame_of(records)))
    frame = frame.assign(depth=[MISSING_CELL if pd.isna(depth) else f"{depth:g}" for depth in frame["depth"]])
    notes = [row["error"] and f"{row['name']}: {row['error']}" for row in rows_of(frame)]
    footnotes = list(dict.fromkeys(note for note in notes if note))
    keys = ["name", "depth", "length_tokens"]
    cells = frame.assign(note=notes).groupby(keys, sort=False)
    texts = [_shares(group["share"].tolist(), group["note"].dropna().tolist(), footnotes) for _, group in cells]
    first = cells.head(1)
    wide = by_length(first, ["name", "depth"], texts)
    rows = [[name, depth, *of_row] for (name, depth), of_row in zip(wide.index, wide.to_numpy(), strict=True)]
    return Table(["model", "depth", *map(format_count, wide.columns)], rows, 2, footnotes=footnotes)


def with_share(frame: pd.DataFrame) -> pd.DataFrame:
    """Add a column ``share`` to recall records: accuracy of whole answers, or of tokens if the task has no depth.

    An answer of the copy task, which has no depth, is half the sequence, so at least one wrong token is likely.
    """
    return frame.assign(share=frame["accuracy"].where(frame["depth"].notna(), frame["token_accuracy"]))


def context_table(records: Records) -> Table:
    """Nats above the whole context, one row per model and reading and one column per number of kept tokens."""
    frame = alibi_first(frame_of(records))
    notes = [row["error"] and f"{row['name']}: {row['error']}" for row in rows_of(frame)]
    footnotes = list(dict.fromkeys(note for note in notes if note))
    kept = sorted(int(k) for k in frame["kept_tokens"].dropna().unique())
    rows = []
    for name, of_model in frame.groupby("name", sort=False):
        whole = pick(of_model, reading="whole")["nats_per_token"].tolist()
        for reading in READINGS:
            cells = {row["kept_tokens"]: row for row in rows_of(pick(of_model, reading=reading))}
            texts = [_above(cells[k], of_model, footnotes) if k in cells else MISSING_CELL for k in kept]
            rows.append([str(name), reading, *texts, *map(format_nats, whole[:1] or [None])])
    return Table(["model", "beyond", *map(format_count, kept), "whole"], rows, 2, footnotes=footnotes)


def last_occurrence_table(records: Records) -> Table:
    """Nats per token, one row per model and reading and one column per distance bin, after a row of token counts."""
    frame = alibi_first(frame_of(records))
    drawn = frame[frame["error"].isna()]
    drawn = drawn[(drawn["reading"] == "whole") | is_baseline(drawn)]
    header: list[str] = []
    rows: list[list[str]] = []
    for row in rows_of(drawn):
        bins = row["nats_by_last_occurrence"]
        edges = bins["edges_tokens"]
        header = [f"{low:,} to {high - 1:,}" for low, high in zip(edges[:-1], edges[1:], strict=True)]
        values = [*bins["nats_per_token"], bins["not_before_nats_per_token"]]
        if not rows:
            counts = [*bins["num_tokens"], bins["not_before_num_tokens"]]
            rows.append(["tokens", "", *map(format_count, counts)])
        rows.append([row["name"], read_as(row), *map(format_nats, values)])
    return Table(["model", "read", *header, "not before"], rows, 2)


def is_baseline(frame: pd.DataFrame) -> pd.Series:
    """Mask of the ``context`` records that are cut to the training length of their model."""
    return (frame["reading"] == "cut") & (frame["kept_tokens"] == frame["train_context_length"]).fillna(False)


def read_as(row: Record) -> str:
    """``whole``, or ``cut at 128``."""
    return row["reading"] if row["reading"] == "whole" else f"{row['reading']} at {format_count(row['kept_tokens'])}"


def context_difference(row: Record, of_model: pd.DataFrame) -> Difference | None:
    """Loss increase of a model when part of its context is replaced or cut off; None if it failed."""
    whole = rows_of(pick(of_model, reading="whole"))
    if row["error"] is not None or not whole or whole[-1]["error"] is not None:
        return None
    blocks = block_differences([row["nats_per_token_by_block"]], [whole[-1]["nats_per_token_by_block"]])
    return within_a_model([row["difference_nats"]], blocks)


def _above(row: Record, of_model: pd.DataFrame, footnotes: Sequence[str]) -> str:
    difference = context_difference(row, of_model)
    if difference is None:
        note = f"{row['name']}: {row['error']}"
        return f"failed ({footnotes.index(note) + 1})" if note in footnotes else MISSING_CELL
    return with_minus(f"{difference.mean:+.3f} \N{PLUS-MINUS SIGN} {difference.noise:.3f}")


def _shares(shares: Sequence[float], notes: Sequence[str], footnotes: Sequence[str]) -> str:
    if notes:
        return f"failed ({footnotes.index(notes[0]) + 1})"
    mean = f"{round(fmean(shares), 9):.2f}"  # the order of summation must not change how a tie rounds
    return f"{mean} ({min(shares):.2f} to {max(shares):.2f})" if len(shares) > 1 else mean
