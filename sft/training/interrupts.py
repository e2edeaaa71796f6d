"""Ends a run on request without losing anything: finishes the step, saves, stops. And saves by the clock.

In: SIGTERM, SIGINT or SIGUSR1 to any of the processes. Out: a checkpoint, then `Stopped`. Knows nothing about how a
checkpoint is written.
"""

import os
import signal
import time

import torch
from transformers import TrainerCallback

from sft.core.console import say
from sft.core.errors import Stopped
from sft.core.text import counted
from sft.training.trainer import RecipeTrainer

ASKED_BY = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
# One Ctrl-C reaches a process under a launcher more than once; a person needs longer for a second.
SAME_WISH = 1.0
NOTHING, SAVE = 0, 1


class StopAndSave(TrainerCallback):
    """Saves where a signal came to any process, or `save_every_minutes` are up; added last, and raises `Stopped`."""

    def __init__(self, trainer: RecipeTrainer):
        self.trainer = trainer
        self.minutes = trainer.recipe.run.save_every_minutes
        self._signal: int | None = None
        self._signalled = 0.0
        self._stops = False
        self._saved = time.monotonic()
        self._before: dict[int, object] = {}

    def on_train_begin(self, args, state, control, **_):
        # What is ignored was made so on purpose: SIGINT by a shell's `&`.
        heard = [number for number in ASKED_BY if signal.getsignal(number) != signal.SIG_IGN]
        self._before = {number: signal.signal(number, self._note) for number in heard}
        self._saved = time.monotonic()

    def on_step_end(self, args, state, control, **_):
        wish = self._wish_of_all()
        if wish > NOTHING:
            control.should_save = True
        if wish > SAVE:
            self._signal, self._stops = wish, True

    def on_save(self, args, state, control, **_):
        self._saved = time.monotonic()
        if self._stops:
            if self.trainer.tensorboard and self.trainer.tensorboard.tb_writer:
                self.trainer.tensorboard.tb_writer.flush()
            name = signal.Signals(self._signal).name
            step, steps = state.global_step, counted(state.max_steps, "step")
            way_on = "run the same command to resume from it"
            if args.save_only_model:
                way_on = "it holds the weights alone (save_only_model), so no run can resume from it"
            raise Stopped(f"stopped by {name}: checkpoint-{step} of {steps} is saved; {way_on}")

    def on_train_end(self, args, state, control, **_):
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _wish_of_all(self) -> int:
        """NOTHING, SAVE or a signal's number, the same in every process; all must save the same step."""
        is_time = self.minutes and time.monotonic() - self._saved > self.minutes * 60
        own = self._signal or (SAVE if is_time else NOTHING)
        if self.trainer.accelerator.num_processes == 1:
            return own
        wishes = self.trainer.accelerator.gather(torch.tensor([own], device=self.trainer.args.device))
        return int(wishes.max())

    def _note(self, number: int, _frame) -> None:
        if self._signal is None:
            self._signal, self._signalled = number, time.monotonic()
            name = signal.Signals(number).name
            say(f"{name}: this step is finished and saved, then the run stops; Ctrl-C once more stops it at once")
        elif number == signal.SIGINT and time.monotonic() - self._signalled > SAME_WISH:
            # Checkpoints take their names only when they are whole, so that nothing saved is lost by this.
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
