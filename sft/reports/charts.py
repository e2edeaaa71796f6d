"""Draws curves as SVG, small enough for half a page and for a phone.

In: named curves of (x, y). Out: an HTML figure with its legend, in the colours of `sft/core/pages/charts.css`; all text
is escaped. Knows nothing about runs.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

WIDTH, HEIGHT = 480, 230
LEFT, RIGHT, TOP, BOTTOM = 58, 24, 26, 30
TICK = 9
# So many points at most of one curve, give or take its ends: more than a chart of this width can show.
POINTS = 300
# A curve of no more points than this shows each of them.
DOTS = 60
COLOURS = 8


@dataclass
class Curve:
    """A name and points by growing x; y is None where it is NaN or infinite, and the curve is broken there."""

    label: str
    points: list[tuple[float, float | None]]


@dataclass
class Mark:
    """Places on the x axis that the chart marks alike: each a tick on the axis, or a line as high as the chart."""

    label: str
    places: Sequence[float]
    is_high: bool = False


@dataclass(frozen=True)
class Scale:
    """Maps values from `low` to `high` onto pixels."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)


def line_chart(
    title: str,
    curves: list[Curve],
    *,
    unit: str = "",
    is_share: bool = False,
    including: tuple[float, ...] = (),
    marks: tuple[Mark, ...] = (),
) -> Markup:
    """A figure of curves over steps; empty where no curve has a point.

    `unit` stands over the y axis, `including` are values that axis must reach, shares are shown in percent.
    """
    curves = [Curve(curve.label, thin_points(curve.points)) for curve in curves]
    drawn = [(x, y) for curve in curves for x, y in curve.points if y is not None]
    if not drawn:
        return Markup()
    rows = axis_ticks(*axis_extent([*(y for _, y in drawn), *including]))
    last = max(1, *(x for curve in curves for x, _ in curve.points), *(x for mark in marks for x in mark.places))
    columns = [tick for tick in axis_ticks(0, last, wanted=6) if tick <= last and tick == int(tick)]
    across = Scale(0, last, LEFT, WIDTH - RIGHT)
    up = Scale(rows[0], rows[-1], HEIGHT - BOTTOM, TOP)
    parts = [*_axes(columns, rows, across, up, unit, is_share)]
    parts += [_mark(mark, x, across) for mark in marks for x in mark.places]
    for index, curve in enumerate(curves):
        parts += _curve(curve, index, across, up, is_share)
    svg = Markup('<svg viewBox="0 0 {} {}" role="img" aria-label="{}">{}</svg>').format(
        WIDTH, HEIGHT, title, Markup("\n").join(parts)
    )
    return Markup("<figure><figcaption>{}{}</figcaption>\n{}</figure>").format(title, _legend(curves, marks), svg)


def thin_points(points: list[tuple[float, float | None]], limit: int = POINTS) -> list[tuple[float, float | None]]:
    """About `limit` of the points at most: the ends, and of each stretch the lowest, the highest and a gap.

    Every spike and every gap stays, which with every n-th point it would not.
    """
    if len(points) <= limit:
        return points
    stretches = limit // 3
    shown = {0, len(points) - 1}
    for stretch in range(stretches):
        indexes = range(len(points) * stretch // stretches, len(points) * (stretch + 1) // stretches)
        by_height = sorted((y, index) for index in indexes if (y := points[index][1]) is not None)
        shown |= {index for _, index in (*by_height[:1], *by_height[-1:])}
        shown |= set([index for index in indexes if points[index][1] is None][:1])
    return [points[index] for index in sorted(shown)]


def axis_extent(values: Iterable[float]) -> tuple[float, float]:
    """The lowest and the highest of at least one value, made to differ."""
    values = list(values)
    low, high = min(values), max(values)
    if high - low > 1e-9 * max(abs(low), abs(high)):
        return low, high
    room = abs(high) / 10 or 1.0
    return low - room, high + room


def axis_ticks(low: float, high: float, wanted: int = 5) -> list[float]:
    """About `wanted` round numbers, 1, 2 or 5 times a power of ten apart, from `low` or below to `high` or above."""
    rough = (high - low) / wanted
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(times * power for times in (1, 2, 5, 10) if times * power >= rough * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [float(f"{multiple * step:.12g}") for multiple in range(first, last + 1)]


def tick_labels(values: list[float], is_share: bool = False) -> list[str]:
    """The numbers as text, all in one form: percent, plain, or with an exponent where they are tiny or huge."""
    if is_share:
        return [f"{value:.0%}" for value in values]
    largest = max(abs(value) for value in values)
    if largest < 0.01 or largest >= 1e6:
        return [_with_exponent(value) for value in values]
    return [f"{value:,.6g}" for value in values]


def _with_exponent(value: float) -> str:
    mantissa, exponent = f"{value:.2e}".split("e")
    return f"{float(mantissa):g}e{int(exponent)}" if value else "0"


def _axes(columns: list[float], rows: list[float], across: Scale, up: Scale, unit: str, is_share: bool):
    for value, label in zip(rows, tick_labels(rows, is_share), strict=True):
        y = up(value)
        yield Markup('<line class="grid" x1="{}" x2="{}" y1="{:.1f}" y2="{:.1f}"/>').format(LEFT, WIDTH - RIGHT, y, y)
        yield _text(LEFT - 8, y + 4, "end", label)
    for value in columns:
        yield _text(across(value), HEIGHT - BOTTOM + 18, "middle", f"{value:,.0f}")
    yield _text(LEFT - 8, HEIGHT - BOTTOM + 18, "end", "step")
    if unit:
        yield _text(4, TOP - 13, "start", unit)


def _mark(mark: Mark, x: float, across: Scale) -> Markup:
    kind, height = ("high", HEIGHT - BOTTOM - TOP) if mark.is_high else ("low", TICK)
    return Markup(
        '<line class="mark {}" x1="{:.1f}" x2="{:.1f}" y1="{}" y2="{}"><title>{}, step {:,.0f}</title></line>'
    ).format(kind, across(x), across(x), HEIGHT - BOTTOM, HEIGHT - BOTTOM - height, mark.label, x)


def _curve(curve: Curve, index: int, across: Scale, up: Scale, is_share: bool):
    colour = f"c{index % COLOURS}"
    path, pen = [], "M"
    for x, y in curve.points:
        if y is not None:
            # Without a line of no length after it, a point between two gaps would not be seen.
            path.append(f"{pen}{across(x):.1f} {up(y):.1f}" + "h0" * (pen == "M"))
        pen = "M" if y is None else "L"
    if path:
        yield Markup('<path class="curve {}" d="{}"/>').format(colour, "".join(path))
    if len(curve.points) <= DOTS:
        for x, y in curve.points:
            if y is not None:
                value = f"{y:.1%}" if is_share else f"{y:.5g}"
                yield Markup(
                    '<circle class="{}" cx="{:.1f}" cy="{:.1f}" r="2.6"><title>{}, step {:,.0f}: {}</title></circle>'
                ).format(colour, across(x), up(y), curve.label, x, value)


def _text(x: float, y: float, anchor: str, text: str) -> Markup:
    return Markup('<text x="{:.1f}" y="{:.1f}" text-anchor="{}">{}</text>').format(x, y, anchor, text)


def _legend(curves: list[Curve], marks: tuple[Mark, ...]) -> Markup:
    """The names of the curves where there are several, and of what is marked."""
    named = [(f"c{index % COLOURS}", curve.label) for index, curve in enumerate(curves) if curve.points]
    entries = named if len(named) > 1 else []
    entries += [("high" if mark.is_high else "low", mark.label) for mark in marks if mark.places]
    return Markup().join(Markup(' <span class="key {}">{}</span>').format(kind, label) for kind, label in entries)
