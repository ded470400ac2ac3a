"""The figures of a report, one function each, drawn from records; each returns the bytes of a PNG."""

import math
import textwrap
from collections.abc import Sequence
from statistics import fmean
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from modeling_alibi_gpt.report.comparison import AFTER_TRAINING, Curve
from modeling_alibi_gpt.report.drawing import (
    ALIBI_COLOUR,
    GREY,
    SECOND_COLOUR,
    WIDTH_INCHES,
    Line,
    as_png,
    draw_lines,
    inward,
    log2_axis,
    mark_training_lengths,
    method_lines,
    name_above,
    name_lines,
    new_axes,
    perplexity_axis,
    write_below,
)
from modeling_alibi_gpt.report.formats import BETA, describe_protocol, format_count, format_perplexity, format_ratio
from modeling_alibi_gpt.report.frames import MILESTONE_PROTOCOL, Records, alibi_first, frame_of, pick, rows_of
from modeling_alibi_gpt.report.speed_tables import WAY_NAMES
from modeling_alibi_gpt.report.statistics import BetaChoice, choose_trial
from modeling_alibi_gpt.runtime.records import Record


KIND_COLOURS = {"geometric": ALIBI_COLOUR, "uniform": SECOND_COLOUR, AFTER_TRAINING: GREY}
# Around a point that lies in the same place they can still be seen.
RINGS: Any = {"linestyle": "none", "marker": "o", "markersize": 8, "fillstyle": "none"}
DRAWN_VARIANTS = {"banded": ALIBI_COLOUR, "strips": SECOND_COLOUR, "dense": "#808080"}
DRAWN_HEAD_DIM = 64
# Fewer tokens say more of themselves than of their position.
MIN_POINT_TOKENS = 100


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
def extrapolation_figure(records: Records) -> Figure:
    """Perplexity against length, one panel per protocol on a shared scale; what failed is noted underneath.

    At least one record has no error.
    """
    frame = frame_of(records)
    measured = alibi_first(frame[frame["error"].isna()])
    protocols = list(measured.groupby("protocol", sort=False))
    figure = Figure(figsize=(WIDTH_INCHES, 0.4 + 3.3 * len(protocols)))
    panels = figure.subplots(len(protocols), sharex=True, sharey=True, squeeze=False)[:, 0]
    lines_by_panel = []
    for axes, (protocol, group) in zip(panels, protocols, strict=True):
        log2_axis(axes, frame["length_tokens"].tolist(), format_count)
        perplexity_axis(axes, measured["perplexity"].tolist())
        title = describe_protocol(str(protocol), group["stride_tokens"].tolist())
        axes.set_title(title, loc="left", fontsize=10, fontweight="bold", pad=18)
        mark_training_lengths(axes, group["train_context_length"].dropna().tolist())
        lines_by_panel.append(_lines(group, ["name"], "length_tokens"))
        draw_lines(axes, lines_by_panel[-1])
    for axes, lines in zip(panels, lines_by_panel, strict=True):
        name_lines(axes, lines)
    panels[-1].set_xlabel("length of the sequence in tokens (log scale)")
    write_below(figure, _not_drawn(frame))
    return figure


@as_png
def position_figure(records: Records) -> Figure:
    """Nats per token against position, one line per record; a point stands for the positions since the one before.

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
    figure, axes = new_axes()
    lines = method_lines(curves)
    log2_axis(axes, [x for line in lines for x in line.xs], format_count)
    axes.set(xlabel="position in the sequence in tokens (log scale)", ylabel="nats per token")
    mark_training_lengths(axes, frame["train_context_length"].dropna().tolist())
    draw_lines(axes, lines)
    name_lines(axes, lines)
    return figure


@as_png
def training_figure(records: Records) -> Figure:
    """Training loss in nats per token against the step, one line per run."""
    figure, axes = new_axes()
    curves = []
    for row in rows_of(alibi_first(frame_of(records))):
        history = pd.DataFrame(row["loss_history"])
        curves.append((row["name"], row["position_method"], history["step"], history["nats_per_token"]))
    lines = method_lines([(name, method, xs.tolist(), ys.tolist()) for name, method, xs, ys in curves])
    axes.set(xlabel="training step", ylabel="training loss, nats per token")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda step, _: f"{step:,g}"))
    draw_lines(axes, lines, markers=False)
    name_lines(axes, lines)
    return figure


@as_png
def milestone_figure(records: Records, start: str) -> Figure:
    """Perplexity against tokens of fine-tuning, a line for each model and length, the start as a level line."""
    chosen = pick(frame_of(records), protocol=MILESTONE_PROTOCOL)
    chosen = chosen[chosen["error"].isna()].assign(thousands=chosen["num_train_tokens"] / 1000)
    tuned, level = chosen[chosen["name"] != start], pick(chosen, name=start)["perplexity"].tolist()
    figure, axes = new_axes()
    lines = _lines(tuned, ["name", "length_tokens"], "thousands")
    perplexity_axis(axes, [y for line in lines for y in line.ys] + level)
    axes.axhline(level[0], color=GREY, linestyle=":")
    axes.set_xlabel("thousand tokens of fine-tuning")
    draw_lines(axes, lines)
    name_above(axes, 0, f"dotted: {start}", GREY)
    name_lines(axes, lines)
    return figure


@as_png
def beta_comparison_figure(curves: dict[tuple[str, int], Curve]) -> Figure:
    """Perplexity against beta for each kind of slopes: a line at the shortest length, rings at the longest."""
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
        line = Line(name, KIND_COLOURS[kind], list(curve), [row["perplexity"] for row in curve.values()])
        style = {"marker": "o", "markersize": 3.5} if length == lengths[0] else RINGS
        axes.plot(line.xs, line.ys, color=line.color, **style)
        lines.append(line)
    name_lines(axes, lines)
    return figure


def drawn_speeds(frame: pd.DataFrame) -> pd.DataFrame:
    """Those ``attention_speed`` records that the figure draws."""
    drawn = pick(frame, mode="forward", dtype="float32", head_dim=DRAWN_HEAD_DIM)
    return drawn[drawn["name"].isin(DRAWN_VARIANTS)]


@as_png
def attention_speed_figure(records: Records) -> Figure:
    """Time of float32 prefill against length, in times plain causal attention: one line for each way drawn."""
    frame = drawn_speeds(frame_of(records))
    figure, axes = new_axes()
    lines = []
    for name, color in DRAWN_VARIANTS.items():
        points = pick(frame, name=name).drop_duplicates("length_tokens", keep="last").sort_values("length_tokens")
        if len(points):
            xs, ys = points["length_tokens"].tolist(), points["times_reference"].tolist()
            lines.append(
                Line(WAY_NAMES[name], color, xs, ys, is_main=color == ALIBI_COLOUR, zorder=2 + (color == ALIBI_COLOUR))
            )
    log2_axis(axes, [x for line in lines for x in line.xs], format_count)
    axes.axhline(1.0, color="black", linewidth=0.8, linestyle=":")
    axes.set(xlabel="tokens (log scale)", ylabel="time / plain causal attention")
    draw_lines(axes, lines)
    axes.set_ylim(0, 1.08 * max(y for line in lines for y in line.ys))
    name_lines(axes, lines)
    return figure


def _lines(frame: pd.DataFrame, keys: list[str], x: str) -> list[Line]:
    """Perplexity against ``x``, a line for each name, or for each name and length."""
    curves = []
    for (name, *lengths), group in frame.groupby(keys, sort=False):
        label = ", ".join([name, *(f"{format_count(length)} tokens" for length in lengths)])
        curves.append((label, group["position_method"].iloc[0], group[x].tolist(), group["perplexity"].tolist()))
    return method_lines(curves)


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


def _not_drawn(frame: pd.DataFrame) -> str:
    """One line per model that failed somewhere, with its first reason: the table beside has them all."""
    lines = []
    for name, group in frame[frame["error"].notna()].groupby("name", sort=False):
        lengths = ", ".join(map(format_count, sorted(group["length_tokens"].unique())))
        lines.append(f"Not drawn: {name} at {lengths}: {textwrap.shorten(group['error'].iloc[0], 160)}")
    return "\n".join(lines)
