"""Ends a run early without losing anything: on a signal, after saving; or where another process no longer moves.

In: SIGTERM, SIGINT or SIGUSR1 to any of the processes, the clock, and the trainer's events as signs of life. Out: a
checkpoint, then `Stopped`; or one line and exit code 3. Knows nothing about how a checkpoint is written.
"""

import faulthandler
import os
import signal
import sys
import threading
import time
from typing import Any

import torch
from transformers import TrainerCallback

from sft.core.console import say
from sft.core.errors import RunFailed, Stopped
from sft.core.exit_codes import FAILED
from sft.core.text import counted
from sft.training.progress import ResultRecorder
from sft.training.trainer import RecipeTrainer

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
# Under a launcher one Ctrl-C reaches a process more than once; a person needs longer than this for a second one.
SAME_KEYPRESS = 1.0  # seconds
# What a process asks for at the end of a step; a signal's number asks to save and stop.
NOTHING, SAVE = 0, 1
# Seconds. Where an operation holds the interpreter lock no thread of ours runs; faulthandler's still ends the process.
LAST_RESORT = 5


class StopAndSave(TrainerCallback):
    """Saves on a signal to any process, or every `save_every_minutes`; added last, and raises `Stopped`."""

    def __init__(self, trainer: RecipeTrainer):
        self.trainer = trainer
        self.minutes = trainer.recipe.run.save_every_minutes
        self._signal: int | None = None
        self._signalled = 0.0
        self._stops = False
        self._saved = time.monotonic()
        self._handlers_before: dict[int, Any] = {}

    def on_train_begin(self, args, state, control, **_):
        """Handle the signals; one that is ignored was made so on purpose, such as SIGINT by a shell's `&`."""
        handled = [number for number in SIGNALS if signal.getsignal(number) != signal.SIG_IGN]
        self._handlers_before = {number: signal.signal(number, self._note_signal) for number in handled}
        self._saved = time.monotonic()

    def on_step_end(self, args, state, control, **_):
        """Ask the trainer to save where any process has a reason to."""
        request = self._request_of_all()
        if request > NOTHING:
            control.should_save = True
        if request > SAVE:
            self._signal, self._stops = request, True

    def on_save(self, args, state, control, **_):
        """Raise `Stopped` where the checkpoint was the last thing to do."""
        self._saved = time.monotonic()
        if self._stops and self._signal:
            if self.trainer.tensorboard and self.trainer.tensorboard.tb_writer:
                self.trainer.tensorboard.tb_writer.flush()
            name = signal.Signals(self._signal).name
            step, steps = state.global_step, counted(state.max_steps, "step")
            advice = "run the same command to resume from it"
            if args.save_only_model:
                advice = "it holds the weights alone (save_only_model), so no run can resume from it"
            raise Stopped(f"stopped by {name}: checkpoint-{step} of {steps} is saved; {advice}")

    def on_train_end(self, args, state, control, **_):
        """Put the earlier signal handlers back."""
        for number, handler in self._handlers_before.items():
            signal.signal(number, handler)

    def _request_of_all(self) -> int:
        """NOTHING, SAVE or a signal's number, the same in every process; all must save the same step."""
        is_time = self.minutes and time.monotonic() - self._saved > self.minutes * 60
        own = self._signal or (SAVE if is_time else NOTHING)
        if self.trainer.accelerator.num_processes == 1:
            return own
        requests = self.trainer.accelerator.gather(torch.tensor([own], device=self.trainer.args.device))
        return int(requests.max())

    def _note_signal(self, number: int, _frame) -> None:
        if self._signal is None:
            self._signal, self._signalled = number, time.monotonic()
            name = signal.Signals(number).name
            say(f"{name}: this step is finished and saved, then the run stops; Ctrl-C once more stops it at once")
        elif number == signal.SIGINT and time.monotonic() - self._signalled > SAME_KEYPRESS:
            # A checkpoint takes its name only when it is whole, so that nothing saved is lost by this.
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)


class Watchdog(TrainerCallback):
    """Ends one process of several that waits for another longer than `ddp_timeout`: one that hangs or has died.

    Most operations between processes time out by themselves; what DeepSpeed does through shared memory on a CPU never
    does.
    """

    def __init__(self, seconds: float, result: ResultRecorder):
        self.seconds = seconds
        self.result = result
        self._last_sign = time.monotonic()
        self._is_watching = False

    def on_train_begin(self, args, state, control, **_):
        """Start to watch, where there are several processes."""
        self._is_watching = args.world_size > 1
        self._note_life()
        if self._is_watching:
            threading.Thread(target=self._watch, daemon=True).start()

    def on_step_begin(self, args, state, control, **_):
        """A sign of life, as are most other events."""
        self._note_life()

    on_substep_end = on_step_end = on_log = on_save = on_evaluate = on_prediction_step = on_step_begin

    def on_train_end(self, args, state, control, **_):
        """Watch no longer."""
        self._is_watching = False
        faulthandler.cancel_dump_traceback_later()

    def _note_life(self) -> None:
        self._last_sign = time.monotonic()
        if self._is_watching:
            faulthandler.dump_traceback_later(self.seconds + LAST_RESORT, exit=True)

    def _watch(self) -> None:
        while self._is_watching:
            time.sleep(min(self.seconds / 10, 1))
            if self._is_watching and time.monotonic() - self._last_sign > self.seconds:
                line = (
                    f"no progress for {self.seconds:g} s (ddp_timeout): another process hangs or has died: see its "
                    "message above; run the same command to resume from the newest checkpoint, if there is one"
                )
                print(f"train_sft.py: {line}", file=sys.stderr, flush=True)
                self.result.record(RunFailed(line))
                os._exit(FAILED)
