"""What a run will do, known before any weight is loaded: when it evaluates and saves, what memory and disk it takes.

In: a recipe and its dataset card. Out: a `Plan`; warnings; a refusal where the disk cannot hold what will be written.
Knows nothing about how any of it is done.
"""

import math
import shutil
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil
import torch
from transformers import TrainingArguments

from sft.config.deepspeed import check_deepspeed_fits
from sft.config.machine_check import check_liger_fits
from sft.config.recipe import Recipe
from sft.core.errors import UserError
from sft.core.finding import Finding
from sft.core.language import _
from sft.core.text import counted
from sft.data.dataset_card import DatasetCard
from sft.models.meta_model import MetaModel
from sft.training.gpu import suggestion_lines, usable_bytes
from sft.training.memory import GIB, Memory, predict_memory, states_bytes
from sft.training.stack_check import check_stack
from sft.training.strategy import trained_dtype, zero_config

FLOAT32 = 4
SHOWN = 4


@dataclass(frozen=True)
class Disk:
    """Bytes that a run writes into a folder, not counting small files; `at_once` is the most checkpoints at a time."""

    folder: str
    checkpoint: int
    at_once: int
    final: int
    free: int

    @property
    def peak(self) -> int:
        """The most that is there at once."""
        return self.checkpoint * self.at_once + self.final

    @property
    def least(self) -> int:
        """What is needed to end with anything: one checkpoint, if any is written, and the final weights."""
        return self.checkpoint * min(self.at_once, 1) + self.final


@dataclass(frozen=True)
class Plan:
    """What a run will do; steps are optimizer steps, 0 before the first. `memory` is None where it is not predicted."""

    samples: int
    packs: int
    steps_per_epoch: int
    total_steps: int
    evaluations: list[int]
    held_out: list[int]
    saves: list[int]
    save_total_limit: int | None  # None: all stay
    keep_best: str | None
    knows_best: bool
    trainable: int
    parameters: int
    vocabulary: int
    precision: str
    world_size: int
    memory: Memory | None
    card: int | None  # bytes of the GPU that is planned for, where it is not here
    disk: Disk

    def to_dict(self) -> dict:
        """The plan as JSON has it, as `plan.json` holds it; sizes in bytes, with the peaks of memory and disk."""
        plan = asdict(self)
        plan["disk"]["peak"] = self.disk.peak
        if self.memory:
            plan["memory"]["peak"] = self.memory.peak
        return plan

    def lines(self) -> list[str]:
        """The plan as text, one fact a line, without what the dataset card says."""
        best = f"; each best by {self.keep_best} besides" if self.keep_best else ""
        at_once = counted(self.disk.at_once, "checkpoint")
        return [
            f"evaluation     {_at(self.evaluations)}",
            *([f"held-out loss  {_at(self.held_out)}"] if self.held_out else []),
            f"checkpoints    {_at(self.saves)}{best}{self._kept()}",
            f"to train       {self.trainable:,} of {self.parameters:,} parameters"
            f" ({self.trainable / self.parameters:.2%})",
            f"precision      {self.precision}",
            f"memory         {self.memory.line() if self.memory else 'not predicted for this architecture'}",
            *([f"card           {_card_line(self.card, self.memory)}"] if self.card and self.memory else []),
            f"disk           {_size(self.disk.peak)} at most ({at_once} of"
            f" {_size(self.disk.checkpoint)}, final {_size(self.disk.final)}); {_size(self.disk.free)} free",
        ]

    def _kept(self) -> str:
        """Which checkpoints are there at the end; see `checkpoints.rotate`."""
        limit = self.save_total_limit
        if not limit:
            return ""
        if not self.knows_best:
            return f"; the newest {limit} stay" if limit > 1 else "; the newest stays"
        return f"; {limit} stay, the newest and the best among them" if limit > 1 else "; the newest and the best stay"


def make_plan(recipe: Recipe, card: DatasetCard) -> Plan:
    """The plan of a run; a model of its shape is built, without weights.

    Raises:
        UserError: the model's configuration cannot be read, the adapter does not fit it, or DeepSpeed's configuration
            contradicts the recipe, Liger has no kernels for the model, the stack refuses what `check_stack` builds, or
            `early_stopping_patience` could never end the run.
    """
    training, total = recipe.training, card.total_steps
    model = MetaModel.of(recipe.model, training)
    check_deepspeed_fits(training, recipe.chosen.get("deepspeed"), model.text_config, total)
    check_liger_fits(training, model.text_config.model_type)
    if not recipe.run.card:  # what is installed here says nothing of where that card is
        check_stack(training, total, model)
    on_gpu = bool(recipe.run.card) or (torch.accelerator.is_available() and not training.use_cpu)
    try:
        memory = predict_memory(recipe, card, on_gpu=on_gpu, model=model)
    except RuntimeError:
        memory = None
    saves, evaluations = save_steps(training, card), evaluation_steps(recipe, total)
    held_out = _by_strategy(training.eval_strategy, training.eval_steps or training.logging_steps, card)
    _check_patience(recipe.run.early_stopping_patience, len(held_out))
    knows_best = bool(recipe.run.keep_best or training.metric_for_best_model)
    limit = training.save_total_limit if (training.save_total_limit or 0) > 0 else None
    return Plan(
        samples=card.samples,
        packs=card.packs,
        steps_per_epoch=card.steps_per_epoch,
        total_steps=total,
        evaluations=evaluations,
        held_out=held_out,
        saves=saves,
        save_total_limit=limit,
        keep_best=recipe.run.keep_best,
        knows_best=knows_best,
        trainable=model.trainable,
        parameters=model.parameters,
        vocabulary=model.text_config.vocab_size,
        precision=_precision(recipe, model),
        world_size=training.world_size,
        memory=memory,
        card=round(recipe.run.card * GIB) if recipe.run.card else None,
        disk=_disk(recipe, model, _at_once(saves, evaluations if recipe.run.keep_best else [], limit, knows_best)),
    )


def _check_patience(patience: int | None, evaluations: int) -> None:
    if patience and evaluations <= patience:
        raise UserError(
            f"early_stopping_patience: {patience}: the held-out loss is computed {evaluations} times in this run, so "
            "it could never end it: lower it, or compute the loss more often with eval_strategy: steps and eval_steps"
        )


def _at_once(saves: list[int], best: list[int], limit: int | None, knows_best: bool) -> int:
    """The most checkpoints that are there at one time; `best` are the steps that may be saved for being the best."""
    written = len({*saves, *best} - {0})
    # The newest and the best stay whatever the limit is, and a new one is whole before an old one goes.
    return written if limit is None else min(written, max(limit, 1 + knows_best) + 1)


def _precision(recipe: Recipe, model: MetaModel) -> str:
    """What products are computed in and what weights are held in that are not quantised, such as "bfloat16"."""
    training, held = recipe.training, str(model.dtype).removeprefix("torch.")
    computed = "float16" if training.fp16 else "bfloat16" if training.bf16 else held
    return computed if computed == held else f"{computed}; weights {held}"


def evaluation_steps(recipe: Recipe, total: int) -> list[int]:
    """When the evaluation prompts are asked and scores taken: before, every `eval_prompts_steps`, at the end."""
    if not (recipe.run.eval_prompts or recipe.run.identity_name):
        return []
    every = recipe.run.eval_prompts_steps
    return sorted({0, total, *(range(every, total + 1, every) if every else ())})


def save_steps(training: TrainingArguments, card: DatasetCard) -> list[int]:
    """When the Trainer writes a checkpoint, whatever `keep_best` adds; source: its `DefaultFlowCallback`."""
    return _by_strategy(training.save_strategy, training.save_steps, card)


def check_output(recipe: Recipe, plan: Plan) -> list[Finding]:
    """Warnings about where the run will write; nothing is left there.

    Raises:
        UserError: nothing can be written there, or not even one checkpoint and the final weights fit.
    """
    folder, disk = recipe.training.output_dir, plan.disk
    try:
        with tempfile.TemporaryFile(dir=disk.folder):
            pass
    except OSError as problem:
        raise UserError(f"output_dir: {folder}: cannot be written ({problem.strerror}): name another folder") from None
    if disk.free < disk.least:
        raise UserError(
            f"output_dir: {folder}: {_size(disk.free)} are free, and one checkpoint with the final weights takes "
            f"{_size(disk.least)}: make room, or name a folder on another disk"
        )
    if disk.free < disk.peak:
        wrong = _(
            "{folder}: the run writes up to {peak}, and {free} are free",
            folder=folder,
            peak=_size(disk.peak),
            free=_size(disk.free),
        )
        return [Finding(wrong, do=_("make room, or set save_total_limit lower"))]
    return []


def check_memory(recipe: Recipe, card: DatasetCard, plan: Plan, available: int | None = None) -> list[Finding]:
    """Warnings where the memory will not do, with what to change; `available` bytes a process, or what is free now."""
    if plan.memory is None:
        return []
    available = (plan.card or _available(plan.memory)) if available is None else available
    counted_on = usable_bytes(available) if plan.memory.on_gpu else available
    if plan.memory.peak <= counted_on:
        return []
    sizes = {"needed": _size(plan.memory.peak), "available": _size(available)}
    if not plan.memory.on_gpu:
        wrong = _("a process needs {needed} of RAM, and {available} are available", **sizes)
        do = _("close other programs, or lower per_device_train_batch_size or max_length")
        return [Finding(wrong, do=do)]
    wrong = _(
        "a process needs {needed} of GPU memory, and {available} are available, a tenth of which may lie in pieces too "
        "small to use",
        **sizes,
    )
    if changes := suggestion_lines(recipe, card, counted_on):
        return [Finding(wrong, changes, _("apply these changes one after the other until it fits"))]
    return [Finding(wrong, do=_("use a GPU with more memory, or a smaller model"))]


def _by_strategy(strategy, every: float, card: DatasetCard) -> list[int]:
    """The steps of an interval of the Trainer's; below 1 it is a share of all steps, rounded up as the Trainer does."""
    strategy, total = str(getattr(strategy, "value", strategy)), card.total_steps
    if strategy == "epoch":
        return sorted({*range(card.steps_per_epoch, total, card.steps_per_epoch), total})
    if strategy != "steps":
        return []
    every = math.ceil(total * every) if every < 1 else int(every)
    return sorted({*(range(every, total + 1, every) if every else ()), total})


def _disk(recipe: Recipe, model: MetaModel, most: int) -> Disk:
    """`most`: checkpoints that are there at once."""
    training = recipe.training
    folder = Path(training.output_dir).absolute()
    while not folder.exists():
        folder = folder.parent
    return Disk(
        folder=str(folder),
        checkpoint=_checkpoint_bytes(recipe, model),
        at_once=most,
        final=model.trainable * trained_dtype(recipe.model, training, model.dtype).itemsize,
        free=shutil.disk_usage(folder).free,
    )


def _checkpoint_bytes(recipe: Recipe, model: MetaModel) -> int:
    """The trained weights and all that resuming needs; every process's part."""
    training = recipe.training
    size = trained_dtype(recipe.model, training, model.dtype).itemsize
    weights = model.trainable * size
    if training.save_only_model:
        return weights
    zero = zero_config(training)
    if zero is None:
        return round(weights + model.trainable * states_bytes(training, size))
    # DeepSpeed writes the weights once more and float32 masters with their states; of what is frozen it leaves out the
    # parameters, but not a head that shares the embedding's, nor the scales of quantised layers.
    beside = 0
    if recipe.model.use_peft and zero.stage < 3:
        scales = [
            model.bytes_held(weight, model.dtype) - weight.parameters / 2
            for weight in model.weights
            if weight.is_quantised and recipe.model.load_in_4bit
        ]
        head = model.text_config.vocab_size * model.text_config.hidden_size * model.dtype.itemsize
        beside = sum(scales) + head * model.has_tied_head
    return round(2 * weights + model.trainable * (FLOAT32 + states_bytes(training, FLOAT32)) + beside)


def _available(memory: Memory) -> int:
    if memory.on_gpu:
        free, _ = torch.cuda.mem_get_info()
        return free
    return psutil.virtual_memory().available + memory.process


def _card_line(card: int, memory: Memory) -> str:
    spare = card - memory.peak
    return f"{card / GIB:g} GB: {f'{_size(spare)} to spare' if spare >= 0 else f'{_size(-spare)} too small'}"


def _at(steps: list[int]) -> str:
    """How many, and at which steps; "..." stands for the middle of a long list."""
    texts = [f"{step:,}" for step in steps]
    if not texts:
        return "none"
    shown = texts if len(texts) <= SHOWN + 1 else [*texts[: SHOWN - 1], "...", texts[-1]]
    return f"{len(texts)}, at step {', '.join(shown)}"


def _size(size: int) -> str:
    return f"{size / GIB:.1f} GiB" if size >= GIB / 10 else f"{size / 2**20:.0f} MiB"
