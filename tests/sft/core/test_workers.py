"""Work in several processes: results in order, however long each takes; nothing is asked for too early."""

import os
import signal
import time
from collections.abc import Callable

import psutil
import pytest

from sft.core.errors import UserError
from sft.core.workers import ProcessKilled, in_order


@pytest.fixture
def no_process_is_left() -> Callable[[], bool]:
    """Whether what was started since has ended; other tests may have left a server behind."""
    before = set(psutil.Process().children())
    return lambda: not psutil.wait_procs(set(psutil.Process().children()) - before, timeout=10)[1]


def slow_square(number: int) -> int:
    time.sleep(0.02 * (number % 3))
    return number**2


@pytest.mark.parametrize("processes", [1, 2, 3])
def test_results_come_in_the_order_of_the_items(processes):
    assert list(in_order(slow_square, range(20), processes)) == [number**2 for number in range(20)]


def test_items_are_asked_for_no_further_than_two_a_process_ahead(no_process_is_left):
    asked = []
    results = in_order(slow_square, (asked.append(number) or number for number in range(100)), 2)
    assert [next(results) for _ in range(10)][-1] == 81
    assert len(asked) == 14
    results.close()
    assert no_process_is_left()


@pytest.mark.parametrize("processes", [1, 2])
def test_results_come_before_the_place_where_the_items_break_off(processes):
    def items():
        yield from range(3)
        raise UserError("cut short")

    results = in_order(slow_square, items(), processes)
    assert [next(results) for _ in range(3)] == [0, 1, 4]
    with pytest.raises(UserError, match="cut short"):
        next(results)


def refuse_three(number: int) -> int:
    if number == 3:
        raise UserError("three")
    return number


@pytest.mark.parametrize("processes", [1, 2])
def test_a_mistake_in_an_item_comes_at_its_turn(processes, no_process_is_left):
    results = in_order(refuse_three, range(6), processes)
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(UserError, match="three"):
        next(results)
    assert no_process_is_left()


def kill_itself(number: int) -> int:
    if number == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return number


def test_a_process_that_is_killed_is_noticed(no_process_is_left):
    with pytest.raises(ProcessKilled):
        list(in_order(kill_itself, range(10), 2))
    assert no_process_is_left()
