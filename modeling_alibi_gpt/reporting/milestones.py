"""Perplexity along trainings: a figure, a table, and when a fine-tuned model is as good as the one it came from."""

from collections.abc import Sequence

from matplotlib.figure import Figure

from modeling_alibi_gpt.reporting.drawing import (
    GREY,
    Line,
    as_png,
    draw_lines,
    name_above,
    name_lines,
    new_axes,
    perplexity_axis,
)
from modeling_alibi_gpt.reporting.page import Picture, Section
from modeling_alibi_gpt.reporting.records import Record
from modeling_alibi_gpt.reporting.tables import (
    NOTHING,
    Table,
    format_count,
    format_perplexity,
    group_by,
    protocol_name,
)


PROTOCOL = "nonoverlapping"


def milestone_sections(by_kind: dict[str, list[Record]]) -> list[Section]:
    """One section for all trainings that were measured on the way; the first is what the others started from."""
    records = by_kind.get("milestone", [])
    if not records:
        return []
    start = records[0]["name"]
    sentence = (
        f"Perplexity along each training, with non-overlapping windows at the lengths of the columns. {start} is the "
        f"architecture, trained here on {format_count(records[0]['num_train_tokens'])} tokens, and where the others "
        "started from. Each was run once."
    )
    drawable = [record for record in records if record["name"] != start and record["error"] is None]
    alt = "Perplexity against tokens of fine-tuning, by length"
    pictures = [Picture("milestones.png", milestone_figure(records, start), alt)] if drawable else []
    return [Section("Along the training", sentence, pictures, [milestone_table(records)], findings(records, start))]


def milestone_table(records: Sequence[Record]) -> Table:
    """A row for each model and step, a column for each length; errors become footnotes."""
    chosen = [record for record in records if record["protocol"] == PROTOCOL]
    lengths = sorted({record["length_tokens"] for record in chosen})
    footnotes: list[str] = []
    rows = []
    for (name, step), group in group_by(chosen, lambda record: (record["name"], record["step"])).items():
        by_length = {record["length_tokens"]: record for record in group}
        cells = []
        for record in (by_length.get(length) for length in lengths):
            if record is not None and record["error"] is not None:
                note = f"{name}: {record['error']}"
                footnotes += [note] if note not in footnotes else []
                cells.append(f"failed ({footnotes.index(note) + 1})")
            else:
                cells.append(NOTHING if record is None else format_perplexity(record["perplexity"]))
        rows.append([name, format_count(step), format_count(group[0]["num_train_tokens"]), *cells])
    header = ["model", "steps", "tokens", *map(format_count, lengths)]
    return Table(header, rows, footnotes=footnotes)


def findings(records: Sequence[Record], start: str) -> list[str]:
    """When each training is as good as the start at its own length, and what it is worth beyond it."""
    measured = [record for record in records if record["error"] is None]
    length = records[0]["train_length_tokens"]
    (goal,) = (
        record["perplexity"]
        for record in measured
        if (record["name"], record["length_tokens"], record["protocol"]) == (start, length, PROTOCOL)
    )
    sentences = []
    for name, group in group_by([r for r in measured if r["name"] != start], lambda record: record["name"]).items():
        near = [record for record in group if (record["length_tokens"], record["protocol"]) == (length, PROTOCOL)]
        before, num_tokens = format_perplexity(near[0]["perplexity"]), format_count(near[-1]["num_train_tokens"])
        last = [record for record in group if record["step"] == near[-1]["step"]]
        ends = [
            f"{_at_lengths(rows)} with {protocol_name(protocol)} windows"
            for protocol, rows in group_by(last, lambda record: record["protocol"]).items()
        ]
        sentences.append(
            f"{name}: {before} at {format_count(length)} tokens before fine-tuning"
            f"{_when_as_good(near, start, goal)}; after {num_tokens} tokens {'; '.join(ends)}."
        )
    return sentences


def _at_lengths(rows: Sequence[Record]) -> str:
    return " and ".join(
        f"{format_perplexity(row['perplexity'])} at {format_count(row['length_tokens'])} tokens"
        for row in sorted(rows, key=lambda row: row["length_tokens"])
    )


def _when_as_good(near: Sequence[Record], start: str, goal: float) -> str:
    reached = [record["num_train_tokens"] for record in near if record["perplexity"] <= goal]
    if reached[:1] == [0]:
        return ""
    when = f"after {format_count(reached[0])} tokens" if reached else "at none of its milestones"
    return f"; as good as {start} ({format_perplexity(goal)}) {when}"


@as_png
def milestone_figure(records: Sequence[Record], start: str) -> Figure:
    """Perplexity against tokens of fine-tuning, a line for each model and length, the start as a level line."""
    figure, axes = new_axes()
    chosen = [r for r in records if r["protocol"] == PROTOCOL and r["error"] is None]
    lines = []
    for (name, length), group in group_by(
        [r for r in chosen if r["name"] != start], lambda record: (record["name"], record["length_tokens"])
    ).items():
        xs = [record["num_train_tokens"] / 1000 for record in group]
        label = f"{name}, {format_count(length)} tokens"
        lines.append(Line(label, group[0]["position_method"], xs, [record["perplexity"] for record in group]))
    level = [r["perplexity"] for r in chosen if r["name"] == start]
    perplexity_axis(axes, [y for line in lines for y in line.ys] + level)
    axes.axhline(level[0], color=GREY, linestyle=":")
    axes.set_xlabel("thousand tokens of fine-tuning")
    draw_lines(axes, lines)
    name_above(axes, 0, f"dotted: {start}", GREY)
    name_lines(axes, lines)
    return figure
