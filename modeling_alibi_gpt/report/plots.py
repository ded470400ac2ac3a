"""The figures of a report, drawn from records by one function each."""

import math
import textwrap
from collections.abc import Sequence
from statistics import fmean
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from modeling_alibi_gpt.report.comparison import AFTER_TRAINING, Comparison, Curve
from modeling_alibi_gpt.report.drawing import (
    as_drawing,
    draw_band,
    draw_lines,
    inward,
    log2_axis,
    mark_training_lengths,
    name_above,
    name_lines,
    new_axes,
    new_panels,
    perplexity_axis,
    write_below,
)
from modeling_alibi_gpt.report.formats import BETA, describe_protocol, format_count, format_perplexity, format_ratio
from modeling_alibi_gpt.report.frames import MILESTONE_PROTOCOL, Records, alibi_first, frame_of, pick, rows_of
from modeling_alibi_gpt.report.lines import ALIBI_COLOR, GREY, SECOND_COLOR, Line, in_panels, method_lines
from modeling_alibi_gpt.report.statistics import BetaChoice, choose_trial
from modeling_alibi_gpt.runtime.records import Record


KIND_COLORS = {"geometric": ALIBI_COLOR, "uniform": SECOND_COLOR, AFTER_TRAINING: GREY}
# Rings remain visible around a point at the same place.
RINGS: Any = {"linestyle": "none", "marker": "o", "markersize": 8, "fillstyle": "none"}
# With fewer tokens, the mean depends more on the tokens than on their position.
MIN_POINT_TOKENS = 100


@as_drawing
def beta_figure(records: Records, trained: Sequence[Record]) -> Figure:
    """Perplexity against beta: seeds as faint points, their mean as a line, the chosen beta labeled.

    Hollow points are betas that are not distinguishable from the lowest. Trials that were pruned or failed are crosses
    at the bottom. At least one trial must be complete.

    Args:
        records: Trials of one study.
        trained: Runs of the same study in which beta was learned; drawn in the same figure.
    """
    figure, axes = new_axes()
    trials = rows_of(frame_of(records))
    complete = sorted((trial for trial in trials if trial["state"] == "COMPLETE"), key=lambda trial: trial["beta"])
    points = [(trial["beta"], math.exp(nats)) for trial in complete for nats in trial["nats_per_token_by_seed"]]
    axes.plot(*zip(*points, strict=True), "o", color=ALIBI_COLOR, alpha=0.3, markersize=5, markeredgewidth=0)
    means = [(trial["beta"], trial["perplexity"]) for trial in complete]
    axes.plot(*zip(*means, strict=True), color=ALIBI_COLOR, linewidth=2.4, label="perplexity")
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


@as_drawing
def extrapolation_figure(records: Records) -> Figure:
    """Perplexity against length, one panel per protocol and group of up to six models; failures are noted below.

    The band around a mean is the range of its seeds, if there are several. Protocols share a scale. At least one
    record must have no error.
    """
    frame = frame_of(records)
    measured = alibi_first(frame[frame["error"].isna()])
    protocols = list(measured.groupby("protocol", sort=False))
    curves = [_lines(group, ["name"], "length_tokens") for _, group in protocols]
    groups = in_panels(list({line.name: line for lines in curves for line in lines}.values()))
    figure, panels = new_panels(len(groups) * len(protocols))
    drawn = []
    for number, axes in enumerate(panels):
        place, (protocol, group) = number // len(protocols), protocols[number % len(protocols)]
        names = [line.name for line in groups[place]]
        if first := number % len(protocols):
            axes.sharey(panels[number - first])
        log2_axis(axes, frame["length_tokens"].tolist(), format_count)
        perplexity_axis(axes, measured.loc[measured["name"].isin(names), "perplexity"].tolist())
        title = describe_protocol(str(protocol), group["stride_tokens"].tolist())
        axes.set_title(title, loc="left", fontsize=10, fontweight="bold", pad=18)
        mark_training_lengths(axes, group["train_context_length"].dropna().tolist())
        drawn.append([line for line in curves[number % len(protocols)] if line.name in names])
        draw_lines(axes, drawn[-1])
    for axes, lines in zip(panels, drawn, strict=True):
        name_lines(axes, lines)
    panels[-1].set_xlabel("length of the sequence in tokens (log scale)")
    write_below(figure, _not_drawn(frame))
    return figure


@as_drawing
def difference_figure(grid: Comparison) -> Figure:
    """Nats above the reference as trained, against length, with the main protocol and up to six variants per panel.

    The band around a mean is its 95 % interval, or the range of its seeds if there are too few for an interval. At
    least one variant other than the reference must have a value.
    """
    curves, spreads = [], []
    for variant in alibi_first(grid.as_trained)["variant"].unique():
        found = [(length, grid.difference(variant, grid.main_protocol, length)) for length in grid.lengths]
        known = [(length, difference) for length, difference in found if difference is not None]
        if known:
            means = [difference.mean for _, difference in known]
            curves.append((variant, grid.method(variant), [length for length, _ in known], means))
            spreads.append([difference.ends for _, difference in known])
    # The reference has a style, too, so that the others have those of the other figures.
    lines = [line for line in method_lines(curves, spreads) if line.name != grid.reference]
    labels = ("length of the sequence in tokens (log scale)", f"nats per token above {grid.reference}")
    return _over_lengths(lines, labels, grid.frame["train_context_length"], level=0)


@as_drawing
def position_figure(records: Records) -> Figure:
    """Nats per token against position, one line per record. A point covers the positions since the previous point.

    Points of fewer than ``MIN_POINT_TOKENS`` tokens are left out, unless a record has no others.
    """
    frame = alibi_first(frame_of(records))
    curves = []
    for row in rows_of(frame):
        bins = row["nats_by_position"]
        points = zip(bins["edges_tokens"][1:], bins["nats_per_token"], bins["num_tokens"], strict=True)
        least = min(MIN_POINT_TOKENS, max(bins["num_tokens"]))
        drawn = ((edge, nats) for edge, nats, num_tokens in points if nats is not None and num_tokens >= least)
        xs, ys = zip(*drawn, strict=True)
        curves.append((row["name"], row["position_method"], xs, ys))
    labels = ("position in the sequence in tokens (log scale)", "nats per token")
    return _over_lengths(method_lines(curves), labels, frame["train_context_length"])


@as_drawing
def training_figure(records: Records) -> Figure:
    """Training loss in nats per token against the step, one line per run."""
    curves = []
    for row in rows_of(alibi_first(frame_of(records))):
        history = pd.DataFrame(row["loss_history"])
        curves.append((row["name"], row["position_method"], history["step"], history["nats_per_token"]))
    groups = in_panels(method_lines([(name, method, xs.tolist(), ys.tolist()) for name, method, xs, ys in curves]))
    figure, panels = new_panels(len(groups))
    for axes, lines in zip(panels, groups, strict=True):
        axes.set_ylabel("training loss, nats per token")
        axes.xaxis.set_major_formatter(FuncFormatter(lambda step, _: f"{step:,g}"))
        draw_lines(axes, lines, markers=False)
        name_lines(axes, lines)
    panels[-1].set_xlabel("training step")
    return figure


@as_drawing
def milestone_figure(records: Records, start: str | None) -> Figure:
    """Perplexity against training tokens, one line per model and length; the start model is a horizontal line."""
    chosen = pick(frame_of(records), protocol=MILESTONE_PROTOCOL)
    chosen = chosen[chosen["error"].isna()].assign(thousands=chosen["num_train_tokens"] / 1000)
    tuned, level = chosen[chosen["name"] != start], pick(chosen, name=start)["perplexity"].tolist()
    figure, axes = new_axes()
    lines = _lines(tuned, ["name", "length_tokens"], "thousands")
    perplexity_axis(axes, [y for line in lines for y in line.ys] + level)
    axes.set_xlabel("thousand tokens of training" if start is None else "thousand tokens of fine-tuning")
    if start is not None:
        axes.axhline(level[0], color=GREY, linestyle=":")
    draw_lines(axes, lines)  # last, because the legend names the last lines
    if start is not None:
        name_above(axes, 0, f"dotted: {start}", GREY)
    name_lines(axes, lines)
    return figure


@as_drawing
def beta_comparison_figure(curves: dict[tuple[str, int], Curve]) -> Figure:
    """Perplexity against beta for each kind of slopes: points at the shortest length, rings at the longest.

    The band around a mean is the range of its seeds.
    """
    figure, axes = new_axes(4.4)
    log2_axis(axes, [beta for curve in curves.values() for beta in curve], format_ratio)
    perplexity_axis(axes, [row["perplexity"] for curve in curves.values() for row in curve.values()])
    axes.set_xlabel(f"{BETA} (log scale)")
    lengths = sorted({length for _, length in curves})
    lines = []
    for (kind, length), curve in curves.items():
        if length not in (lengths[0], lengths[-1]):
            continue
        name = f"{kind}, read at {format_count(length)} tokens"
        ends = [_of_seeds(row["nats_per_token_by_seed"]) for row in curve.values()]
        line = Line(name, KIND_COLORS[kind], list(curve), [row["perplexity"] for row in curve.values()], ends=ends)
        draw_band(axes, line)
        style = {"marker": "o", "markersize": 3.5} if length == lengths[0] else RINGS
        axes.plot(line.xs, line.ys, color=line.color, label=name, **style)
        lines.append(line)
    name_lines(axes, lines)
    return figure


def _over_lengths(
    lines: Sequence[Line], labels: tuple[str, str], trained_tokens: pd.Series, level: float | None = None
) -> Figure:
    """Lines over tokens in as many panels as needed, with a dotted horizontal line at ``level`` if given."""
    groups = in_panels(lines)
    figure, panels = new_panels(len(groups))
    for axes, group in zip(panels, groups, strict=True):
        log2_axis(axes, [x for line in lines for x in line.xs], format_count)
        if level is not None:
            axes.axhline(level, color="black", linewidth=0.8, linestyle=":")
        axes.set_ylabel(labels[1])
        mark_training_lengths(axes, trained_tokens.dropna().tolist())
        draw_lines(axes, group)
        name_lines(axes, group)
    panels[-1].set_xlabel(labels[0])
    return figure


def _lines(frame: pd.DataFrame, keys: list[str], x: str) -> list[Line]:
    """Perplexity against ``x``, one line per name or per name and length, with the range of its seeds."""
    curves, spreads = [], []
    for (name, *lengths), group in frame.groupby(keys, sort=False):
        spreads.append([_of_seeds(nats) for nats in group.get("nats_per_token_by_seed", [])])
        label = ", ".join([name, *(f"{format_count(length)} tokens" for length in lengths)])
        curves.append((label, group["position_method"].iloc[0], group[x].tolist(), group["perplexity"].tolist()))
    return method_lines(curves, spreads)


def _of_seeds(nats: Sequence[float]) -> tuple[float, float]:
    """The lowest and the highest perplexity."""
    return math.exp(min(nats)), math.exp(max(nats))


def _mark_trained_beta(axes: Axes, trained: Sequence[Record], betas: Sequence[float]) -> None:
    """A band from the lowest to the highest beta of any layer, a line at the mean and a diamond per run."""
    axes.axvspan(min(betas), max(betas), color=SECOND_COLOR, alpha=0.1, linewidth=0)
    axes.axvline(fmean(betas), color=SECOND_COLOR, linestyle="--", linewidth=1)
    for record in trained:
        axes.plot(fmean(record["beta_by_layer"]), record["perplexity"], "D", color=SECOND_COLOR, markersize=6)
    layers = f"layers {min(betas):.3g} to {max(betas):.3g}"
    name_above(axes, fmean(betas), f"trained {BETA} {fmean(betas):.3g} ({layers})", SECOND_COLOR)


def _name_taken(axes: Axes, trials: Sequence[Record], taken: Record, choice: BetaChoice) -> None:
    """A hollow point at each beta that is not distinguishable from the lowest, and a larger one at the chosen beta."""
    beta, perplexity = taken["beta"], taken["perplexity"]
    points: dict[str, Any] = {"linestyle": "none", "marker": "o", "mfc": "white", "mec": ALIBI_COLOR}
    level = [trial for trial in trials if trial["beta"] in choice.level]
    xs, ys = [trial["beta"] for trial in level], [trial["perplexity"] for trial in level]
    axes.plot(xs, ys, markersize=6, mew=1.6, **points)
    axes.plot([beta], [perplexity], markersize=10, mew=2.4, **points)
    axes.margins(y=0.15)
    named = f"{BETA} = {format_ratio(beta)}, perplexity {format_perplexity(perplexity)}"
    text = f"best: {named}" if len(choice.level) == 1 else f"{named}; hollow: not told apart"
    style: dict[str, Any] = {"color": ALIBI_COLOR, "fontweight": "bold", "ha": inward(axes, beta), "va": "top"}
    veil = {"facecolor": "white", "edgecolor": "none", "alpha": 0.85, "pad": 1}
    axes.annotate(text, (beta, min(ys)), xytext=(0, -10), textcoords="offset points", bbox=veil, **style)


def _not_drawn(frame: pd.DataFrame) -> str:
    """One line per model that failed somewhere, with the first reason; the table lists all of them."""
    lines = []
    for name, group in frame[frame["error"].notna()].groupby("name", sort=False):
        lengths = ", ".join(map(format_count, sorted(group["length_tokens"].unique())))
        lines.append(f"Not drawn: {name} at {lengths}: {textwrap.shorten(group['error'].iloc[0], 160)}")
    return "\n".join(lines)
