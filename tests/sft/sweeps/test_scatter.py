"""The chart of cost against value: everything in the field, nothing on top of anything else."""

from itertools import pairwise

import pytest

from sft.sweeps import scatter
from sft.sweeps.scatter import Spot


def spots(*places: tuple[float, float], spread: float = 0.0) -> list[Spot]:
    return [
        Spot(str(number), cost, value, spread, is_efficient=number < 3)
        for number, (cost, value) in enumerate(places, start=1)
    ]


def test_dots_lie_in_the_field_dearer_ones_to_the_right_and_better_ones_above():
    chart = scatter.lay_out(spots((10, 0.2), (20, 0.5), (30, 1.0), spread=0.3), str, is_share=True)
    assert [dot.x for dot in chart.dots] == sorted(dot.x for dot in chart.dots)
    assert [dot.y for dot in chart.dots] == sorted((dot.y for dot in chart.dots), reverse=True)
    assert all(scatter.LEFT < dot.x < scatter.RIGHT for dot in chart.dots)
    assert all(scatter.TOP <= dot.y <= scatter.BOTTOM for dot in chart.dots)
    assert all(dot.top < dot.y < dot.bottom for dot in chart.dots)
    assert [tick.text for tick in chart.up][-1] == "100%"


def test_the_line_goes_through_the_efficient_dots_from_cheap_to_dear():
    chart = scatter.lay_out(spots((30, 0.9), (10, 0.2), (20, 0.1)), str, is_share=True)
    first, second, _ = chart.dots
    assert chart.front == f"{second.x},{second.y} {first.x},{first.y}"


def test_points_that_lie_on_each_other_share_a_dot_and_a_label():
    chart = scatter.lay_out(spots((10, 0.5), (20, 0.5), (20, 0.5)), str, is_share=True)
    assert [dot.label for dot in chart.dots] == ["1", "2, 3"]


def test_a_cost_axis_that_spans_much_is_logarithmic_and_marks_the_costs_there_are():
    chart = scatter.lay_out(spots((8, 0.1), (16, 0.2), (32, 0.3), (64, 0.4)), str, is_share=True)
    assert chart.is_logarithmic
    assert [tick.text for tick in chart.across] == ["8", "16", "32", "64"]
    steps = [after.x - before.x for before, after in pairwise(chart.dots)]
    assert steps == pytest.approx([steps[0]] * 3, abs=0.2)
    assert not scatter.lay_out(spots((8, 0.1), (16, 0.2)), str, is_share=True).is_logarithmic


def test_texts_under_the_axis_keep_apart():
    chart = scatter.lay_out(spots(*((100 + number, 0.5) for number in range(50))), str, is_share=True)
    places = [tick.at for tick in chart.across]
    assert all(after - before >= scatter.ROOM for before, after in pairwise(places))


def test_a_single_point_lies_in_the_middle():
    chart = scatter.lay_out(spots((10, 1.5)), str, is_share=False)
    assert chart.dots[0].x == pytest.approx((scatter.LEFT + scatter.RIGHT) / 2, abs=1)
    assert scatter.TOP < chart.dots[0].y < scatter.BOTTOM
