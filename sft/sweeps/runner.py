"""Runs `train_sft.py` once for each point of a sweep, as many at a time as there are GPUs, and ends what it started.

In: points, one after the other. Out: each `PointRun` when it is over, with what it said in `<point>.log`. Knows nothing
about what a point is for or what came out of it.
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
from sft.runs.checkpoints import latest_valid
from sft.sweeps import grid
from sft.sweeps.grid import PlannedPoint

SCRIPT = Path(__file__).resolve().parents[2] / "train_sft.py"
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


def slots(jobs: int | None, gpus: list[str]) -> list[Slot]:
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
        # A point that was ended goes on from its checkpoint; one whose settings or data changed begins anew.
        found, _ = latest_valid(self.folder)
        resume = "auto" if found and found.inputs == point.inputs else "never"
        arguments = [*grid.arguments_of(point.values), f"--output_dir={self.folder}", f"--resume={resume}"]
        # Beside the run directory: the run moves that aside when it finds an earlier one. An earlier run's words stay.
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
        ended = self._process.poll() is not None
        if ended and not self.seconds:
            self.seconds = time.monotonic() - self._started
        return ended

    @property
    def has_succeeded(self) -> bool:
        """Whether it went through to its own last line; a launcher that was killed may have exited with 0."""
        return self._process.returncode == 0 and self.said(r"done: .* holds the ") is not None

    @property
    def has_begun(self) -> bool:
        """Whether the run directory is this run's; before, it may be an earlier one's."""
        return self.trainable_parameters is not None

    @property
    def trainable_parameters(self) -> int | None:
        said = self.said(r"trainable +([\d,]+) of ")
        return int(said[1].replace(",", "")) if said else None

    def output(self) -> str:
        with open(self.log, "rb") as log:
            log.seek(self._begin)
            return log.read().decode("utf-8", errors="replace")

    def said(self, pattern: str) -> re.Match | None:
        """The first of its lines that begins so."""
        return re.search(f"^{pattern}", self.output(), re.MULTILINE)

    def error(self) -> str:
        """Its last line that names an error, or else what ended it."""
        lines = [line.rstrip() for line in self.output().splitlines() if line.strip()]
        # Our own one-line mistakes, then the last line of a traceback; a launcher's words come after both.
        for pattern in (r"train_sft\.py: ", r"(\[rank\d+\]: )?([a-zA-Z_]\w*\.)*[A-Z]\w*(Error|Exception|Interrupt)\b"):
            if found := [line for line in lines if re.match(pattern, line)]:
                return found[-1]
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


class Search(Protocol):
    """What decides which point is run next, and which run is not worth going on with."""

    def next_point(self) -> PlannedPoint | None: ...

    def is_hopeless(self, run: PointRun) -> bool: ...


def run_all(
    search: Search, start: Callable[[PlannedPoint, Slot], PointRun], free: list[Slot], interruption: Interruption
) -> Iterator[PointRun]:
    """Start points while slots are free and yield each run when it is over; a hopeless one is ended before.

    An interruption, or whatever happens to who takes the runs, ends all that are running.
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
