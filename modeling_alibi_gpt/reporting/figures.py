"""The figures of a report, one function each, drawn from records; each returns the bytes of a PNG."""

import math
import textwrap
from collections.abc import Sequence
from statistics import fmean
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, PowerNorm
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from modeling_alibi_gpt.reporting.drawing import (
    ALIBI_COLOUR,
    GREY,
    METHOD_COLOURS,
    PALE,
    SECOND_COLOUR,
    WIDTH_INCHES,
    Line,
    as_png,
    draw_lines,
    inward,
    log2_axis,
    mark_training_lengths,
    name_above,
    name_lines,
    new_axes,
    perplexity_axis,
    write_below,
)
from modeling_alibi_gpt.reporting.records import Record
from modeling_alibi_gpt.reporting.statistics import BetaChoice, choose_trial
from modeling_alibi_gpt.reporting.tables import (
    BETA,
    alibi_first,
    describe_protocol,
    format_count,
    format_perplexity,
    format_ratio,
    group_by,
)


# Ink is what a head still sees: full strength on the diagonal, paler with distance, never as white as a future key.
BIAS_COLOURS = LinearSegmentedColormap.from_list("bias", ["#a83606", "#dd6a35", "#f2b391", "#fbe9de"])

# Fewer tokens say more of themselves than of their position.
MIN_POINT_TOKENS = 100


@as_png
def bias_figure(record: Record) -> Figure:
    """The ``(T, T)`` bias of each head as small multiples on one colour scale; future keys stay blank."""
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
        image = axes.imshow(-bias[head], cmap=BIAS_COLOURS, norm=norm)
        axes.set_title(f"head {head + 1}\nslope {format_ratio(record['slopes'][head], num_digits=3)}", fontsize=9)
        axes.grid(False)
        axes.set(xticks=[0, num_positions - 1], yticks=[0, num_positions - 1], xlabel="key", ylabel="query")
        axes.label_outer()
    ticks = [0, *(4.0**power for power in range(-9, 9) if 0.01 <= 4.0**power / steepest <= 0.5), steepest]
    bar = figure.colorbar(image, ax=panels, location="bottom", aspect=40, shrink=0.9, ticks=ticks)
    bar.set_label("bias added to the score (power scale)")
    bar.ax.xaxis.set_major_formatter(FuncFormatter(lambda penalty, _: f"{-penalty:.3g}" if penalty else "0"))
    return figure


@as_png
def bias_by_distance_figure(record: Record) -> Figure:
    """The bias of each head against distance, a line for each layer, over what it was before training in grey.

    Each line is shifted to 0 at the query itself, for the softmax does not see a constant.
    """
    distances = np.array(record["distances_tokens"])
    num_heads = len(record["bias_after"][0])
    num_columns = min(num_heads, 3)
    num_rows = math.ceil(num_heads / num_columns)
    figure = Figure(figsize=(WIDTH_INCHES, 1.6 * num_rows + 0.7))
    panels = figure.subplots(num_rows, num_columns, squeeze=False, sharex=True, sharey=True)
    colour = METHOD_COLOURS.get(record["position_method"], GREY)
    styles = (("bias_before", {"color": PALE, "linestyle": "--"}), ("bias_after", {"color": colour}))
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


@as_png
def beta_figure(trials: Sequence[Record], trained: Sequence[Record]) -> Figure:
    """Perplexity against beta: seeds as faint points, their mean as a line, the taken beta named.

    White points are betas that are not told apart from the lowest. Trials that were pruned or failed are crosses at
    the bottom. At least one trial is complete.

    Args:
        trials: Of one study.
        trained: Runs of the same study in which beta was learned; they are drawn beside.
    """
    figure, axes = new_axes()
    complete = sorted((trial for trial in trials if trial["state"] == "COMPLETE"), key=lambda trial: trial["beta"])
    points = [(trial["beta"], math.exp(nats)) for trial in complete for nats in trial["nats_per_token_by_seed"]]
    axes.plot(*zip(*points, strict=True), "o", color=ALIBI_COLOUR, alpha=0.3, markersize=5, markeredgewidth=0)
    means = [(trial["beta"], trial["perplexity"]) for trial in complete]
    axes.plot(*zip(*means, strict=True), color=ALIBI_COLOUR, linewidth=2.4)
    stopped = [trial["beta"] for trial in trials if trial["state"] != "COMPLETE"]
    axes.plot(stopped, [0.02] * len(stopped), "x", color=GREY, transform=axes.get_xaxis_transform())

    trained = [record for record in trained if record["alibi_trainable"] == "beta"]
    trained_betas = [beta for record in trained for beta in record["beta_by_layer"]]
    log2_axis(axes, [trial["beta"] for trial in trials] + trained_betas, format_ratio)
    perplexity_axis(axes, [perplexity for _, perplexity in points] + [record["perplexity"] for record in trained])
    axes.set_xlabel(f"{BETA} (log scale)")
    if trained:
        _mark_trained_beta(axes, trained, trained_betas)
    chosen = choose_trial(complete)
    assert chosen is not None
    _name_taken(axes, complete, *chosen)
    return figure


@as_png
def extrapolation_figure(records: Sequence[Record]) -> Figure:
    """Perplexity against length, one panel per protocol on a shared scale; what failed is noted underneath.

    At least one record has no error.
    """
    measured = [record for record in records if record["error"] is None]
    protocols = group_by(alibi_first(measured), lambda record: record["protocol"])
    figure = Figure(figsize=(WIDTH_INCHES, 0.4 + 3.3 * len(protocols)))
    panels = figure.subplots(len(protocols), sharex=True, sharey=True, squeeze=False)[:, 0]
    lines_by_panel = []
    for axes, group in zip(panels, protocols.values(), strict=True):
        log2_axis(axes, [record["length_tokens"] for record in records], format_count)
        perplexity_axis(axes, [record["perplexity"] for record in measured])
        axes.set_title(describe_protocol(group), loc="left", fontsize=10, fontweight="bold", pad=18)
        mark_training_lengths(axes, [record["train_context_length"] for record in group])
        models = group_by(group, lambda record: record["name"])
        lines_by_panel.append([_line(model, "length_tokens", "perplexity") for model in models.values()])
        draw_lines(axes, lines_by_panel[-1])
    for axes, lines in zip(panels, lines_by_panel, strict=True):
        name_lines(axes, lines)
    panels[-1].set_xlabel("length of the sequence in tokens (log scale)")
    write_below(figure, _not_drawn(records))
    return figure


@as_png
def position_figure(records: Sequence[Record]) -> Figure:
    """Nats per token against position, one line per record; a point stands for the positions since the one before.

    Points of fewer than ``MIN_POINT_TOKENS`` tokens are left out, unless a record has no others.
    """
    figure, axes = new_axes()
    lines = []
    for record in alibi_first(records):
        bins = record["nats_by_position"]
        points = list(zip(bins["edges_tokens"][1:], bins["nats_per_token"], bins["num_tokens"], strict=True))
        least = min(MIN_POINT_TOKENS, max(bins["num_tokens"]))
        drawn = ((edge, nats) for edge, nats, num_tokens in points if nats is not None and num_tokens >= least)
        xs, ys = zip(*drawn, strict=True)
        lines.append(Line(record["name"], record["position_method"], xs, ys))
    log2_axis(axes, [x for line in lines for x in line.xs], format_count)
    axes.set(xlabel="position in the sequence in tokens (log scale)", ylabel="nats per token")
    mark_training_lengths(axes, [record["train_context_length"] for record in records])
    draw_lines(axes, lines)
    name_lines(axes, lines)
    return figure


@as_png
def training_figure(records: Sequence[Record]) -> Figure:
    """Training loss in nats per token against the step, one line per run."""
    figure, axes = new_axes()
    lines = []
    for record in alibi_first(records):
        steps = [entry["step"] for entry in record["loss_history"]]
        nats = [entry["nats_per_token"] for entry in record["loss_history"]]
        lines.append(Line(record["name"], record["position_method"], steps, nats))
    axes.set(xlabel="training step", ylabel="training loss, nats per token")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda step, _: f"{step:,g}"))
    draw_lines(axes, lines, markers=False)
    name_lines(axes, lines)
    return figure


def _line(records: Sequence[Record], x: str, y: str) -> Line:
    xs, ys = [record[x] for record in records], [record[y] for record in records]
    return Line(records[0]["name"], records[0]["position_method"], xs, ys)


def _mark_trained_beta(axes: Axes, trained: Sequence[Record], betas: Sequence[float]) -> None:
    """A band from the lowest to the highest beta of any layer, a line at the mean, a diamond for each run."""
    axes.axvspan(min(betas), max(betas), color=SECOND_COLOUR, alpha=0.1, linewidth=0)
    axes.axvline(fmean(betas), color=SECOND_COLOUR, linestyle="--", linewidth=1)
    for record in trained:
        axes.plot(fmean(record["beta_by_layer"]), record["perplexity"], "D", color=SECOND_COLOUR, markersize=6)
    layers = f"layers {min(betas):.3g} to {max(betas):.3g}"
    name_above(axes, fmean(betas), f"trained {BETA} {fmean(betas):.3g} ({layers})", SECOND_COLOUR)


def _name_taken(axes: Axes, trials: Sequence[Record], taken: Record, choice: BetaChoice) -> None:
    """A white point at each beta that is not told apart from the lowest, the largest at the one that is taken."""
    beta, perplexity = taken["beta"], taken["perplexity"]
    points: dict[str, Any] = {"linestyle": "none", "marker": "o", "mfc": "white", "mec": ALIBI_COLOUR}
    level = [trial for trial in trials if trial["beta"] in choice.level]
    xs, ys = [trial["beta"] for trial in level], [trial["perplexity"] for trial in level]
    axes.plot(xs, ys, markersize=6, mew=1.6, **points)
    axes.plot([beta], [perplexity], markersize=10, mew=2.4, **points)
    axes.margins(y=0.15)
    named = f"{BETA} = {format_ratio(beta)}, perplexity {format_perplexity(perplexity)}"
    text = f"best: {named}" if len(choice.level) == 1 else f"{named}; white: not told apart"
    style: dict[str, Any] = {"color": ALIBI_COLOUR, "fontweight": "bold", "ha": inward(axes, beta), "va": "top"}
    veil = {"facecolor": "white", "edgecolor": "none", "alpha": 0.85, "pad": 1}
    axes.annotate(text, (beta, min(ys)), xytext=(0, -10), textcoords="offset points", bbox=veil, **style)


def _not_drawn(records: Sequence[Record]) -> str:
    """One line per model that failed somewhere, with its first reason: the table beside has them all."""
    failed = [record for record in records if record["error"] is not None]
    lines = []
    for name, group in group_by(failed, lambda record: record["name"]).items():
        lengths = ", ".join(format_count(length) for length in sorted({record["length_tokens"] for record in group}))
        lines.append(f"Not drawn: {name} at {lengths}: {textwrap.shorten(group[0]['error'], 160)}")
    return "\n".join(lines)
