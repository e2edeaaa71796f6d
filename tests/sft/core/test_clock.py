"""The clock: every moment belongs to one activity, the innermost that was claimed."""

import pytest

from sft.core.clock import ACTIVITIES, Clock


@pytest.fixture
def watch():
    """A clock whose time passes only when it is told to; returns it and how to tell it."""
    passed = [0.0]

    def wait(seconds: float) -> None:
        passed[0] += seconds

    return Clock(now=lambda: passed[0]), wait


def test_the_innermost_claim_counts_and_the_parts_add_up_to_the_whole(watch):
    clock, wait = watch
    wait(1)
    with clock.spent_on("training"):
        wait(2)
        with clock.spent_on("evaluation"):
            wait(4)
            with clock.spent_on("other"):
                wait(8)
        with clock.spent_on("saving"):
            wait(16)
        wait(32)
    wait(64)
    spent = clock.seconds()
    assert spent == {"data": 0, "training": 34, "evaluation": 4, "saving": 16, "other": 73, "total": 127}
    assert spent["total"] == sum(spent[activity] for activity in ACTIVITIES)


def test_asking_for_the_seconds_stops_nothing_and_a_failure_ends_its_activity(watch):
    clock, wait = watch

    @clock.spent_on("saving")
    def fail():
        wait(1)
        assert clock.seconds()["saving"] == 1
        wait(2)
        raise RuntimeError("disk full")

    with pytest.raises(RuntimeError, match="disk full"):
        fail()
    wait(4)
    assert clock.seconds() == {"data": 0, "training": 0, "evaluation": 0, "saving": 3, "other": 4, "total": 7}


def test_a_resumed_run_adds_to_the_seconds_it_had_spent(watch):
    clock, wait = watch
    wait(1)
    clock.resume_from({"training": 10.0, "data": 2.0, "total": 12.0})
    assert clock.seconds() == {"data": 2, "training": 10, "evaluation": 0, "saving": 0, "other": 1, "total": 13}
