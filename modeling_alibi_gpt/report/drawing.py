"""The look of the figures of a report: axes, directly labeled curves and marks.

A figure is 5.4 inches wide at 150 dots per inch, so that its text is readable on a phone 390 pixels wide.
"""

import io
import math
import textwrap
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial, wraps
from typing import Any, Literal, TypeVar

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullLocator
from matplotlib.transforms import ScaledTranslation

from modeling_alibi_gpt.report.formats import format_count
from modeling_alibi_gpt.report.lines import ALIBI_COLOR, GREY, INK, PALE, Line
from modeling_alibi_gpt.report.svg import inline_svg, svg_file


T = TypeVar("T")
WIDTH_INCHES = 5.4
STYLE: Any = {
    "font.size": 10,
    "text.color": INK,
    "text.parse_math": False,
    "axes.labelcolor": INK,
    "axes.edgecolor": PALE,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#ececec",
    "xtick.color": PALE,
    "ytick.color": PALE,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "figure.constrained_layout.use": True,
    "figure.constrained_layout.h_pad": 0.08,
    "figure.constrained_layout.w_pad": 0.08,
    "savefig.dpi": 150,
}
MAX_LINEAR_SPAN = 4  # a perplexity axis is logarithmic if the largest value exceeds the smallest by this factor
MAX_TICKS = 10
LABEL_INCHES = 0.17  # height of a direct label
MAX_DIRECT_LABELS, MAX_LABEL_CHARS = 12, 20  # beyond these, names go into a legend below the axes


@dataclass(frozen=True)
class Drawing:
    """A figure that is rendered on demand and not kept: as PNG, as an SVG file, or as SVG to inline in a page."""

    draw: Callable[[], Figure]

    def png_parts(self) -> Iterator[bytes]:
        """The PNG as one part, drawn when it is read."""
        buffer = io.BytesIO()
        self._written(lambda figure: figure.savefig(buffer, format="png"))
        yield buffer.getvalue()

    @property
    def svg_file(self) -> bytes:
        return self._written(svg_file)

    @property
    def svg(self) -> str:
        return self._written(inline_svg)

    def _written(self, write: Callable[[Figure], T]) -> T:
        with matplotlib.rc_context(STYLE):
            figure = self.draw()
            written = write(figure)
            figure.clear()  # its parts refer to each other, and would wait for the garbage collector
            return written


def as_drawing(draw: Callable[..., Figure]) -> Callable[..., Drawing]:
    """Decorate a function that returns a figure, so that it draws in the style of the report."""

    @wraps(draw)
    def drawn(*args: Any, **kwargs: Any) -> Drawing:
        return Drawing(partial(draw, *args, **kwargs))

    return drawn


def new_panels(num_panels: int) -> tuple[Figure, list[Axes]]:
    """A column of panels that share the x axis."""
    figure = Figure(figsize=(WIDTH_INCHES, 0.4 + 3.4 * num_panels))
    return figure, list(figure.subplots(num_panels, sharex=True, squeeze=False)[:, 0])


def new_axes(height_inches: float = 3.8) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(WIDTH_INCHES, height_inches))
    return figure, figure.subplots()


def log2_axis(axes: Axes, values: Sequence[float], label: Callable[[float], str]) -> None:
    """A log2 x axis over ``values``, all > 0, that ends at powers of two and has plain numbers."""
    low, high = math.floor(math.log2(min(values))), math.ceil(math.log2(max(values)))
    step = math.ceil((high - low + 1) / MAX_TICKS)
    ticks = [2.0**exponent for exponent in range(low, high + 1) if exponent % step == 0]
    axes.set_xscale("log", base=2)
    axes.set_xlim(2 ** (low - 0.15), 2 ** (high + 0.15))
    axes.xaxis.set(major_locator=FixedLocator(ticks), minor_locator=NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda tick, _: label(tick)))


def perplexity_axis(axes: Axes, values: Sequence[float]) -> None:
    """A y axis for ``values`` with plain numbers, logarithmic if they span more than a factor of four."""
    axes.set_ylabel("perplexity")
    if max(values) > MAX_LINEAR_SPAN * min(values):
        axes.set_yscale("log")
        axes.set_ylabel("perplexity (log scale)")
        subs = (1, 2, 5) if max(values) > 10 * min(values) else (1, 1.5, 2, 3, 5, 7)
        axes.yaxis.set(major_locator=LogLocator(subs=subs), minor_locator=NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda tick, _: f"{tick:,.6g}"))


def mark_training_lengths(axes: Axes, lengths_tokens: Sequence[int | None]) -> None:
    """A vertical line at every training length (None is unknown) on the axis, labeled above the axes."""
    lengths = sorted({length for length in lengths_tokens if length})
    for length in (inside := [length for length in lengths if axes.viewLim.containsx(length)]):
        axes.axvline(length, color=GREY, linestyle="--", linewidth=1, zorder=1)
    if len(lengths) == len(inside) == 1:
        name_above(axes, lengths[0], f"trained at {format_count(lengths[0])}", GREY)
    elif lengths:
        lengths_text = ", ".join(map(format_count, lengths))
        axes.text(1, 1.015, f"trained at {lengths_text}", fontsize=9, color=GREY, ha="right", transform=axes.transAxes)


def name_above(axes: Axes, x: float, text: str, color: str) -> None:
    """Write ``text`` above the axes at ``x``, inside their width."""
    transform = axes.get_xaxis_transform()
    axes.text(x, 1.015, text, color=color, fontsize=9, ha=inward(axes, x), transform=transform)


def inward(axes: Axes, x: float) -> Literal["left", "center", "right"]:
    """The alignment that keeps a text at ``x`` inside the axes."""
    fraction = _axes_fraction(axes, x, axes.get_ylim()[0])[0]
    return "left" if fraction < 1 / 3 else "center" if fraction < 2 / 3 else "right"


def write_below(figure: Figure, text: str) -> None:
    """A small note below everything else, wrapped to the width of the figure."""
    if text:
        wrapped = "\n".join(textwrap.fill(line, 86) for line in text.splitlines())
        figure.supxlabel(wrapped, x=0.02, ha="left", fontsize=8.5, color=GREY)


def draw_band(axes: Axes, line: Line) -> None:
    """The spread of a curve, if it is known."""
    if line.ends:
        low, high = zip(*line.ends, strict=True)
        axes.fill_between(line.xs, low, high, color=line.color, alpha=0.15, linewidth=0, zorder=1)


def draw_lines(axes: Axes, lines: Sequence[Line], *, markers: bool = True) -> None:
    for line in lines:
        draw_band(axes, line)
        axes.plot(
            line.xs,
            line.ys,
            color=line.color,
            linestyle=line.dashes,
            linewidth=2.6 if line.is_main else 1.5,
            marker=line.marker if markers else None,
            markersize=6 if line.is_main else 4.5,
            zorder=line.zorder,
            label=line.name,
        )


def name_lines(axes: Axes, lines: Sequence[Line]) -> None:
    """Write each name at the end of its curve, or below the axes if names are many or long.

    Call this after everything is drawn, including axes that share a scale, because label positions are not updated.
    """
    if len(lines) > MAX_DIRECT_LABELS or any(len(line.name) > MAX_LABEL_CHARS for line in lines):
        name_below(axes, lines)
    else:
        _name_ends(axes, lines)


def name_below(axes: Axes, lines: Sequence[Line]) -> None:
    """A legend below the axes, in a figure that grows to make space."""
    names = [textwrap.fill(line.name, 60) for line in lines]
    num_columns = 2 if max(map(len, names)) <= MAX_LABEL_CHARS else 1
    num_rows = math.ceil(sum(name.count("\n") + 1 for name in names) / num_columns)
    figure = _figure(axes)
    figure.set_figheight(figure.get_figheight() + num_rows * LABEL_INCHES + 0.3)
    below = axes.transAxes + ScaledTranslation(0, -0.6, figure.dpi_scale_trans)
    style: dict[str, Any] = {"ncols": num_columns, "fontsize": 8.5, "frameon": False, "borderaxespad": 0}
    curves = axes.lines[-len(lines) :]
    axes.legend(curves, names, loc="upper left", bbox_to_anchor=(0, 0), bbox_transform=below, **style)


def _name_ends(axes: Axes, lines: Sequence[Line]) -> None:
    """Names to the right of the axes, level with the ends of their curves; a shorter curve is labeled at its end."""
    last_x = max(line.xs[-1] for line in lines)
    styles = {line.name: _name_style(line.color) for line in lines}
    for line in lines:
        if line.xs[-1] < last_x:
            end, style = (line.xs[-1], line.ys[-1]), styles[line.name]
            axes.annotate(line.name, end, xytext=(7, 0), textcoords="offset points", va="center", **style)
    ending = sorted((line for line in lines if line.xs[-1] == last_x), key=lambda line: line.ys[-1])
    heights = [_axes_fraction(axes, line.xs[-1], line.ys[-1])[1] for line in ending]
    gap = LABEL_INCHES / (axes.get_position().height * _figure(axes).get_figheight())
    for line, height in zip(ending, _spread(heights, gap), strict=True):
        axes.text(1.015, height, line.name, transform=axes.transAxes, va="center", **styles[line.name])


def _spread(heights: Sequence[float], gap: float) -> list[float]:
    """Ascending heights, moved apart until neighbors are at least ``gap`` apart."""
    spread = list(heights)
    for index in range(1, len(spread)):
        spread[index] = max(spread[index], spread[index - 1] + gap)
    spread[-1] = min(spread[-1], max(1.0, heights[-1]))
    for index in range(len(spread) - 2, -1, -1):
        spread[index] = min(spread[index], spread[index + 1] - gap)
    return spread


def _axes_fraction(axes: Axes, x: float, y: float) -> tuple[float, float]:
    axes.autoscale_view()
    fraction_x, fraction_y = (axes.transScale + axes.transLimits).transform((x, y))
    return float(fraction_x), float(fraction_y)


def _figure(axes: Axes) -> Figure:
    figure = axes.get_figure(root=True)
    assert isinstance(figure, Figure)
    return figure


def _name_style(color: str) -> dict[str, Any]:
    weight = "bold" if color == ALIBI_COLOR else "normal"
    return {"color": color, "fontweight": weight, "fontsize": 9.5}
