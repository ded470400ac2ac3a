"""The sections about the use of distant text: accuracy by length and depth, and loss by amount of context."""

import pandas as pd

from modeling_alibi_gpt.report.context_plots import (
    context_figure,
    cut_above_whole,
    last_occurrence_figure,
    recall_figure,
)
from modeling_alibi_gpt.report.context_tables import (
    READINGS,
    SIZES,
    context_difference,
    context_table,
    distinct_contexts,
    last_occurrence_tables,
    recall_table,
    with_share,
)
from modeling_alibi_gpt.report.frames import Frames, alibi_first, by_folder, by_text, distinct_names, pick, rows_of
from modeling_alibi_gpt.report.page import Picture, Section, file_stem, make_section
from modeling_alibi_gpt.runtime.records import Record


TEMPLATE = "context.j2"


def recall_sections(by_kind: Frames) -> list[Section]:
    """One section per comparison and task. If several records share a cell, the last one counts."""
    frame = by_kind["recall"]
    by_comparison = frame.groupby("comparison", sort=False)
    frame = pd.concat([group if name else distinct_names(group) for name, group in by_comparison])
    frame = frame.drop_duplicates(["comparison", "name", "model", "source", "length_tokens", "depth"], keep="last")
    groups = frame.groupby(["comparison", "source"], sort=False)
    return [_recall_section(comparison, source, group, by_kind) for (comparison, source), group in groups]


def context_sections(by_kind: Frames) -> list[Section]:
    """How much loss rises when distant text is replaced or cut off, and for which tokens."""
    return [
        section
        for text, of_text in by_text(by_kind["context"])
        for folder, rows in by_folder(of_text)
        for _, group in rows.groupby(SIZES, sort=False)
        for section in _context_sections(", ".join(filter(None, [text, folder])), group)
    ]


def _recall_section(comparison: str, source: str, frame: pd.DataFrame, by_kind: Frames) -> Section:
    measured = with_share(frame[frame["error"].isna()])
    stem = "_".join(filter(None, [file_stem(comparison), "recall", file_stem(source)]))
    pictures = []
    if len(measured):
        asked = "answers against length and depth" if measured["depth"].notna().any() else "tokens against length"
        alt = f"Share of right {asked}, {source}"
        pictures.append(Picture(f"{stem}.png", recall_figure(measured), alt))
    training = pick(by_kind["training"], comparison=comparison) if comparison and "training" in by_kind else None
    values = {
        "comparison": comparison,
        "source": source,
        "task": source.partition(":")[2].partition(",")[0],
        "num_examples": sorted(set(frame["num_examples"].tolist())),
        "num_seeds": frame["seed"].nunique(),
        "training": training,
        "findings": [_recall_finding(group) for _, group in alibi_first(measured).groupby("name", sort=False)],
    }
    return make_section(TEMPLATE, "recall", pictures=pictures, tables=[recall_table(frame)], **values)


def _recall_finding(of_model: pd.DataFrame) -> Record:
    """Accuracy of a model at its shortest and longest length, and at the extreme depths of the longest."""
    near, far = of_model["length_tokens"].min(), of_model["length_tokens"].max()
    longest = pick(of_model, length_tokens=far)
    depths = sorted(longest["depth"].dropna().unique())
    ends = (depths[0], depths[-1]) if len(depths) > 1 else ()
    return {
        "name": of_model["name"].iloc[0],
        "lengths": (near, far),
        "shares": tuple(_mean(pick(of_model, length_tokens=length)["share"]) for length in (near, far)),
        "at_depths": [(depth, _mean(pick(longest, depth=depth)["share"])) for depth in ends],
    }


def _mean(shares: pd.Series) -> float:
    """The mean, rounded as in the table, so that ties round the same way in both places."""
    return round(float(shares.mean()), 9)


def _context_sections(words: str, rows: pd.DataFrame) -> list[Section]:
    frame = distinct_contexts(rows)
    measured = frame[frame["error"].isna()]
    pictures = []
    if measured["kept_tokens"].notna().any():
        alt = "Loss above that with the whole context, against the tokens that are kept"
        pictures.append(Picture("context.png", context_figure(measured), alt))
    findings = []
    for name, of_name in alibi_first(frame).groupby("name", sort=False):
        trained = of_name["train_context_length"].iloc[0]
        at_home = pick(of_name, kept_tokens=trained) if pd.notna(trained) else of_name[:0]
        by_reading = {reading: rows_of(pick(at_home, reading=reading)) for reading in READINGS}
        changes = {reading: context_difference(rows, of_name) for reading, rows in by_reading.items() if rows}
        if changes:
            findings.append({"name": name, "trained": trained, "changes": changes})
    num_seeds = frame.groupby("name")["model"].nunique()
    values = {"words": words, "first": rows_of(frame)[0], "findings": findings, "num_repeated": len(rows) - len(frame)}
    values |= {"num_seeds": num_seeds.max(), "least_seeds": num_seeds.min()}
    sections = [make_section(TEMPLATE, "context", pictures=pictures, tables=[context_table(frame)], **values)]
    if not cut_above_whole(measured):
        return sections
    alt = "Loss of the text cut to the training length above the whole, by distance of the last occurrence"
    picture = Picture("last_occurrence.png", last_occurrence_figure(measured), alt)
    tables, values = last_occurrence_tables(frame), {"words": words, "scored_tokens": frame["scored_tokens"].iloc[0]}
    return [*sections, make_section(TEMPLATE, "last_occurrence", pictures=[picture], tables=tables, **values)]
