"""Places points on a chart of cost against value: pixels, ticks and labels for the SVG that a page draws.

In: numbers. Out: a `Scatter`. Knows nothing about what the numbers are of.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

from sft.reports.charts import Scale, axis_extent, axis_ticks, tick_labels

WIDTH, HEIGHT = 480, 270
LEFT, RIGHT, TOP, BOTTOM = 52, 464, 36, 218  # of the field the dots are in; labels need the rest
MARGIN = 24  # pixels between the field's sides and the dots
NEAR = 12  # pixels; points closer than that share a dot and a label
ROOM = 56  # pixels for one text under the cost axis
WIDE = 4  # times the smallest cost; from there on the axis is logarithmic


@dataclass(frozen=True)
class Spot:
    """A point as numbers: what it costs, how good it is, how far that may be off, and whether it is efficient."""

    label: str
    cost: float
    value: float
    spread: float
    is_efficient: bool


@dataclass
class Dot:
    """One dot of the chart, of one point or of several that lie on each other."""

    x: float
    y: float
    top: float
    bottom: float
    label: str
    is_efficient: bool


@dataclass(frozen=True)
class Tick:
    """A mark on an axis, at so many pixels."""

    at: float
    text: str


@dataclass(frozen=True)
class Scatter:
    """A chart: `front` is the line through the efficient points, as SVG's `points`."""

    dots: list[Dot]
    across: list[Tick]
    up: list[Tick]
    front: str
    is_logarithmic: bool


def lay_out(spots: list[Spot], show_cost: Callable[[float], str], is_share: bool) -> Scatter:
    """Lay out at least one spot; a cost axis that spans much is logarithmic, and marks the costs there are."""
    costs = sorted({spot.cost for spot in spots})
    is_logarithmic = costs[0] > 0 and costs[-1] >= WIDE * costs[0]
    scale = math.log if is_logarithmic else float
    across = Scale(*axis_extent(map(scale, costs)), LEFT + MARGIN, RIGHT - MARGIN)
    ends = [spot.value + side * spot.spread for spot in spots for side in (-1, 1)]
    lowest, highest = axis_extent(ends)
    rows = axis_ticks(max(lowest, 0), min(highest, 1)) if is_share else axis_ticks(lowest, highest)
    up = Scale(rows[0], rows[-1], BOTTOM, TOP)
    dots: list[Dot] = []
    for spot in spots:
        y, top, bottom = (round(up(spot.value + offset), 1) for offset in (0, spot.spread, -spot.spread))
        _place(dots, Dot(round(across(scale(spot.cost)), 1), y, top, bottom, spot.label, spot.is_efficient))
    efficient = sorted((dot for dot in dots if dot.is_efficient), key=lambda dot: dot.x)
    return Scatter(
        dots=dots,
        across=_with_room([Tick(round(across(scale(cost)), 1), show_cost(cost)) for cost in costs]),
        up=[Tick(round(up(row), 1), text) for row, text in zip(rows, tick_labels(rows, is_share), strict=True)],
        front=" ".join(f"{dot.x},{dot.y}" for dot in efficient),
        is_logarithmic=is_logarithmic,
    )


def _place(dots: list[Dot], dot: Dot) -> None:
    """Add a dot, or its label to a dot that lies where it would."""
    for other in dots:
        if abs(other.x - dot.x) < NEAR and abs(other.y - dot.y) < NEAR:
            other.label += f", {dot.label}"
            other.is_efficient |= dot.is_efficient
            return
    dots.append(dot)


def _with_room(marks: list[Tick]) -> list[Tick]:
    """The ticks whose texts do not run into each other."""
    shown: list[Tick] = []
    for mark in marks:
        if not shown or mark.at - shown[-1].at >= ROOM:
            shown.append(mark)
    return shown
