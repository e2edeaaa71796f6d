"""Builds beforehand what the stack builds once the model is loaded, so that what it refuses is known by then.

In: parsed training settings, the number of steps, the model without weights. Out: nothing, or a `UserError` with the
stack's own reason.
"""

import copy
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from accelerate.utils import TorchDynamoPlugin
from huggingface_hub import HfApi
from huggingface_hub.errors import HTTPError
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader
from transformers import Trainer, get_scheduler
from transformers.integrations.integration_utils import get_reporting_integration_callbacks
from transformers.trainer_optimizer import is_optimizer_factory
from trl import SFTConfig

from sft.core.errors import UserError
from sft.core.text import one_line_message
from sft.models.meta_model import MetaModel

# What choosing and building optimizers, which are many packages' own, may raise.
OF_AN_OPTIMIZER = (ImportError, ValueError, TypeError, AttributeError, NotImplementedError, RuntimeError)


def check_stack(training: SFTConfig, total_steps: int, model: MetaModel) -> None:
    """Build optimizer, schedule, data loader, compiler and what reports; recompute something; ask the hub who pushes.

    Raises:
        UserError: one of them cannot be had; names the key.
    """
    _check_optimizer(training, model)
    with _refused_by(
        "lr_scheduler_kwargs" if training.lr_scheduler_kwargs else "lr_scheduler_type", ValueError, TypeError
    ):
        _check_schedule(training, total_steps)
    with _refused_by("dataloader_num_workers", ValueError):
        DataLoader(
            [0],
            num_workers=training.dataloader_num_workers,
            persistent_workers=training.dataloader_persistent_workers,
            prefetch_factor=training.dataloader_prefetch_factor,
            multiprocessing_context=training.dataloader_multiprocessing_context,
        )
    if training.activation_checkpointing and training.activation_checkpointing_kwargs:
        with _refused_by("activation_checkpointing_kwargs", ValueError, TypeError):
            model.try_checkpointing(training.activation_checkpointing_kwargs)
    if training.torch_compile:
        _check_compiler(training)
    if training.router_aux_loss_coef and not hasattr(model.text_config, "output_router_logits"):
        raise UserError("router_aux_loss_coef: the model is no mixture of experts: leave it out")
    with _refused_by("report_to", ValueError, RuntimeError, ImportError):
        for reporter in get_reporting_integration_callbacks(training.report_to):
            reporter()
    if training.push_to_hub:
        with _refused_by("push_to_hub", OSError, HTTPError):
            HfApi(token=training.hub_token).whoami()


def _check_optimizer(training: SFTConfig, model: MetaModel) -> None:
    """Build the optimizer over one weight, and see that every key that is to shape it does."""
    with _refused_by("optim_args" if training.optim_args else "optim", *OF_AN_OPTIMIZER):
        kind, arguments = Trainer.get_optimizer_cls_and_kwargs(training, model.module)
        # Some are given the weights by their arguments, and choose among them.
        chooses = bool(arguments.keys() & {"params", "model", "optimizer_dict"})
        if not chooses and not is_optimizer_factory(kind):
            kind([torch.nn.Parameter(torch.zeros(1, 1))], **arguments)
    if training.optim_target_modules and not chooses:
        raise UserError(f"optim_target_modules: {training.optim.value} is an optimizer of all weights: leave it out")
    if training.optim_args and not chooses:
        plain = copy.copy(training)
        plain.optim_args = None
        if Trainer.get_optimizer_cls_and_kwargs(plain, model.module)[1] == arguments:
            raise UserError(f"optim_args: would change nothing of {training.optim.value}: leave it out")


def _check_schedule(training: SFTConfig, total_steps: int) -> None:
    """Build the schedule and go its first step."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(()))], lr=training.learning_rate)
    schedule = get_scheduler(
        training.lr_scheduler_type,
        optimizer=optimizer,
        num_warmup_steps=training.get_warmup_steps(total_steps),
        num_training_steps=total_steps,
        scheduler_specific_kwargs=training.lr_scheduler_kwargs,
    )
    if isinstance(schedule, LambdaLR):  # any other waits for the held-out loss
        optimizer.step()
        schedule.step()


def _check_compiler(training: SFTConfig) -> None:
    with _refused_by("torch_compile_backend", ValueError, RuntimeError):
        plugin = TorchDynamoPlugin(backend=training.torch_compile_backend, mode=training.torch_compile_mode)
        torch.compile(torch.nn.Identity(), backend=plugin.to_kwargs()["backend"])
    with _refused_by("torch_compile_mode", RuntimeError):
        torch.compile(torch.nn.Identity(), **plugin.to_kwargs())


@contextmanager
def _refused_by(key: str, *kinds: type[Exception]) -> Iterator[None]:
    try:
        yield
    except kinds as problem:
        reason = one_line_message(problem, 300).rstrip(".")
        raise UserError(f"{key}: {reason}: change it, or leave {key} out") from None
