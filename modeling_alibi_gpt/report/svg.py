"""Figures as SVG with real text. Inline figures follow the color scheme of the page and show values on hover."""

import hashlib
import io
import re
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D


# The browser renders the text, and ids are the same in every run.
RC: Any = {"svg.fonttype": "none", "svg.hashsalt": "report"}
POINTS_PER_INCH = 72  # the unit of matplotlib's SVG
# Replacements in dark mode for figure colors.
DARK_COLORS = {
    "#000000": "#e8e6e3",
    "#2b2b2b": "#e8e6e3",
    "#767676": "#a3a3a3",
    "#808080": "#a3a3a3",
    "#b0b0b0": "#8a8a8a",
    "#ececec": "#2e2e2e",
    "#ffffff": "#181818",
    "#d1430b": "#ff8a50",
    "#332288": "#a99cff",
    "#aa4499": "#dd7fcf",
    "#117733": "#4fbf73",
    "#882255": "#e0709f",
    "#4477aa": "#7aa8da",
}
HIT_RADIUS, TIP_GAP = 8.0, 10.0
COLOR = re.compile(r"#[0-9a-f]{6}\b")
REFERENCE = re.compile(r"#([\w-]+)")


def dark_css() -> str:
    """CSS declarations of the figure colors in dark mode."""
    return " ".join(f"--c-{light[1:]}: {dark};" for light, dark in DARK_COLORS.items())


def svg_file(figure: Figure) -> bytes:
    """A standalone SVG file, byte-identical in every run."""
    buffer = io.BytesIO()
    with matplotlib.rc_context(RC):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue()


def inline_svg(figure: Figure) -> str:
    """A self-contained ``<svg>`` element for the body of an HTML page.

    Every color ``#rrggbb`` becomes ``var(--c-rrggbb, #rrggbb)``, so that a page can change it in dark mode. Every
    point of a named line gets an element of class ``point`` with a text of class ``tip``, to be shown on hover or
    focus.
    """
    buffer = io.StringIO()
    with matplotlib.rc_context(RC):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    root = ET.fromstring(buffer.getvalue())
    _plain(root)
    _follow_scheme(root)
    _rename_ids(root, prefix=f"fig-{hashlib.sha256(buffer.getvalue().encode()).hexdigest()[:10]}-")
    root.extend(_points(figure))
    return ET.tostring(root, encoding="unicode")


def _plain(root: ET.Element) -> None:
    """Drop what HTML does not need: namespaces, metadata, the document style and sizes in points."""
    for element in root.iter():
        element.tag = element.tag.rpartition("}")[2]
        element.attrib = {name.rpartition("}")[2]: value for name, value in element.attrib.items()}
        for child in list(element):
            if child.tag.rpartition("}")[2] in ("metadata", "style"):
                element.remove(child)
    for name in ("width", "height", "version"):
        root.attrib.pop(name, None)


def _follow_scheme(root: ET.Element) -> None:
    for element in root.iter():
        for name in ("style", "fill", "stroke"):
            if name in element.attrib:
                element.set(name, COLOR.sub(lambda hit: f"var(--c-{hit[0][1:]}, {hit[0]})", element.attrib[name]))
        style = element.get("style", "")
        if element.tag == "text" and "fill:" not in style:  # matplotlib omits black
            element.set("style", f"fill: var(--c-000000, #000000); {style}")
        elif "font:" in style:
            element.set("style", re.sub(r"(font: [^;']*px) [^;]*", r"\1 inherit", style))


def _rename_ids(root: ET.Element, prefix: str) -> None:
    """Keep only the ids that are referenced, with a prefix that is unique on the page."""
    links = [
        (element, name)
        for element in root.iter()
        for name, value in element.attrib.items()
        if (name == "href" and value.startswith("#")) or "url(#" in value
    ]
    referred = {hit for element, name in links for hit in REFERENCE.findall(element.attrib[name])}
    for element, name in links:
        element.set(name, REFERENCE.sub(rf"#{prefix}\1", element.attrib[name]))
    for element in root.iter():
        own = element.attrib.pop("id", "")
        if own in referred:
            element.set("id", prefix + own)


def _points(figure: Figure) -> Iterator[ET.Element]:
    """A circle with a tooltip for every point of a line whose label does not start with an underscore."""
    for axes in figure.axes:
        for line in axes.lines:
            if line.get_transform() == axes.transData and not str(line.get_label()).startswith("_"):
                yield from _points_of_line(figure, axes, line)


def _points_of_line(figure: Figure, axes: Axes, line: Line2D) -> Iterator[ET.Element]:
    label, describe_x = str(line.get_label()), axes.xaxis.get_major_formatter()
    width, height = (inches * POINTS_PER_INCH for inches in figure.get_size_inches())
    values = np.asarray(line.get_xydata(), dtype=float)
    places = figure.transFigure.inverted().transform(axes.transData.transform(values))
    for (x, y), (right, up) in zip(values.tolist(), places.tolist(), strict=True):
        yield _point(right * width, (1 - up) * height, width, f"{label}: {y:,.4g} at {describe_x(x)}")


def _point(x: float, y: float, width: float, text: str) -> ET.Element:
    point = ET.Element("g", {"class": "point", "tabindex": "-1"})
    ET.SubElement(point, "circle", {"cx": f"{x:.1f}", "cy": f"{y:.1f}", "r": f"{HIT_RADIUS:g}"})
    anchor = "start" if x < width / 3 else "middle" if x < 2 * width / 3 else "end"
    baseline = y - TIP_GAP if y > 3 * TIP_GAP else y + 2 * TIP_GAP
    tip = {"class": "tip", "x": f"{x:.1f}", "y": f"{baseline:.1f}", "text-anchor": anchor}
    ET.SubElement(point, "text", tip).text = text
    return point
