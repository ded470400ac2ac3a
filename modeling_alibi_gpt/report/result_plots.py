"""Figures of a written page, as SVG: at most six labeled curves per panel, with the spread of their seeds."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator, PercentFormatter

from modeling_alibi_gpt.report.comparison import AFTER_TRAINING, Comparison, Curve
from modeling_alibi_gpt.report.drawing import (
    WIDTH_INCHES,
    as_drawing,
    draw_lines,
    log2_axis,
    name_lines,
    new_axes,
    new_panels,
)
from modeling_alibi_gpt.report.formats import BETA, format_count, format_ratio, with_minus
from modeling_alibi_gpt.report.lines import ALIBI_COLOR, GREY, SECOND_COLOR, Line, method_lines, variant_of
from modeling_alibi_gpt.report.statistics import Difference


# Limits and ticks of an axis that is linear near 0 and logarithmic beyond.
WIDE_NATS, LINEAR_NATS, WIDE_TICKS = 0.3, 0.1, (-0.1, -0.05, 0, 0.05, 0.1, 0.3, 1, 3)
NAMES = {
    "alibi": "ALiBi",
    "alibi tuned": "ALiBi, β = 8",
    "alibi, learned beta": "ALiBi, learned β",
    "rope": "RoPE",
    "t5": "T5",
    "kerple": "KERPLE",
    "fire": "FIRE",
    "sandwich": "Sandwich",
    "none": "no positions",
}


@as_drawing
def length_figure(panels: Sequence[tuple[str, Comparison]], methods: Sequence[str]) -> Figure:
    """Nats above a model's own loss at the training length, against length in multiples of the training length.

    Args:
        panels: Title and comparison of each panel.
        methods: Variants to draw, at most six.
    """
    figure, all_axes = new_panels(len(panels))
    drawn = []
    for axes, (title, grid) in zip(all_axes, panels, strict=True):
        multiples = [length / grid.lengths[0] for length in grid.lengths]
        found = {
            variant: [grid.change(variant, grid.main_protocol, length) for length in grid.lengths]
            for variant in methods
        }
        log2_axis(axes, multiples, lambda tick: f"{tick:g}x")
        _title(axes, title)
        axes.set_ylabel("nats above own loss at 1x")
        drawn.append(_with_spread([(v, grid.method(v), multiples, each) for v, each in found.items()]))
        draw_lines(axes, drawn[-1])
    for axes, lines in zip(all_axes, drawn, strict=True):
        name_lines(axes, lines)
    all_axes[-1].set_xlabel("length read, in training lengths (log scale)")
    return figure


@as_drawing
def rivals_figure(grid: Comparison, variants: Sequence[str]) -> Figure:
    """Nats above the reference of each variant, at the training length and at the longest length.

    A bar is the 95 % interval, or the range of the seeds if there are fewer than three. A panel with a difference
    above ``WIDE_NATS`` has a logarithmic scale beyond ``LINEAR_NATS``.
    """
    figure = Figure(figsize=(WIDTH_INCHES, 1.4 + 0.36 * 2 * len(variants)))
    panels = list(figure.subplots(2, 1))
    lines = _named(method_lines([(variant, grid.method(variant), (), ()) for variant in variants]))
    multiple = grid.lengths[-1] // grid.lengths[0]
    titles = ("at the training length", f"at {multiple} training lengths")
    for axes, length, title in zip(panels, (grid.lengths[0], grid.lengths[-1]), titles, strict=True):
        _title(axes, title)
        axes.axvline(0, color=ALIBI_COLOR, linewidth=2)
        found = {variant: grid.difference(variant, grid.main_protocol, length) for variant in variants}
        for row, (line, difference) in enumerate(zip(lines, found.values(), strict=True)):
            if difference is not None:
                _dot(axes, difference, row, line)
        if any(difference and abs(difference.mean) > WIDE_NATS for difference in found.values()):
            axes.set_xscale("symlog", linthresh=LINEAR_NATS, linscale=2)
            axes.xaxis.set(major_locator=FixedLocator(WIDE_TICKS), minor_locator=NullLocator())
            axes.xaxis.set_major_formatter(FuncFormatter(lambda tick, _: with_minus(f"{tick:g}")))
            axes.set_title(f"log scale beyond {LINEAR_NATS:g}", loc="right", fontsize=9, color=GREY)
        axes.set_yticks(range(len(variants)), [line.name for line in lines])
        axes.set_ylim(len(variants) - 0.4, -0.6)
    panels[-1].set_xlabel("nats per token above ALiBi with β = 1 (left: better)")
    return figure


@as_drawing
def trained_betas_figure(panels: Sequence[tuple[str, Mapping[str, Curve]]]) -> Figure:
    """Nats above beta 1 of each curve, against the beta of training; at most six curves in a panel.

    Args:
        panels: Title of each panel, and its curves by name.
    """
    figure, all_axes = new_panels(len(panels))
    drawn = [_beta_lines(curves, 1.0) for _, curves in panels]
    betas = [beta for lines in drawn for line in lines for beta in line.xs]
    for axes, (title, _), lines in zip(all_axes, panels, drawn, strict=True):
        log2_axis(axes, betas, format_ratio)
        _title(axes, title)
        axes.set_ylabel(f"nats above {BETA} = 1")
        draw_lines(axes, lines)
    for axes, lines in zip(all_axes, drawn, strict=True):
        name_lines(axes, lines)
    all_axes[-1].set_xlabel(f"{BETA} of training (log scale)")
    return figure


@as_drawing
def changed_betas_figure(curve: Curve, own_beta: float) -> Figure:
    """Nats above the loss at the beta of training, against the beta that a trained model is evaluated with."""
    figure, axes = new_axes(3.6)
    lines = _beta_lines({AFTER_TRAINING: curve}, own_beta)
    log2_axis(axes, lines[0].xs, format_ratio)
    axes.set(xlabel=f"{BETA} set after training (log scale)", ylabel=f"nats above own {BETA}")
    draw_lines(axes, lines)
    return figure


@as_drawing
def recall_figure(curves: Mapping[str, tuple[str, Mapping[int, Sequence[float]]]]) -> Figure:
    """Accuracy on the oldest item against the length of the text, with the range of the seeds.

    Args:
        curves: For each variant, its position method and the accuracy of each seed by length; at most six variants.
    """
    figure, axes = new_axes(3.6)
    means = [
        (variant, method, list(shares), [statistics.fmean(each) for each in shares.values()])
        for variant, (method, shares) in curves.items()
    ]
    ends = [[(min(each), max(each)) for each in shares.values()] for _, shares in curves.values()]
    lines = _named(method_lines(means, ends))
    log2_axis(axes, [x for line in lines for x in line.xs], format_count)
    axes.set(xlabel="length of the text in tokens (log scale)", ylabel="right answers", ylim=(0, 1.04))
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    draw_lines(axes, lines)
    name_lines(axes, lines)
    return figure


@as_drawing
def distant_figure(curves: Mapping[str, tuple[str, Mapping[int, Difference]]]) -> Figure:
    """Nats above the whole context against the number of nearest tokens that are kept, with the 95 % interval.

    Args:
        curves: For each name, its position method and the differences by number of kept tokens; at most six names.
    """
    figure, axes = new_axes(3.6)
    lines = _with_spread([(name, method, [*kept], [*kept.values()]) for name, (method, kept) in curves.items()])
    log2_axis(axes, [x for line in lines for x in line.xs], format_count)
    axes.set(xlabel="nearest tokens that stay (log scale)", ylabel="nats above the whole context")
    draw_lines(axes, lines)
    name_lines(axes, lines)
    return figure


def _beta_lines(curves: Mapping[str, Curve], base: float) -> list[Line]:
    """Nats above those of the beta ``base`` on each curve, with the spread of its seeds."""
    colors = (ALIBI_COLOR, SECOND_COLOR, "#44aa99", "#aa4499", "#5fb3d9", "#117733")
    lines = []
    for (name, curve), color in zip(curves.items(), colors, strict=False):
        found = [curve.between(beta, base) for beta in curve]
        lines.append(Line(name, color, list(curve), [each.mean for each in found], ends=[each.ends for each in found]))
    return lines


def _with_spread(found: Sequence[tuple[str, str, Sequence[float], Sequence[Difference | None]]]) -> list[Line]:
    curves, ends = [], []
    for name, method, xs, differences in found:
        known = {x: each for x, each in zip(xs, differences, strict=True) if each is not None}
        curves.append((name, method, list(known), [each.mean for each in known.values()]))
        ends.append([each.ends for each in known.values()])
    return _named(method_lines(curves, ends))


def _named(lines: Sequence[Line]) -> list[Line]:
    return [replace(line, name=NAMES.get(variant_of(line.name), line.name)) for line in lines]


def _dot(axes: Axes, difference: Difference, y: float, line: Line) -> None:
    axes.plot(difference.ends, (y, y), color=line.color, linewidth=1.5)
    axes.plot(difference.mean, y, color=line.color, marker=line.marker, markersize=5.5)


def _title(axes: Axes, title: str) -> None:
    axes.set_title(title, loc="left", fontsize=10, fontweight="bold")
