"""Charts: nothing of a curve is lost, axes have round numbers, and text is only ever text."""

import math
import random
import re
import xml.etree.ElementTree as ElementTree
from itertools import pairwise

import pytest

from sft.core.language import choose_language
from sft.reports.charts import HEIGHT, POINTS, WIDTH, Curve, Mark, axis_ticks, line_chart, thin_points, tick_labels


@pytest.fixture(autouse=True)
def no_choice():
    yield
    choose_language(None)


def curve(*values, label="loss"):
    return Curve(label, list(enumerate(values)))


def drawn(figure, tag):
    """The elements of the figure's SVG with this tag; fails where it is not well-formed."""
    return list(ElementTree.fromstring(str(figure)).iter(tag))


def test_a_thinned_curve_keeps_its_ends_every_spike_and_every_gap():
    dice = random.Random(0)
    points = [(step, dice.random()) for step in range(5000)]
    points[1234], points[3210], points[4000] = (1234, 50.0), (3210, -50.0), (4000, None)
    kept = thin_points(points)
    assert len(kept) <= POINTS + 2
    assert {points[0], points[-1], (1234, 50.0), (3210, -50.0), (4000, None)} <= set(kept)
    assert kept == sorted(kept, key=lambda point: point[0])
    assert set(kept) <= set(points)


def test_a_short_curve_is_drawn_whole():
    points = [(step, float(step)) for step in range(POINTS)]
    assert thin_points(points) == points


@pytest.mark.parametrize(
    ("low", "high"), [(0, 1), (0.47, 3.71), (0, 2e-4), (-3, 7), (1, 1.0001), (0, 1e30), (3000.2, 3050), (0, 3)]
)
def test_ticks_are_few_round_evenly_spaced_and_reach_around_the_values(low, high):
    found = axis_ticks(low, high)
    assert found[0] <= low
    assert found[-1] >= high * (1 - 1e-9)
    assert 3 <= len(found) <= 8
    steps = [after - before for before, after in pairwise(found)]
    assert steps == pytest.approx([steps[0]] * len(steps), rel=1e-6)
    assert float(f"{steps[0]:.6e}"[:8]) in (1, 2, 5)


@pytest.mark.parametrize(
    ("values", "is_share", "labels"),
    [
        ([0, 0.5, 1], True, ["0%", "50%", "100%"]),
        ([0, 5e-5, 1e-4], False, ["0", "5e-5", "1e-4"]),
        ([0, 1.5e-4], False, ["0", "1.5e-4"]),
        ([0, 1000, 2000], False, ["0", "1,000", "2,000"]),
        ([0, 1e30], False, ["0", "1e30"]),
        ([-0.5, 0, 0.5], False, ["-0.5", "0", "0.5"]),
    ],
)
def test_labels_of_one_axis_are_all_in_one_form(values, is_share, labels):
    assert tick_labels(values, is_share) == labels


@pytest.mark.parametrize(
    "values", [(1.0,), (2.0, 2.0, 2.0), (0.0, 0.0), (3.7, 1.2, 0.6), (1e30, 1.0), (-1e-9, 1e-9), (float(10**300), 1.0)]
)
def test_every_point_and_tick_lies_inside_the_picture(values):
    figure = line_chart("loss", [curve(*values)], unit="nats", marks=(Mark("evaluation", [0, 1]),))
    pairs = re.findall(r"[ML]([\d.-]+) ([\d.-]+)", drawn(figure, "path")[0].get("d"))
    places = [(float(x), float(y)) for x, y in pairs]
    assert len(places) == len(values)
    places += [(float(text.get("x")), float(text.get("y"))) for text in drawn(figure, "text")]
    assert all(0 <= x <= WIDTH and 0 <= y <= HEIGHT for x, y in places)


def test_higher_is_higher_and_later_is_further_right():
    figure = line_chart("loss", [curve(3.0, 1.0, 2.0)])
    circles = [(float(dot.get("cx")), float(dot.get("cy"))) for dot in drawn(figure, "circle")]
    assert [x for x, _ in circles] == sorted(x for x, _ in circles)
    assert circles[0][1] < circles[2][1] < circles[1][1]


def test_the_band_under_the_pointer_shows_its_step_and_the_value_of_each_curve():
    choose_language("en")
    figure = line_chart("share", [curve(0.0, 0.5, 1.0, label="a"), curve(1.0, None, 0.0, label="b")], is_share=True)
    bands = [group for group in drawn(figure, "g") if group.get("class") == "at"]
    assert [[text.text for text in band.iter("text")] for band in bands] == [
        ["step 0", "0.0%  a", "100.0%  b"],
        ["step 1", "50.0%  a"],
        ["step 2", "100.0%  a", "0.0%  b"],
    ]
    edges = [(float(band.find("rect").get("x")), float(band.find("rect").get("width"))) for band in bands]
    assert all(before + width == pytest.approx(after, abs=0.11) for (before, width), (after, _) in pairwise(edges))


def test_the_first_and_the_last_step_are_labelled():
    figure = line_chart("loss", [Curve("loss", [(0, 1.0), (171, 2.0)])])
    labels = [text.text for text in drawn(figure, "text") if text.get("text-anchor") == "middle"]
    assert (labels[0], labels[-2]) == ("0", "171")
    assert "160" not in labels  # it would stand on the last one


def test_where_there_is_no_number_the_curve_is_broken_and_a_lone_point_is_still_seen():
    figure = line_chart("loss", [curve(1.0, 2.0, None, 3.0, None, 1.0)])
    path = drawn(figure, "path")[0].get("d")
    assert path.count("M") == path.count("h0") == 3
    assert path.count("L") == 1
    assert len(drawn(figure, "circle")) == 4


@pytest.mark.parametrize("curves", [[], [curve()], [curve(None, None)]])
def test_without_a_number_there_is_no_chart(curves):
    assert line_chart("loss", curves) == ""


def test_a_legend_names_several_curves_and_what_is_marked():
    one = line_chart("loss", [curve(1.0, 2.0)])
    assert [key.text for key in drawn(one, "span")] == [" 1 → 2"]
    marks = (Mark("evaluation", [1]), Mark("best checkpoint", []))
    two = line_chart("loss", [curve(1.0, 2.0), curve(2.0, label="held out")], marks=marks)
    assert [key.text for key in drawn(two, "span")] == ["loss 1 → 2", "held out 2", "evaluation "]
    assert [mark.find("title").text for mark in drawn(two, "line") if "mark" in mark.get("class", "")] == [
        "evaluation 1"
    ]


def test_text_from_outside_is_never_markup():
    hostile = '"><script>alert(1)</script>'
    figure = line_chart(
        hostile, [curve(1.0, label=hostile), curve(2.0, label=hostile)], unit=hostile, marks=(Mark(hostile, [0]),)
    )
    assert drawn(figure, "script") == []
    assert "<script" not in figure
    assert drawn(figure, "svg")[0].get("aria-label") == hostile


def test_a_chart_of_a_long_run_stays_small():
    values = [math.sin(step / 50) for step in range(100_000)]
    assert len(line_chart("loss", [curve(*values)])) < 25_000
