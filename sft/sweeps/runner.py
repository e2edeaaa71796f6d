"""Runs `train_sft.py` once for each point of a sweep, as many at a time as there are GPUs, and ends what it started.

In: points, one after the other. Out: each `PointRun` when it has ended, its console output in `<point>.log`. How it
ended is read from the run's own files; the output is only shown. Knows nothing about what a point is for.
"""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Protocol

from sft.core.console import say
from sft.core.paths import REPOSITORY
from sft.runs.checkpoints import latest_valid
from sft.runs.run_files import PLAN, RunResult, read_result
from sft.sweeps import grid
from sft.sweeps.grid import PlannedPoint

SCRIPT = REPOSITORY / "train_sft.py"
GLANCE = 0.2  # seconds between two looks at the running points
GRACE = 10  # seconds a process group has to end by itself
NOTED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

Slot = dict[str, str]  # environment variables that keep a run to its GPU or its share of the cores


class Interruption:
    """Notes SIGINT, SIGTERM and SIGHUP as `signal` instead of dying of them in the middle of something."""

    signal: int | None = None

    def __enter__(self) -> "Interruption":
        # What is ignored was made so on purpose: SIGHUP by nohup, SIGINT by a shell's `&`.
        noted = [number for number in NOTED if signal.getsignal(number) != signal.SIG_IGN]
        self._before = {number: signal.signal(number, self._note) for number in noted}
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, _frame) -> None:
        self.signal = number


def make_slots(jobs: int | None, gpus: list[str]) -> list[Slot]:
    """One slot a job: on a GPU of its own while there are enough, else with its share of the cores.

    `jobs` None stands for one job a GPU, or one on the CPU.
    """
    jobs = jobs or max(len(gpus), 1)
    if gpus:
        return [{"CUDA_VISIBLE_DEVICES": gpus[job % len(gpus)]} for job in range(jobs)]
    if jobs == 1 or "OMP_NUM_THREADS" in os.environ:
        return [{} for _ in range(jobs)]
    return [{"OMP_NUM_THREADS": str(max(len(os.sched_getaffinity(0)) // jobs, 1))} for _ in range(jobs)]


class PointRun:
    """A running `train_sft.py` of one point, in a process group of its own."""

    def __init__(self, point: PlannedPoint, slot: Slot, *, recipe: str, folder: Path, launcher: str, lock: int):
        self.point, self.slot = point, slot
        self.folder = folder / point.name
        self.log = folder / f"{point.name}.log"
        self.was_ended = False
        self.seconds = 0.0
        self._started = time.monotonic()
        self._earlier_plan = self._plan_stamp()
        # A point that was ended resumes from its checkpoint; one whose settings or data changed begins anew.
        checkpoint, _ = latest_valid(self.folder)
        resume = "auto" if checkpoint and checkpoint.inputs == point.inputs else "never"
        arguments = [*grid.arguments_of(point.values), f"--output_dir={self.folder}", f"--resume={resume}"]
        # Beside the run directory: the run moves that aside when it finds an earlier one, whose output stays.
        with open(self.log, "ab") as log:
            self._begin = log.tell()
            self._process = subprocess.Popen(
                [*_launcher(launcher, slot), str(SCRIPT), recipe, *arguments],
                env=os.environ | slot | {"PYTHONUNBUFFERED": "1"},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                # The lock on the sweep's folder is held for as long as any of its runs lives.
                pass_fds=[lock],
            )
        say(f"{point.name}: started; what it says is in {self.log}")

    def has_ended(self) -> bool:
        """Whether its launcher has ended."""
        ended = self._process.poll() is not None
        if ended and not self.seconds:
            self.seconds = time.monotonic() - self._started
        return ended

    @property
    def has_succeeded(self) -> bool:
        """Whether it is done, by its result; a launcher that was killed may have exited with 0."""
        return self._process.returncode == 0 and self.result is not None and self.result.is_done

    @property
    def has_begun(self) -> bool:
        """Whether the run directory is this run's; before it is opened, it may be an earlier one's."""
        return self._plan_stamp() not in (None, self._earlier_plan)

    @property
    def result(self) -> RunResult | None:
        """How the run ended; None where it was killed, or ended before it opened its run directory."""
        return read_result(self.folder) if self.has_begun else None

    def output(self) -> str:
        """What this run printed."""
        with open(self.log, "rb") as log:
            log.seek(self._begin)
            return log.read().decode("utf-8", errors="replace")

    def error(self) -> str:
        """What its result says went wrong; without one its last line that names an error, or else what ended it."""
        result = self.result
        if result and result.message:
            return result.message
        lines = [line.rstrip() for line in self.output().splitlines() if line.strip()]
        # Our own one-line mistakes, then the last line of a traceback; a launcher's words come after both.
        for pattern in (r"train_sft\.py: ", r"(\[rank\d+\]: )?([a-zA-Z_]\w*\.)*[A-Z]\w*(Error|Exception|Interrupt)\b"):
            if matching := [line for line in lines if re.match(pattern, line)]:
                return matching[-1]
        code = self._process.returncode
        # A launcher reports its process's signal as 256 less the signal's number.
        number = -code if code < 0 else 256 - code
        if number in list(signal.Signals):
            memory = ", as happens when memory runs out" if number == signal.SIGKILL else ""
            return f"ended by {signal.Signals(number).name}{memory}"
        return lines[-1] if lines else f"exit code {code} without a word"

    def send(self, number: int) -> None:
        """Send a signal to every process of the group; none may be left."""
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, number)

    def wait(self, seconds: float) -> None:
        """Wait until no process of the group is left, and no longer than so many seconds."""
        deadline = time.monotonic() + seconds
        with suppress(ProcessLookupError):
            while time.monotonic() < deadline:
                self.has_ended()  # takes note of its end, without which it would stay in the group
                os.killpg(self._process.pid, 0)
                time.sleep(GLANCE / 4)

    def _plan_stamp(self) -> tuple[int, int] | None:
        """What tells this run's `plan.json` from an earlier run's; None where there is none."""
        with suppress(FileNotFoundError):
            stat = (self.folder / PLAN).stat()
            return stat.st_ino, stat.st_mtime_ns
        return None


class Search(Protocol):
    """What decides which point is run next, and which run is not worth continuing."""

    def next_point(self) -> PlannedPoint | None:
        """The next point to run; None where no more are to be run."""
        ...

    def is_hopeless(self, run: PointRun) -> bool:
        """Whether a run is to be ended before its last step."""
        ...


def run_all(
    search: Search, start: Callable[[PlannedPoint, Slot], PointRun], free: list[Slot], interruption: Interruption
) -> Iterator[PointRun]:
    """Start points while slots are free and yield each run when it is over; a hopeless one is ended before.

    An interruption, or an exception in the caller, ends all that are running.
    """
    running: list[PointRun] = []
    free = list(free)
    try:
        while True:
            while free and not interruption.signal and (point := search.next_point()):
                running.append(start(point, free.pop(0)))
            if not running:
                return
            for run in [run for run in running if run.has_ended() or search.is_hopeless(run)]:
                if not run.has_ended():
                    end_processes([run])
                running.remove(run)
                free.append(run.slot)
                yield run
            # Asked only now, so that a point that was over when the signal came is not lost.
            if interruption.signal:
                return
            time.sleep(GLANCE)
    finally:
        end_processes(running)


def end_processes(runs: list[PointRun]) -> None:
    """End process groups: with SIGTERM, and what is left of them after a while with SIGKILL."""
    for run in runs:
        run.was_ended = True
        run.send(signal.SIGTERM)
    deadline = time.monotonic() + GRACE
    for run in runs:
        run.wait(max(deadline - time.monotonic(), 0))
        run.send(signal.SIGKILL)
        run.wait(GRACE)


def _launcher(name: str, slot: Slot) -> list[str]:
    if name == "python":
        return [sys.executable]
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    # On a GPU the launcher takes CUDA_VISIBLE_DEVICES for its answer; on a CPU it would start a process a socket.
    alone = [] if "CUDA_VISIBLE_DEVICES" in slot else ["--num_accelerators", "1"]
    return [str(Path(sys.executable).parent / "deepspeed"), "--quiet", "--master_port", str(port), *alone]
