"""The figure of attention speed, drawn from records."""

import pandas as pd
from matplotlib.figure import Figure

from modeling_alibi_gpt.report.drawing import as_drawing, draw_lines, log2_axis, name_lines, new_axes
from modeling_alibi_gpt.report.formats import format_count
from modeling_alibi_gpt.report.frames import Records, frame_of, pick
from modeling_alibi_gpt.report.lines import ALIBI_COLOR, SECOND_COLOR, Line
from modeling_alibi_gpt.report.speed_tables import WAY_NAMES


DRAWN_VARIANTS = {"banded": ALIBI_COLOR, "strips": SECOND_COLOR, "dense": "#808080"}
DRAWN_HEAD_DIM = 64


def drawn_speeds(frame: pd.DataFrame) -> pd.DataFrame:
    """The ``attention_speed`` records that the figure draws."""
    drawn = pick(frame, mode="forward", dtype="float32", head_dim=DRAWN_HEAD_DIM)
    return drawn[drawn["name"].isin(DRAWN_VARIANTS)]


@as_drawing
def attention_speed_figure(records: Records) -> Figure:
    """Time of float32 prefill relative to plain causal attention, against length; one line per back end."""
    frame = drawn_speeds(frame_of(records))
    figure, axes = new_axes()
    lines = []
    for name, color in DRAWN_VARIANTS.items():
        points = pick(frame, name=name).drop_duplicates("length_tokens", keep="last").sort_values("length_tokens")
        if len(points):
            xs, ys = points["length_tokens"].tolist(), points["times_reference"].tolist()
            lines.append(
                Line(WAY_NAMES[name], color, xs, ys, is_main=color == ALIBI_COLOR, zorder=2 + (color == ALIBI_COLOR))
            )
    log2_axis(axes, [x for line in lines for x in line.xs], format_count)
    axes.axhline(1.0, color="black", linewidth=0.8, linestyle=":")
    axes.set(xlabel="tokens (log scale)", ylabel="time / plain causal attention")
    draw_lines(axes, lines)
    axes.set_ylim(0, 1.08 * max(y for line in lines for y in line.ys))
    name_lines(axes, lines)
    return figure
