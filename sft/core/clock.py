"""Where the time of a run goes: every moment belongs to one activity, so that the parts add up to the whole.

In: what is being done. Out: seconds by activity. Knows nothing about how any of it is done.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

ACTIVITIES = ("data", "training", "evaluation", "saving", "other")


class Clock:
    """Runs from when it is made; what nobody claims with `spent_on` is "other". `now` tells the time in seconds."""

    def __init__(self, now: Callable[[], float] = time.perf_counter):
        self._now = now
        self._seconds = dict.fromkeys(ACTIVITIES, 0.0)
        self._activity, self._since = "other", now()

    @contextmanager
    def spent_on(self, activity: str) -> Iterator[None]:
        """Count the time within as the activity's, save what another within it claims; a decorator as well."""
        outer = self._turn_to(activity)
        try:
            yield
        finally:
            self._turn_to(outer)

    def seconds(self) -> dict[str, float]:
        """Seconds of each activity so far, and their sum as `total`."""
        self._turn_to(self._activity)
        parts = {activity: round(seconds, 3) for activity, seconds in self._seconds.items()}
        return parts | {"total": round(sum(parts.values()), 3)}

    def go_on_from(self, earlier: dict[str, float]) -> None:
        """Add what the part of the run before a resumption took, as `seconds` gave it."""
        for activity in ACTIVITIES:
            self._seconds[activity] += earlier.get(activity, 0.0)

    def _turn_to(self, activity: str) -> str:
        """End what is going on now, begin another; returns what ended."""
        ended, now = self._activity, self._now()
        self._seconds[ended] += now - self._since
        self._activity, self._since = activity, now
        return ended


# One for the process, as the console is: a process does one run.
clock = Clock()
