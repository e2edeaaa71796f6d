"""Notices within the step that training is broken, explains it, and stops it or warns.

In: each step's loss and gradient norm. Out: `RunFailed`, or one line on the console. Knows nothing about models.
"""

import math
from statistics import median

import torch
from transformers import get_scheduler

from sft.core.console import say
from sft.core.errors import RunFailed
from sft.core.text import counted

LATEST_STEPS = 5
# A loss of so many times that of the first batches, and so many nats above it, is no fluctuation.
EXPLODED_TIMES, EXPLODED_BY = 2.0, 3.0
# A schedule that never comes to this share of its learning rate hardly trains.
RISEN = 0.5


class Health:
    """Looks at every step of one run; with `stops` false it warns of each kind of trouble once, and the run goes on."""

    def __init__(self, stops: bool = True):
        self._stops = stops
        self._losses: list[float] = []
        self._first: float | None = None
        self._told: set[str] = set()

    def look_at_loss(self, step: int, loss: float, supervised: int) -> None:
        """Called before the backward pass, with the batch's mean loss and its number of supervised tokens.

        Raises:
            RunFailed: there is no supervised token, the loss is no number, or it has exploded.
        """
        if not supervised:
            self._tell(
                "no loss",
                f"step {step}: this batch holds no supervised token, so there is nothing to learn from: see its rows: "
                "python -m data_tools preview RECIPE",
            )
        elif not math.isfinite(loss):
            self._tell(
                "no number",
                f"step {step}: the loss is {loss}: lower learning_rate; under fp16 use bf16: true and dtype: bfloat16 "
                "where the card has it",
            )
        else:
            self._look_for_explosion(step, loss)

    def look_at_gradients(self, step: int, norm: float) -> None:
        """Called before the optimizer's step, with the norm over all gradients.

        Raises:
            RunFailed: they are all zero.
        """
        if norm == 0:
            self._tell(
                "no gradient",
                f"step {step}: all gradients are zero, so nothing is learned: is anything trainable, and under fp16, "
                "did the loss underflow? Try bf16: true with dtype: bfloat16",
            )

    def look_at_schedule(self, rate: float, steps: int, highest: float) -> None:
        """Called before the first step, with `learning_rate`, the run's steps and the highest rate it will come to.

        Raises:
            RunFailed: it stays far below what was asked for.
        """
        if highest < RISEN * rate:
            self._tell(
                "no rise",
                f"the learning rate never rises above {highest:.2g} in {counted(steps, 'step')}, "
                f"learning_rate is {rate:.2g}: shorten warmup_steps (below 1 it is a share of the steps)",
            )

    def _look_for_explosion(self, step: int, loss: float) -> None:
        self._losses = [*self._losses[1 - LATEST_STEPS :], loss]
        if len(self._losses) < LATEST_STEPS:
            return
        now = median(self._losses)
        if self._first is None:
            self._first = now
        if now > max(EXPLODED_TIMES * self._first, self._first + EXPLODED_BY):
            self._tell(
                "explosion",
                f"step {step}: the loss has exploded: {now:.2f} lately, {self._first:.2f} at first: lower "
                "learning_rate or max_grad_norm",
            )

    def _tell(self, kind: str, message: str) -> None:
        if self._stops:
            raise RunFailed(f"{message} (on_bad_step: warn goes on all the same)")
        if kind not in self._told:
            self._told.add(kind)
            say(f"{message} (on_bad_step: warn)", style="yellow")


def highest_rate(args, warmup_steps: int, steps: int) -> float:
    """The highest learning rate that a run of so many steps will come to under its training arguments."""
    parameter = torch.nn.Parameter(torch.zeros(()))
    optimizer = torch.optim.SGD([parameter], lr=args.learning_rate)
    schedule = get_scheduler(args.lr_scheduler_type, optimizer, warmup_steps, steps, args.lr_scheduler_kwargs)
    highest = 0.0
    for _ in range(steps):
        highest = max(highest, schedule.get_last_lr()[0])
        if highest >= RISEN * args.learning_rate:
            break
        optimizer.step()
        schedule.step()
    return highest
