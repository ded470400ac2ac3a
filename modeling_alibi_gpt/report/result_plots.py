"""Figures of a written page, as SVG: at most six labelled curves per panel, with the spread of their seeds."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from modeling_alibi_gpt.report.comparison import AFTER_TRAINING, Comparison, Curve
from modeling_alibi_gpt.report.drawing import (
    ALIBI_COLOUR,
    GREY,
    METHOD_COLOURS,
    SECOND_COLOUR,
    WIDTH_INCHES,
    Line,
    as_drawing,
    draw_lines,
    log2_axis,
    method_lines,
    name_lines,
    new_axes,
    new_panels,
)
from modeling_alibi_gpt.report.formats import BETA, format_count, format_ratio
from modeling_alibi_gpt.report.statistics import Difference


MARKERS = "osD^"
NAMES = {
    "alibi": "ALiBi",
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
        drawn.append(_with_spread([(NAMES.get(v, v), grid.method(v), multiples, each) for v, each in found.items()]))
        draw_lines(axes, drawn[-1])
    for axes, lines in zip(all_axes, drawn, strict=True):
        name_lines(axes, lines)
    all_axes[-1].set_xlabel("length read, in training lengths (log scale)")
    return figure


@as_drawing
def rivals_figure(grids: Mapping[str, Comparison], methods: Sequence[str]) -> Figure:
    """Nats above ALiBi of each method on each corpus, at the training length and at the longest length.

    Each corpus has its own marker. The bar is the range of the seeds or, with at least three seeds, the 95 % interval.
    """
    figure = Figure(figsize=(WIDTH_INCHES, 1.6 + 0.62 * 2 * len(methods)))
    panels = list(figure.subplots(2, 1))
    for axes, place, title in zip(panels, (0, -1), ("at the training length", "at 32 training lengths"), strict=True):
        _title(axes, title)
        axes.axvline(0, color=ALIBI_COLOUR, linewidth=2)
        for number, (grid, marker) in enumerate(zip(grids.values(), MARKERS, strict=False)):
            offset = (number - (len(grids) - 1) / 2) * 0.24
            for row, method in enumerate(methods):
                difference = _difference(grid, method, grid.lengths[place])
                if difference is not None:
                    _dot(axes, difference, row + offset, METHOD_COLOURS[grid.method(method)], marker)
        axes.set_yticks(range(len(methods)), [NAMES.get(method, method) for method in methods])
        axes.set_ylim(len(methods) - 0.4, -0.6)
    panels[-1].set_xlabel("nats per token above ALiBi (left of the line: better)")
    handles = [
        matplotlib.lines.Line2D([], [], color=GREY, marker=marker, linestyle="", label=name)
        for name, marker in zip(grids, MARKERS, strict=False)
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False, fontsize=9)
    return figure


@as_drawing
def trained_betas_figure(curves: Mapping[str, Curve]) -> Figure:
    """Nats above the lowest loss of each curve, against the beta of training; at most six curves."""
    return _beta_figure(curves, f"{BETA} of training (log scale)", "nats above the best β")


@as_drawing
def changed_betas_figure(curve: Curve, own_beta: float) -> Figure:
    """Nats above the loss at the beta of training, against the beta that a trained model is evaluated with."""
    return _beta_figure(
        {AFTER_TRAINING: curve}, f"{BETA} set after training (log scale)", "nats above own β", own_beta
    )


@as_drawing
def recall_figure(curves: Mapping[str, tuple[str, Mapping[int, Sequence[float]]]]) -> Figure:
    """Accuracy on the oldest item against the length of the text, with the range of the seeds.

    Args:
        curves: For each variant, its position method and the accuracy of each seed by length; at most six variants.
    """
    figure, axes = new_axes(3.6)
    named = [
        (NAMES.get(variant, variant), method, list(shares), [statistics.fmean(each) for each in shares.values()])
        for variant, (method, shares) in curves.items()
    ]
    lines = [
        replace(line, low=list(map(min, shares.values())), high=list(map(max, shares.values())))
        for line, (_, shares) in zip(method_lines(named), curves.values(), strict=True)
    ]
    log2_axis(axes, [x for line in lines for x in line.xs], format_count)
    axes.set(xlabel="length of the text in tokens (log scale)", ylabel="right answers", ylim=(0, 1.04))
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    draw_lines(axes, lines)
    name_lines(axes, lines)
    return figure


def _beta_figure(curves: Mapping[str, Curve], x_label: str, y_label: str, base: float | None = None) -> Figure:
    figure, axes = new_axes(3.6)
    colours = (ALIBI_COLOUR, SECOND_COLOUR, "#44aa99", "#aa4499", "#5fb3d9", "#117733")
    lines = []
    for (name, curve), colour in zip(curves.items(), colours, strict=False):
        level = curve.lowest if base is None else base
        found = [curve.between(beta, level) for beta in curve]
        lines.append(_spread_line(Line(name, colour, list(curve), [each.mean for each in found]), found))
    log2_axis(axes, [beta for line in lines for beta in line.xs], format_ratio)
    axes.set(xlabel=x_label, ylabel=y_label)
    draw_lines(axes, lines)
    if len(lines) > 1:
        name_lines(axes, lines)
    return figure


def _with_spread(found: Sequence[tuple[str, str, Sequence[float], Sequence[Difference | None]]]) -> list[Line]:
    known = []
    for name, method, xs, differences in found:
        pairs = [(x, each) for x, each in zip(xs, differences, strict=True) if each is not None]
        known.append((name, method, [x for x, _ in pairs], [each for _, each in pairs]))
    lines = method_lines([(name, method, xs, [each.mean for each in found]) for name, method, xs, found in known])
    return [_spread_line(line, differences) for line, (_, _, _, differences) in zip(lines, known, strict=True)]


def _spread_line(line: Line, differences: Sequence[Difference]) -> Line:
    low, high = zip(*(each.ends for each in differences), strict=True)
    return replace(line, low=low, high=high)


def _difference(grid: Comparison, variant: str, length: int) -> Difference | None:
    return grid.difference(variant, grid.main_protocol, length) if variant in grid.variants else None


def _dot(axes: Axes, difference: Difference, y: float, colour: str, marker: str) -> None:
    axes.plot(difference.ends, (y, y), color=colour, linewidth=1.5)
    axes.plot(difference.mean, y, color=colour, marker=marker, markersize=5.5)


def _title(axes: Axes, title: str) -> None:
    axes.set_title(title, loc="left", fontsize=10, fontweight="bold")
