"""Builds beforehand what the stack builds once the model is loaded, so that what it refuses is known by then.

In: parsed training settings and the number of steps. Out: nothing, or a `UserError` with the stack's own reason.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from huggingface_hub import HfApi
from huggingface_hub.errors import HTTPError
from transformers import Trainer, get_scheduler
from transformers.integrations.integration_utils import get_reporting_integration_callbacks
from trl import SFTConfig

from data_tools.errors import UserError


def check_stack(training: SFTConfig, total_steps: int) -> None:
    """Build the optimizer's class, the learning rate's schedule and what reports; ask the hub who pushes to it.

    Raises:
        UserError: one of them cannot be had; names the key.
    """
    with _refused_by("optim", ImportError):
        Trainer.get_optimizer_cls_and_kwargs(training)
    with _refused_by("lr_scheduler_type", ValueError, TypeError):
        _build_schedule(training, total_steps)
    with _refused_by("report_to", ValueError, RuntimeError, ImportError):
        for reporter in get_reporting_integration_callbacks(training.report_to):
            reporter()
    if training.push_to_hub:
        with _refused_by("push_to_hub", OSError, HTTPError):
            HfApi(token=training.hub_token).whoami()


def _build_schedule(training: SFTConfig, total_steps: int) -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(()))], lr=training.learning_rate)
    get_scheduler(
        training.lr_scheduler_type,
        optimizer=optimizer,
        num_warmup_steps=training.get_warmup_steps(total_steps),
        num_training_steps=total_steps,
        scheduler_specific_kwargs=training.lr_scheduler_kwargs,
    )


@contextmanager
def _refused_by(key: str, *kinds: type[Exception]) -> Iterator[None]:
    try:
        yield
    except kinds as problem:
        reason = " ".join(str(problem).split())[:300].rstrip(".")
        raise UserError(f"{key}: {reason}: change it, or leave {key} out") from None
