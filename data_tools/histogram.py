"""Counts values in bins of equal, round width and draws them as bars of text."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

BAR = 40


@dataclass
class Bin:
    """Values from `low` to `high`, both included, and the share of the fullest bin that this one holds."""

    low: int
    high: int
    count: int
    share: float


def histogram(values: Sequence[int], bins: int = 12) -> list[Bin]:
    """At most `bins` bins of a width that is 1, 2 or 5 times a power of ten; values that are empty give none."""
    if not values:
        return []
    low, high = min(values), max(values)
    width = next(
        width
        for power in range(12)
        for width in (10**power, 2 * 10**power, 5 * 10**power)
        if high // width - low // width < bins
    )
    counts = Counter(value // width for value in values)
    most = max(counts.values())
    return [
        Bin(place * width, (place + 1) * width - 1, counts[place], counts[place] / most)
        for place in range(low // width, high // width + 1)
    ]


def bars(bins: list[Bin]) -> list[str]:
    """One line a bin: its bounds, a bar, its count; a bin that is not empty shows at least a sliver."""
    wide = max((len(f"{entry.high:,}") for entry in bins), default=0)
    return [
        f"{entry.low:>{wide},} - {entry.high:>{wide},}  {_bar(entry.share):<{BAR}} {entry.count:,}" for entry in bins
    ]


def _bar(share: float) -> str:
    eighths = max(round(share * BAR * 8), 1) if share else 0
    return "█" * (eighths // 8) + " ▏▎▍▌▋▊▉"[eighths % 8].strip()
