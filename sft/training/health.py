"""Detects within the step that training is broken, explains it, and stops the run or warns.

In: each step's loss and gradient norm. Out: `RunFailed`, or one line on the console. Knows nothing about models.
"""

import math
from statistics import median
from typing import cast

import torch
from transformers import TrainingArguments, get_scheduler

from sft.core.console import say
from sft.core.errors import RunFailed
from sft.core.text import counted

LATEST_STEPS = 5
# A loss this many times that of the first batches, and this many nats above it, has exploded.
EXPLODED_TIMES, EXPLODED_BY = 2.0, 3.0
# A schedule that never reaches this share of its learning rate hardly trains.
RISEN = 0.5


class Health:
    """Checks every step of one run; with `stops` false it warns of each kind of problem once and the run continues."""

    def __init__(self, stops: bool = True):
        self._stops = stops
        self._losses: list[float] = []
        self._first: float | None = None
        self._reported: set[str] = set()

    def check_loss(self, step: int, loss: float, supervised: int) -> None:
        """Called before the backward pass, with the batch's mean loss and its number of supervised tokens.

        Raises:
            RunFailed: there is no supervised token, the loss is NaN or infinite, or it has exploded.
        """
        if not supervised:
            self._report(
                "no supervised token",
                f"step {step}: this batch holds no supervised token, so there is nothing to learn from: see its rows: "
                "python -m data_tools preview RECIPE",
            )
        elif not math.isfinite(loss):
            self._report(
                "not finite",
                f"step {step}: the loss is {loss}: lower learning_rate; under fp16 use bf16: true and dtype: bfloat16 "
                "where the card has it",
            )
        else:
            self._check_explosion(step, loss)

    def check_gradients(self, step: int, norm: float) -> None:
        """Called before the optimizer's step, with the norm over all gradients.

        Raises:
            RunFailed: they are all zero.
        """
        if norm == 0:
            self._report(
                "no gradient",
                f"step {step}: all gradients are zero, so nothing is learned: is anything trainable, and under fp16, "
                "did the loss underflow? Try bf16: true with dtype: bfloat16",
            )

    def check_schedule(self, rate: float, steps: int, peak: float) -> None:
        """Called before the first step, with `learning_rate`, the run's steps and the highest rate it will reach.

        Raises:
            RunFailed: it stays far below `learning_rate`.
        """
        if peak < RISEN * rate:
            self._report(
                "low rate",
                f"the learning rate never rises above {peak:.2g} in {counted(steps, 'step')}, "
                f"learning_rate is {rate:.2g}: shorten warmup_steps (below 1 it is a share of the steps)",
            )

    def _check_explosion(self, step: int, loss: float) -> None:
        self._losses = [*self._losses[1 - LATEST_STEPS :], loss]
        if len(self._losses) < LATEST_STEPS:
            return
        now = median(self._losses)
        if self._first is None:
            self._first = now
        if now > max(EXPLODED_TIMES * self._first, self._first + EXPLODED_BY):
            self._report(
                "explosion",
                f"step {step}: the loss has exploded: {now:.2f} lately, {self._first:.2f} at first: lower "
                "learning_rate or max_grad_norm",
            )

    def _report(self, kind: str, message: str) -> None:
        if self._stops:
            raise RunFailed(f"{message} (on_bad_step: warn continues anyway)")
        if kind not in self._reported:
            self._reported.add(kind)
            say(f"{message} (on_bad_step: warn)", style="yellow")


def peak_learning_rate(args: TrainingArguments, warmup_steps: int, steps: int) -> float:
    """The highest learning rate of a run of so many steps, or the first that is enough for `Health.check_schedule`."""
    parameter = torch.nn.Parameter(torch.zeros(()))
    optimizer = torch.optim.SGD([parameter], lr=args.learning_rate)
    kwargs = cast(dict | None, args.lr_scheduler_kwargs)
    schedule = get_scheduler(args.lr_scheduler_type, optimizer, warmup_steps, steps, kwargs)
    peak = 0.0
    for _ in range(steps):
        peak = max(peak, schedule.get_last_lr()[0])
        if peak >= RISEN * args.learning_rate:
            break
        optimizer.step()
        schedule.step()
    return peak
