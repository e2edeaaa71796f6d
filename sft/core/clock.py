"""Measures where the time of a run goes: every moment belongs to one activity, so the parts add up to the total.

In: the current activity. Out: seconds by activity. Knows nothing about what an activity does.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

ACTIVITIES = ("data", "training", "evaluation", "saving", "other")


class Clock:
    """Starts when it is made; time outside every `spent_on` counts as "other". `now` returns the time in seconds."""

    def __init__(self, now: Callable[[], float] = time.perf_counter):
        self._now = now
        self._seconds = dict.fromkeys(ACTIVITIES, 0.0)
        self._activity, self._since = "other", now()

    @contextmanager
    def spent_on(self, activity: str) -> Iterator[None]:
        """Count the time inside as this activity's, less what a nested `spent_on` claims; works as a decorator too."""
        outer = self._switch_to(activity)
        try:
            yield
        finally:
            self._switch_to(outer)

    def seconds(self) -> dict[str, float]:
        """Seconds of each activity so far, and their sum as `total`."""
        self._switch_to(self._activity)
        parts = {activity: round(seconds, 3) for activity, seconds in self._seconds.items()}
        return parts | {"total": round(sum(parts.values()), 3)}

    def resume_from(self, earlier: dict[str, float]) -> None:
        """Add the seconds, as `seconds` returned them, that the run had taken before it was resumed."""
        for activity in ACTIVITIES:
            self._seconds[activity] += earlier.get(activity, 0.0)

    def _switch_to(self, activity: str) -> str:
        """End the current activity and begin another; returns the one that ended."""
        ended, now = self._activity, self._now()
        self._seconds[ended] += now - self._since
        self._activity, self._since = activity, now
        return ended


# One per process, like the console: a process does one run.
clock = Clock()
