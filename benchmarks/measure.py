"""Measures a program in a process of its own."""

import os
import subprocess
import time


def measure(command: list[str], *, exit_code: int = 0) -> tuple[float, float, int]:
    """Seconds a program takes, seconds it computes (waiting for the disk is none), the most bytes of RAM it holds.

    `exit_code` is the one it has to end with; where that is a failure, what it says of it is not shown.
    """
    # What was written before is still on its way to the disk, and would be paid for here.
    os.sync()
    started = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL if exit_code else None)
    _, status, usage = os.wait4(process.pid, 0)
    if os.waitstatus_to_exitcode(status) != exit_code:
        raise SystemExit(f"failed: {' '.join(command)}")
    return time.perf_counter() - started, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024
