"""The tables of docs/scaling.md: that the data they stand for is still what the prediction reads."""

from benchmarks.scaling import WAYS, peak
from benchmarks.shapes import SHAPES


def test_a_longer_sample_takes_more_memory():
    model, way = next(iter(SHAPES)), next(iter(WAYS.values()))
    short, long = (peak(model, 1, tokens, **way) for tokens in (1024, 4096))
    assert 0 < short < long
