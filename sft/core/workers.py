"""Does one work on item after item in several processes: results in order, bounded memory, no process left behind.

Knows nothing about what the work is.
"""

import gc
import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, TypeVar

from sft.core.errors import UserError

if TYPE_CHECKING:
    from concurrent.futures import Future, ProcessPoolExecutor

Item = TypeVar("Item")
Result = TypeVar("Result")


class ProcessKilled(Exception):
    """A process was killed before its work was done, as happens when memory runs out."""


def in_order(work: Callable[[Item], Result], items: Iterable[Item], processes: int) -> Iterator[Result]:
    """What the work makes of each item, in the order of the items; with one process, of this one.

    Items are asked for no further than two a process ahead of the result that is waited for. Where asking for one
    raises a `UserError`, the results before it come first.

    Raises:
        ProcessKilled: one of the processes was killed.
    """
    return _in_parallel(work, items, processes) if processes > 1 else map(work, items)


def _in_parallel(work: Callable[[Item], Result], items: Iterable[Item], processes: int) -> Iterator[Result]:
    # Imported here: small files, which need no process, do not wait for it.
    from concurrent.futures import ProcessPoolExecutor
    from concurrent.futures.process import BrokenProcessPool

    with ProcessPoolExecutor(processes, initializer=_begin, initargs=(work,)) as pool:
        try:
            for result in _submitted(pool, items, ahead=2 * processes):
                yield result.result()
        except BrokenProcessPool:
            raise ProcessKilled from None
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _submitted(pool: "ProcessPoolExecutor", items: Iterable, ahead: int) -> "Iterator[Future]":
    waiting: deque[Future] = deque()
    try:
        for item in items:
            waiting.append(pool.submit(_do, item))
            if len(waiting) > ahead:
                yield waiting.popleft()
    except UserError:
        # What the items come from cannot be read on from here; a mistake in one before it is reported first.
        yield from waiting
        raise
    yield from waiting


_work: Callable[[Any], Any]


def _begin(work: Callable[[Any], Any]) -> None:
    global _work
    _work = work
    # What came from the main process is shared with it until somebody writes there, as collecting garbage would.
    gc.freeze()
    # Rows and their tokens hold no reference cycles, and to look for some after every 700 objects takes long.
    gc.set_threshold(50_000)
    # An interrupt is the main process's to handle, and when that is killed, nobody else would end this one.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    # As many processes as cores are at it already.
    os.environ["TOKENIZERS_PARALLELISM"] = "false"


def _end_with_parent() -> None:
    if parent := multiprocessing.parent_process():
        parent.join()
        os._exit(1)


def _do(item: Any) -> Any:
    return _work(item)
