"""Curves and their styles: a color for each position method, and dashes and a marker for each variant."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count


INK, GREY, PALE = "#2b2b2b", "#767676", "#b0b0b0"
ALIBI_COLOR, SECOND_COLOR = "#d1430b", "#332288"
# Paul Tol's muted scheme, which is safe for color-blind readers; only ALiBi is bright.
METHOD_COLORS = {
    "alibi": ALIBI_COLOR,
    "sinusoidal": SECOND_COLOR,
    "learned": "#44aa99",
    "rope": "#aa4499",
    "none": "#808080",
    "t5": "#5fb3d9",
    "kerple": "#999933",
    "fire": "#117733",
    "shared_offset": "#882255",
    "sandwich": "#4477aa",
}
# If all curves share one method, the one in the first place has its color and the others have these.
VARIANT_COLORS = ("#332288", "#44aa99", "#117733", "#aa4499", "#5fb3d9", "#882255")
MARKERS, DASHES = "osD^vP", ("-", "--", ":", "-.")
# Which of these a variant has in every figure; others have those that are left, in their order.
VARIANT_PLACES = {"alibi": 0, "beta 1": 0, "alibi tuned": 1, "alibi, learned beta": 2}
MAX_LINES = 6  # in one panel

Ends = Sequence[tuple[float, float]]  # lowest and highest value at each point


@dataclass(frozen=True)
class Line:
    """One curve. ``place`` selects its dashes and marker among curves of one color; a main curve is bold.

    ``ends`` are those of its spread at each point, or nothing if they are not known.
    """

    name: str
    color: str
    xs: Sequence[float]
    ys: Sequence[float]
    place: int = 0
    is_main: bool = False
    zorder: int = 2
    ends: Ends = ()

    @property
    def dashes(self) -> str:
        return DASHES[self.place % len(DASHES)]

    @property
    def marker(self) -> str:
        return MARKERS[self.place % len(MARKERS)]


Curve = tuple[str, str, Sequence[float], Sequence[float]]  # name, position method, xs, ys


def method_lines(curves: Sequence[Curve], ends: Sequence[Ends] | None = None) -> list[Line]:
    """Curves in the colors of their position methods, or in distinct colors if all share one method.

    Args:
        curves: Names, position methods and points.
        ends: The spread of each curve; None if it is not known.
    """
    is_one_method = len({method for _, method, _, _ in curves}) == 1
    lines = []
    for index, ((name, method, xs, ys), place) in enumerate(zip(curves, _places(curves), strict=True)):
        color, is_alibi = METHOD_COLORS.get(method, GREY), method == "alibi"
        if is_one_method and place:
            others = [other for other in VARIANT_COLORS if other != color]
            color = others[(place - 1) % len(others)]
        spread = ends[index] if ends else ()
        lines.append(Line(name, color, xs, ys, place, is_alibi and not place, 2 + is_alibi, spread))
    return lines


def variant_of(name: str) -> str:
    """The variant that a model belongs to; the name of its folder has hyphens for spaces."""
    return name.replace("-", " ")


def _places(curves: Sequence[Curve]) -> list[int]:
    """The place of each curve among those of its method: that of its name if it is free, or the first that is left."""
    taken: dict[tuple[str, int], int] = {}
    for index, (name, method, _, _) in enumerate(curves):
        place = VARIANT_PLACES.get(variant_of(name))
        if place is not None:
            taken.setdefault((method, place), index)
    known = {index: place for (_, place), index in taken.items()}
    places: list[int] = []
    for index, (_, method, _, _) in enumerate(curves):
        if index not in known:
            known[index] = next(each for each in count() if (method, each) not in taken)
            taken[method, known[index]] = index
        places.append(known[index])
    return places


def in_panels(lines: Sequence[Line]) -> list[list[Line]]:
    """Groups of at most ``MAX_LINES`` lines with similar last values; the main line is in every group."""
    if len(lines) <= MAX_LINES:
        return [list(lines)]
    main = [line for line in lines if line.is_main]
    others = sorted((line for line in lines if not line.is_main), key=lambda line: line.ys[-1])
    num_panels = math.ceil(len(others) / (MAX_LINES - len(main)))
    size = math.ceil(len(others) / num_panels)
    return [main + others[start : start + size] for start in range(0, len(others), size)]
