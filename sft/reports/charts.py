"""Draws curves as SVG, small enough for half a page and for a phone; under the pointer it shows their values.

In: named curves of (x, y). Out: an HTML figure with its legend, in the colours of `sft/core/pages/charts.css`; all text
is escaped. Knows nothing about runs.

No charting library: Bokeh and Plotly add 1 to 5 MB of script to a page of 60 KB that is written anew at every
evaluation, and what they would add for a reader is the values under the pointer, which SVG and CSS show as well, also
in print preview, in mail and where scripts are forbidden.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from markupsafe import Markup

from sft.core.language import Text, _

WIDTH, HEIGHT = 480, 244
LEFT, RIGHT, TOP, BOTTOM = 58, 24, 26, 44
TICK = 9
# So many points at most of one curve, give or take its ends: more than a chart of this width can show.
POINTS = 300
# A curve of no more points than this shows each of them.
DOTS = 60
COLOURS = 8
# Places along the x axis at which values are shown under the pointer; height of a line of them.
READOUTS, LINE = 60, 15


@dataclass
class Curve:
    """A name and points by growing x; y is None where it is NaN or infinite, and the curve is broken there."""

    label: str | Text
    points: list[tuple[float, float | None]]


@dataclass
class Mark:
    """Places on the x axis that the chart marks alike: each a tick on the axis, or a line as high as the chart."""

    label: str | Text
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
        """The value's place in pixels."""
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)


def line_chart(
    title: str | Text,
    curves: list[Curve],
    *,
    unit: str | Text = "",
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
    columns = _columns(last)
    across = Scale(0, last, LEFT, WIDTH - RIGHT)
    up = Scale(rows[0], rows[-1], HEIGHT - BOTTOM, TOP)
    parts = [*_axes(columns, rows, across, up, unit, is_share)]
    parts += [_mark(mark, x, across) for mark in marks for x in mark.places]
    for index, curve in enumerate(curves):
        parts += _curve(curve, index, across, up)
    parts += _readouts(curves, across, is_share)
    svg = Markup('<svg viewBox="0 0 {} {}" role="img" aria-label="{}">{}</svg>').format(
        WIDTH, HEIGHT, str(title), Markup("\n").join(parts)
    )
    legend = _legend(curves, marks, is_share)
    return Markup("<figure><figcaption>{}{}</figcaption>\n{}</figure>").format(title, legend, svg)


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


def _columns(last: float) -> list[float]:
    """Where the x axis is labelled: at round numbers, and at the last step, which takes the place of one close by."""
    ticks = [tick for tick in axis_ticks(0, last, wanted=6) if tick == int(tick)]
    room = 0.6 * (ticks[1] - ticks[0]) if len(ticks) > 1 else 0
    return [*(tick for tick in ticks if tick <= last - room), last]


def _with_exponent(value: float) -> str:
    mantissa, exponent = f"{value:.2e}".split("e")
    return f"{float(mantissa):g}e{int(exponent)}" if value else "0"


def _axes(columns: list[float], rows: list[float], across: Scale, up: Scale, unit: str | Text, is_share: bool):
    for value, label in zip(rows, tick_labels(rows, is_share), strict=True):
        y = up(value)
        yield Markup('<line class="grid" x1="{}" x2="{}" y1="{:.1f}" y2="{:.1f}"/>').format(LEFT, WIDTH - RIGHT, y, y)
        yield _text(LEFT - 8, y + 4, "end", label)
    for value in columns:
        yield _text(across(value), HEIGHT - BOTTOM + 18, "middle", f"{value:,.0f}")
    yield _text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 6, "middle", _("step"))
    if unit:
        yield _text(4, TOP - 13, "start", unit)


def _mark(mark: Mark, x: float, across: Scale) -> Markup:
    kind, height = ("high", HEIGHT - BOTTOM - TOP) if mark.is_high else ("low", TICK)
    return Markup('<line class="mark {}" x1="{:.1f}" x2="{:.1f}" y1="{}" y2="{}"><title>{}</title></line>').format(
        kind, across(x), across(x), HEIGHT - BOTTOM, HEIGHT - BOTTOM - height, f"{mark.label} {x:,.0f}"
    )


def _curve(curve: Curve, index: int, across: Scale, up: Scale):
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
                yield Markup('<circle class="{}" cx="{:.1f}" cy="{:.1f}" r="2.6"/>').format(colour, across(x), up(y))


def _readouts(curves: list[Curve], across: Scale, is_share: bool) -> Iterator[Markup]:
    """Bands side by side over the chart; the one under the pointer shows its step and the values there."""
    places = sorted({x for curve in curves for x, y in curve.points if y is not None})
    places = (
        [places[index * len(places) // READOUTS] for index in range(READOUTS)] if len(places) > READOUTS else places
    )
    edges = [LEFT, *(across((one + next_one) / 2) for one, next_one in pairwise(places)), WIDTH - RIGHT]
    for place, (left, right) in zip(places, pairwise(edges), strict=True):
        at = across(place)
        is_left = at < (LEFT + WIDTH - RIGHT) / 2
        lines = [("", f"{_('step')} {place:,.0f}")]
        for index, curve in enumerate(curves):
            near = next((y for x, y in curve.points if y is not None and left <= across(x) <= right), None)
            if near is not None:
                lines.append((f"c{index % COLOURS}", f"{_value(near, is_share)}  {curve.label}"))
        side, anchor = (at + 8, "start") if is_left else (at - 8, "end")
        spans = Markup().join(
            Markup('<text class="{}" x="{:.1f}" y="{}" text-anchor="{}">{}</text>').format(
                kind, side, TOP + 10 + LINE * row, anchor, words
            )
            for row, (kind, words) in enumerate(lines)
        )
        yield Markup(
            '<g class="at"><rect x="{:.1f}" y="{}" width="{:.1f}" height="{}"/>'
            '<g><line x1="{:.1f}" x2="{:.1f}" y1="{}" y2="{}"/>{}</g></g>'
        ).format(left, TOP, right - left, HEIGHT - BOTTOM - TOP, at, at, TOP, HEIGHT - BOTTOM, spans)


def _value(value: float, is_share: bool) -> str:
    return f"{value:.1%}" if is_share else f"{value:.5g}"


def _text(x: float, y: float, anchor: str, text: str | Text) -> Markup:
    return Markup('<text x="{:.1f}" y="{:.1f}" text-anchor="{}">{}</text>').format(x, y, anchor, str(text))


def _legend(curves: list[Curve], marks: tuple[Mark, ...], is_share: bool) -> Markup:
    """The curves with their first and last values, by name where there are several, and what is marked."""
    entries: list[tuple[str, str | Text, str]] = []
    for index, curve in enumerate(curves):
        values = [_value(y, is_share) for _x, y in curve.points if y is not None]
        if values:
            ends = values[0] if len(values) == 1 else f"{values[0]} → {values[-1]}"
            entries.append((f"c{index % COLOURS}", curve.label if len(curves) > 1 else "", ends))
    entries += [("high" if mark.is_high else "low", mark.label, "") for mark in marks if mark.places]
    return Markup().join(
        Markup(' <span class="key {}">{} {}</span>').format(kind, label, ends) for kind, label, ends in entries
    )
