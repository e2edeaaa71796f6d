"""Starts programs in processes of their own and measures them from outside: time, computing time, memory.

Knows nothing about what a program does. Imports no torch by itself: what a child takes is at least what its parent
held when it was started.
"""

import os
import subprocess
import sys
import threading
import time

PREPARED = """
import pathlib, runpy, sys
sys.argv = sys.argv[1:]
sys.path.insert(0, str(pathlib.Path(sys.argv[0]).parent))
{}
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def measure_program(command: list[str], *, exit_code: int = 0) -> tuple[float, float, int]:
    """Seconds a program takes, seconds it computes (not those it waits for the disk), the most bytes of RAM it holds.

    `exit_code` is the one it has to end with; where that is a failure, its error output is not shown.
    """
    # What was written before is still on its way to the disk, and would be paid for here.
    os.sync()
    started = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL if exit_code else None)
    _, status, usage = os.wait4(process.pid, 0)
    if os.waitstatus_to_exitcode(status) != exit_code:
        raise SystemExit(f"failed: {' '.join(command)}")
    return time.perf_counter() - started, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024


def started_after(lines: str, script: str, *arguments: str) -> list[str]:
    """The command that runs some lines of Python, then the script as if it had been started with the arguments."""
    return [sys.executable, "-c", PREPARED.format(lines), script, *arguments]


class CardMemory:
    """Inside, watches how much more of the GPU's memory is taken than before; `peak` has the most, in bytes.

    It looks ten times a second at the card as a whole, so that it measures every program alike: with what the program's
    allocator keeps for later, and CUDA itself.
    """

    def __enter__(self) -> "CardMemory":
        self.peak, self._ended = 0, threading.Event()
        self._before = self._taken()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *_) -> None:
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._ended.wait(0.1):
            self.peak = max(self.peak, self._taken() - self._before)

    def _taken(self) -> int:
        import torch

        free, whole = torch.cuda.mem_get_info()
        return whole - free
