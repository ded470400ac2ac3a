"""Tables about the use of distant text: accuracy by length and depth, and loss by amount of context."""

from collections.abc import Sequence
from statistics import fmean

import pandas as pd

from modeling_alibi_gpt.report.formats import MISSING_CELL, format_count, format_nats, format_share, with_minus
from modeling_alibi_gpt.report.frames import Records, alibi_first, distinct_names, frame_of, pick, rows_of
from modeling_alibi_gpt.report.statistics import Difference, block_differences, within_a_model
from modeling_alibi_gpt.report.tables import Table, by_length
from modeling_alibi_gpt.runtime.records import Record


READINGS = ("replaced", "cut")
SIZES = ["context_tokens", "scored_tokens", "num_windows"]


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


def distinct_contexts(frame: pd.DataFrame) -> pd.DataFrame:
    """The rows, with one name for the seeds of a variant that was read in one way; of repeated rows, the last."""
    named = distinct_names(frame, merge_seeds=True)
    return named.drop_duplicates(["name", "model", *SIZES, "reading", "kept_tokens"], keep="last")


def context_table(records: Records) -> Table:
    """Nats above the whole context, one row per name and reading and one column per number of kept tokens."""
    frame = alibi_first(frame_of(records))
    notes = [row["error"] and f"{row['name']}: {row['error']}" for row in rows_of(frame)]
    footnotes = list(dict.fromkeys(note for note in notes if note))
    kept = sorted(int(k) for k in frame["kept_tokens"].dropna().unique())
    rows = []
    for name, of_name in frame.groupby("name", sort=False):
        whole = pick(of_name, reading="whole")["nats_per_token"].tolist()
        for reading in READINGS:
            cells = [rows_of(pick(of_name, reading=reading, kept_tokens=k)) for k in kept]
            texts = [_above(cell, of_name, footnotes) if cell else MISSING_CELL for cell in cells]
            rows.append([str(name), reading, *texts, format_nats(fmean(whole) if whole else None)])
    return Table(["model", "beyond", *map(format_count, kept), "whole"], rows, 2, footnotes=footnotes)


def last_occurrence_tables(records: Records) -> list[Table]:
    """Nats per token, one row per name and reading and one column per distance bin with tokens.

    The first row has the numbers of tokens. Models read with other bins or on other text have a table of their own.
    """
    tables: dict[str, Table] = {}
    for name, readings in last_occurrences(alibi_first(frame_of(records))):
        for reading, bins in readings.items():
            edges, counts = bins["edges_tokens"], bins["num_tokens"]
            taken = [column for column, count in enumerate(counts) if count]
            if (key := _bins_of(bins)) not in tables:
                header = [f"{edges[column]:,} to {edges[column + 1] - 1:,}" for column in taken]
                found = [*(counts[column] for column in taken), bins["not_before_num_tokens"]]
                tables[key] = Table(
                    ["model", "read", *header, "not before"], [["tokens", "", *map(format_count, found)]], 2
                )
            values = [*(bins["nats_per_token"][column] for column in taken), bins["not_before_nats_per_token"]]
            tables[key].rows.append([name, reading, *map(format_nats, values)])
    return list(tables.values())


def last_occurrences(frame: pd.DataFrame) -> list[tuple[str, dict[str, Record]]]:
    """Loss by last occurrence, averaged over the models with one name and the same bins, by name and reading.

    The readings are ``whole`` and the context cut to the training length, such as ``cut at 128``, in this order.
    """
    measured = frame[frame["error"].isna()]
    measured = measured.assign(bins=measured["nats_by_last_occurrence"].map(_bins_of))
    found = []
    for (name, _), of_name in measured.groupby(["name", "bins"], sort=False):
        readings: dict[str, Record] = {}
        whole, cut = pick(of_name, reading="whole"), of_name[is_baseline(of_name)]
        # Means over different models cannot be compared.
        for part in (whole, cut if {*cut["model"]} == {*whole["model"]} else cut[:0]):
            if len(part):
                kept = part["kept_tokens"].iloc[0]
                reading = "whole" if pd.isna(kept) else f"cut at {format_count(int(kept))}"
                readings[reading] = _mean_bins(part["nats_by_last_occurrence"].tolist())
        found.append((str(name), readings))
    return found


def is_baseline(frame: pd.DataFrame) -> pd.Series:
    """Mask of the ``context`` records that are cut to the training length of their model."""
    return (frame["reading"] == "cut") & (frame["kept_tokens"] == frame["train_context_length"]).fillna(False)


def context_difference(rows: Sequence[Record], of_name: pd.DataFrame) -> Difference | None:
    """Loss increase when part of the context is replaced or cut off; None if a model failed.

    Args:
        rows: The reading, one record for each model of the name.
        of_name: All records of these models.
    """
    whole = {row["model"]: row for row in rows_of(pick(of_name, reading="whole"))}
    pairs = [(row, whole.get(row["model"])) for row in rows]
    if not all(row["error"] is None and other and other["error"] is None for row, other in pairs):
        return None
    one, other = ([row["nats_per_token_by_block"] for row in each] for each in zip(*pairs, strict=True))
    return within_a_model([row["difference_nats"] for row in rows], block_differences(one, other))


def _above(rows: Sequence[Record], of_name: pd.DataFrame, footnotes: Sequence[str]) -> str:
    difference = context_difference(rows, of_name)
    if difference is None:
        notes = [f"{row['name']}: {row['error']}" for row in rows if row["error"] is not None]
        return f"failed ({footnotes.index(notes[0]) + 1})" if notes else MISSING_CELL
    return with_minus(f"{difference.mean:+.3f} \N{PLUS-MINUS SIGN} {difference.noise:.3f}")


def _bins_of(bins: Record) -> str:
    """The edges and the numbers of tokens, which models have in common that read the same text and tokens."""
    return str([bins[name] for name in ("edges_tokens", "num_tokens", "not_before_num_tokens")])


def _mean_bins(bins: Sequence[Record]) -> Record:
    """The mean loss of each bin, of models that have the same bins."""
    columns = zip(*(each["nats_per_token"] for each in bins), strict=True)
    return bins[0] | {
        "nats_per_token": [_mean_or_none(column) for column in columns],
        "not_before_nats_per_token": _mean_or_none([each["not_before_nats_per_token"] for each in bins]),
    }


def _shares(shares: Sequence[float], notes: Sequence[str], footnotes: Sequence[str]) -> str:
    if notes:
        return f"failed ({footnotes.index(notes[0]) + 1})"
    mean = format_share(fmean(shares))
    return f"{mean} ({min(shares):.2f} to {max(shares):.2f})" if len(shares) > 1 else mean


def _mean_or_none(values: Sequence[float | None]) -> float | None:
    return None if None in values else fmean(value for value in values if value is not None)
