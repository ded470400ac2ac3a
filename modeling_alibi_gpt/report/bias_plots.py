"""Figures of the bias that a model adds to its attention scores, as a matrix and by distance."""

import math

import numpy as np
from matplotlib.colors import LinearSegmentedColormap, PowerNorm
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from modeling_alibi_gpt.report.drawing import WIDTH_INCHES, as_drawing
from modeling_alibi_gpt.report.formats import format_count, format_ratio
from modeling_alibi_gpt.report.lines import GREY, METHOD_COLORS, PALE
from modeling_alibi_gpt.runtime.records import Record


# Keys get paler as their bias grows, but never as white as a masked future key.
BIAS_COLORS = LinearSegmentedColormap.from_list("bias", ["#a83606", "#dd6a35", "#f2b391", "#fbe9de"])


@as_drawing
def bias_figure(record: Record) -> Figure:
    """The ``(T, T)`` bias of each head as small multiples on one color scale; future keys stay blank."""
    bias = np.array(record["bias"], dtype=float)  # (H, T, T), NaN where null
    num_heads, num_positions, _ = bias.shape
    num_columns = 3 if num_heads in (5, 6, 9) else min(num_heads, 4)
    num_rows = math.ceil(num_heads / num_columns)
    figure = Figure(figsize=(WIDTH_INCHES, num_rows * (WIDTH_INCHES / num_columns + 0.35) + 0.8))
    panels = figure.subplots(num_rows, num_columns, squeeze=False, sharex=True, sharey=True)
    steepest = float(-np.nanmin(bias))
    norm = PowerNorm(0.5, vmin=0, vmax=steepest)
    for head, axes in enumerate(panels.flat):
        if head >= num_heads:
            axes.set_axis_off()
            continue
        image = axes.imshow(-bias[head], cmap=BIAS_COLORS, norm=norm)
        axes.set_title(f"head {head + 1}\nslope {format_ratio(record['slopes'][head], num_digits=3)}", fontsize=9)
        axes.grid(False)
        axes.set(xticks=[0, num_positions - 1], yticks=[0, num_positions - 1], xlabel="key", ylabel="query")
        axes.label_outer()
    ticks = [0, *(4.0**power for power in range(-9, 9) if 0.01 <= 4.0**power / steepest <= 0.5), steepest]
    bar = figure.colorbar(image, ax=panels, location="bottom", aspect=40, shrink=0.9, ticks=ticks)
    bar.set_label("bias added to the score (power scale)")
    bar.ax.xaxis.set_major_formatter(FuncFormatter(lambda penalty, _: f"{-penalty:.3g}" if penalty else "0"))
    return figure


@as_drawing
def bias_by_distance_figure(record: Record) -> Figure:
    """The bias of each head against distance, one line per layer, with the bias before training in gray.

    Each line is shifted to 0 at distance 0, because softmax ignores a constant.
    """
    distances = np.array(record["distances_tokens"])
    num_heads = len(record["bias_after"][0])
    num_columns = min(num_heads, 3)
    num_rows = math.ceil(num_heads / num_columns)
    figure = Figure(figsize=(WIDTH_INCHES, 1.6 * num_rows + 0.7))
    panels = figure.subplots(num_rows, num_columns, squeeze=False, sharex=True, sharey=True)
    color = METHOD_COLORS.get(record["position_method"], GREY)
    styles = (("bias_before", {"color": PALE, "linestyle": "--"}), ("bias_after", {"color": color}))
    for head, axes in enumerate(panels.flat):
        if head >= num_heads:
            axes.set_axis_off()
            continue
        for field, style in styles:
            for layer in record[field]:
                bias = np.array(layer[head])
                axes.plot(distances[1:], (bias - bias[0])[1:], linewidth=1.3, **style)
        axes.axvline(record["train_context_length"], color=GREY, linestyle=":", linewidth=1)
        axes.set_title(f"head {head + 1}", fontsize=9)
        axes.set_xscale("log", base=2)
        axes.xaxis.set(major_locator=LogLocator(base=16), minor_locator=NullLocator())
        axes.xaxis.set_major_formatter(FuncFormatter(lambda tick, _: format_count(int(tick))))
        axes.tick_params(labelbottom=head + num_columns >= num_heads)  # the row below may end before this column
    figure.supxlabel("distance in tokens (log scale)", fontsize=10)
    figure.supylabel("bias, 0 at the query", fontsize=10)
    return figure
