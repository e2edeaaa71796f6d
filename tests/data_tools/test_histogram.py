"""Histograms: every value is in one bin, bins are round, bars have the length of their share."""

import pytest

from data_tools.histogram import BAR, bars, histogram


@pytest.mark.parametrize("values", [[5], [0, 0, 7], list(range(1000)), [3, 1_000_000], [17] * 9 + [1801]])
def test_every_value_is_in_one_bin_of_round_width(values):
    bins = histogram(values)
    assert len(bins) <= 12
    assert sum(entry.count for entry in bins) == len(values)
    for entry in bins:
        assert entry.count == sum(entry.low <= value <= entry.high for value in values)
        assert str(entry.high - entry.low + 1).rstrip("0") in ("1", "2", "5")
    assert max(entry.share for entry in bins) == 1


def test_bars_show_the_share_and_never_hide_a_value():
    lines = bars(histogram([1] * 1000 + [2]))
    assert lines[0].count("█") == BAR
    assert "▏" in lines[1]
    assert lines[1].endswith(" 1")
    assert bars(histogram([])) == []
