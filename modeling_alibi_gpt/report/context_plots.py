"""Figures about the use of distant text; each function returns a drawing."""

import pandas as pd
from matplotlib.figure import Figure

from modeling_alibi_gpt.report.context_tables import READINGS, last_occurrences, with_share
from modeling_alibi_gpt.report.drawing import (
    WIDTH_INCHES,
    as_drawing,
    draw_lines,
    log2_axis,
    mark_training_lengths,
    name_lines,
    new_axes,
)
from modeling_alibi_gpt.report.formats import format_count
from modeling_alibi_gpt.report.frames import Records, alibi_first, frame_of
from modeling_alibi_gpt.report.lines import Curve, Line, method_lines


@as_drawing
def recall_figure(records: Records) -> Figure:
    """Accuracy against length, averaged over depths, and against depth at the longest length.

    Bands range from the lowest to the highest seed. Records without depths have only the first panel. At least one
    record must have no error.
    """
    frame = with_share(alibi_first(frame_of(records)))
    frame = frame[frame["error"].isna()]
    has_depths = bool(frame["depth"].notna().any())
    num_panels = 2 if has_depths else 1
    figure = Figure(figsize=(WIDTH_INCHES, 0.4 + 3.3 * num_panels))
    panels = figure.subplots(num_panels, squeeze=False)[:, 0]
    log2_axis(panels[0], frame["length_tokens"].tolist(), format_count)
    panels[0].set_xlabel("length of the sequence in tokens (log scale)")
    drawn = [(panels[0], _share_lines(frame, "length_tokens"))]
    mark_training_lengths(panels[0], frame["train_context_length"].dropna().tolist())
    if has_depths:
        longest = frame["length_tokens"].max()
        panels[1].set_xlabel(f"depth at {format_count(longest)} tokens: 0 is the start of the sequence")
        drawn.append((panels[1], _share_lines(frame[frame["length_tokens"] == longest], "depth")))
    for axes, lines in drawn:
        axes.set(ylabel=f"share of right {'answers' if has_depths else 'tokens'}", ylim=(-0.03, 1.03))
        draw_lines(axes, lines)
    for axes, lines in drawn:
        name_lines(axes, lines)
    return figure


@as_drawing
def context_figure(records: Records) -> Figure:
    """Nats above the whole context against the number of kept tokens, one panel per way of removing the rest.

    Bands range from the lowest to the highest model of a name.
    """
    frame = alibi_first(frame_of(records))
    frame = frame[frame["error"].isna() & frame["kept_tokens"].notna()]
    readings = [reading for reading in READINGS if (frame["reading"] == reading).any()]
    figure = Figure(figsize=(WIDTH_INCHES, 0.4 + 3.3 * len(readings)))
    panels = figure.subplots(len(readings), sharex=True, squeeze=False)[:, 0]
    words = {"replaced": "the rest is the text of another document", "cut": "the rest is cut off"}
    drawn = []
    for axes, reading in zip(panels, readings, strict=True):
        group = frame[frame["reading"] == reading].sort_values("kept_tokens", kind="stable")
        lines = _mean_lines(alibi_first(group), "kept_tokens", "difference_nats")
        log2_axis(axes, frame["kept_tokens"].tolist(), format_count)
        axes.set_title(words[reading], loc="left", fontsize=10, fontweight="bold", pad=18)
        axes.set_ylabel("nats per token above the whole")
        axes.axhline(0, color="black", linewidth=0.8, linestyle=":")
        mark_training_lengths(axes, group["train_context_length"].dropna().tolist())
        draw_lines(axes, lines)
        drawn.append((axes, lines))
    for axes, lines in drawn:
        name_lines(axes, lines)
    panels[-1].set_xlabel("tokens that are kept (log scale)")
    return figure


@as_drawing
def last_occurrence_figure(records: Records) -> Figure:
    """The value of context beyond the training length, by the distance to a token's last occurrence.

    Shows nats per token with the context cut to the training length minus those with the whole context, one line per
    model. A point covers the distances up to the next point. There must be at least one line.
    """
    frame = alibi_first(frame_of(records))
    figure, axes = new_axes()
    lines = method_lines(cut_above_whole(frame))
    log2_axis(axes, [x for line in lines for x in line.xs], format_count)
    axes.set(xlabel="tokens since the last occurrence, at least (log scale)", ylabel="nats per token, cut above whole")
    axes.axhline(0, color="black", linewidth=0.8, linestyle=":")
    mark_training_lengths(axes, frame["train_context_length"].dropna().tolist())
    draw_lines(axes, lines)
    name_lines(axes, lines)
    return figure


def cut_above_whole(frame: pd.DataFrame) -> list[Curve]:
    """The curves of ``last_occurrence_figure``, for the models that were read in both ways and have tokens to show."""
    methods = dict(zip(frame["name"], frame["position_method"], strict=True))
    curves: list[Curve] = []
    for name, readings in last_occurrences(frame):
        if len(readings) == 2:
            whole, cut = readings.values()
            losses = zip(cut["edges_tokens"], cut["nats_per_token"], whole["nats_per_token"], strict=False)
            points = [(edge, one - other) for edge, one, other in losses if None not in (one, other)]
            if points:
                xs, ys = zip(*points, strict=True)
                curves.append((name, methods[name], xs, ys))
    return curves


def _share_lines(frame: pd.DataFrame, x: str) -> list[Line]:
    """One line per name, averaged over everything else, with the range of its seeds."""
    by_seed = frame.groupby(["name", "position_method", x, "seed"], sort=False)["share"].mean().reset_index()
    return _mean_lines(by_seed, x, "share")


def _mean_lines(frame: pd.DataFrame, x: str, y: str) -> list[Line]:
    """One line per name: the mean of ``y`` at each ``x``, with its range."""
    curves, ends = [], []
    for (name, method), group in frame.groupby(["name", "position_method"], sort=False):
        spread = group.groupby(x)[y].agg(["mean", "min", "max"])
        curves.append((str(name), str(method), spread.index.tolist(), spread["mean"].tolist()))
        ends.append(list(zip(spread["min"], spread["max"], strict=True)))
    return method_lines(curves, ends)
