"""What only a GPU needs: what of its memory a run can count on, what makes a run fit, the steps that fp16 skips.

In: a recipe and a size, or the trainer's events. Out: suggestions; lines on the console. What both kinds of machine do,
each in its own way, is not here: attention over packs is in `packed_attention`, predicting memory in `memory`.
"""

import copy
from dataclasses import dataclass
from typing import Any

from transformers import Trainer, TrainerCallback

from sft.config.recipe import Recipe
from sft.core.console import say
from sft.core.finding import Finding
from sft.core.language import Text, _, lines_shown, same
from sft.core.text import counted
from sft.data.dataset_card import DatasetCard
from sft.training.memory import GIB, predict_memory
from sft.training.strategy import offloads_optimizer, zero_config

# Of what torch's allocator held of an H200 when a long sample no longer fitted, 4% to 16% lay in pieces too small for a
# tensor (benchmarks/README.md).
IN_PIECES = 0.1
SMALLEST_RANK = 8


@dataclass(frozen=True)
class Suggestion:
    """Settings to change, on top of those suggested before, and the peak with all of them, in bytes."""

    changes: dict[str, Any]
    peak: int


def usable_bytes(free_bytes: int) -> int:
    """What a run can count on of a GPU's free bytes, since some will lie in pieces too small."""
    return round(free_bytes * (1 - IN_PIECES))


def suggest_changes(recipe: Recipe, card: DatasetCard, available_bytes: int) -> list[Suggestion]:
    """What to change, the cheapest first, until a process fits a GPU of this many bytes.

    Empty where it fits already. Where the last entry's peak is still above `available_bytes`, all of it is not enough.
    Smaller batches with more accumulation learn the same; recomputing activations and optimizer states in RAM
    learn the same more slowly; 4 bits, shorter packs and a lower rank train something else.
    """
    suggestions: list[Suggestion] = []
    peak = predict_memory(recipe, card, on_gpu=True).peak
    while peak > available_bytes:
        # What saves nothing here is skipped: DeepSpeed's own buffers can take more than it saves.
        for changes in _possible_changes(recipe, card):
            changed = _with_changes(recipe, changes)
            lower = predict_memory(changed, card, on_gpu=True).peak
            if lower < peak:
                break
        else:
            break
        recipe, peak = changed, lower
        suggestions.append(Suggestion(changes, peak))
    return suggestions


def suggestion_lines(recipe: Recipe, card: DatasetCard, available_bytes: int) -> list[Text]:
    """What `suggest_changes` finds, a line each: flags, and what a process then takes."""
    lines = []
    for suggestion in suggest_changes(recipe, card, available_bytes):
        flags = " ".join(f"--{key} {str(value).lower()}" for key, value in suggestion.changes.items())
        line = f"{flags}: {suggestion.peak / GIB:.1f} GiB"
        fits = suggestion.peak <= available_bytes
        lines.append(same(line) if fits else _("{change}, not enough yet", change=line))
    return lines


def _possible_changes(recipe: Recipe, card: DatasetCard) -> list[dict[str, Any]]:
    """What can still be changed, the cheapest first."""
    model, training = recipe.model, recipe.training
    zero, batch = zero_config(training), training.per_device_train_batch_size
    changes: list[dict[str, Any]] = []
    if batch > 1:
        accumulated = training.gradient_accumulation_steps * batch
        changes.append({"per_device_train_batch_size": 1, "gradient_accumulation_steps": accumulated})
    if not training.activation_checkpointing:
        changes.append({"activation_checkpointing": True})
    elif not training.activation_offloading:
        changes.append({"activation_offloading": True})
    if model.load_in_4bit and not model.use_bnb_nested_quant:
        changes.append({"use_bnb_nested_quant": True})
    if not training.fsdp and (zero is None or not offloads_optimizer(zero)):
        stage = "zero3_offload" if zero is not None and zero.stage == 3 else "zero2_offload"
        changes.append({"deepspeed": f"ds_configs/{stage}.json"})
    if model.use_peft and not model.load_in_4bit:
        changes.append({"load_in_4bit": True, "load_in_8bit": False, "use_bnb_nested_quant": True})
    if training.packing and training.max_length and training.max_length // 2 >= card.longest_sample:
        changes.append({"max_length": training.max_length // 2})
    if model.use_peft and model.lora_r >= 2 * SMALLEST_RANK:
        # The scale alpha/r stays, so that the learning rate stays right.
        alpha = model.lora_alpha * (0.5**0.5 if model.use_rslora else 0.5)
        changes.append({"lora_r": model.lora_r // 2, "lora_alpha": max(round(alpha), 1)})
    return changes


def _with_changes(recipe: Recipe, changes: dict[str, Any]) -> Recipe:
    changed = copy.copy(recipe)
    changed.model, changed.training = copy.copy(recipe.model), copy.copy(recipe.training)
    for key, value in changes.items():
        setattr(changed.model if hasattr(changed.model, key) else changed.training, key, value)
    return changed


class CountSkippedSteps(TrainerCallback):
    """Reports the steps that fp16's loss scaler skips because a gradient overflowed; warns where it never stops."""

    # The scaler begins at 65,536; so many times halved, no sound gradient overflows.
    TOO_MANY = 16

    def __init__(self, trainer: Trainer):
        self.trainer = trainer
        self.steps = self.skipped = self.in_a_row = 0

    def on_step_end(self, args, state, control, **_):
        """Count the step and whether it was skipped."""
        self.steps += 1
        if not self.trainer.accelerator.optimizer_step_was_skipped:
            self.in_a_row = 0
            return
        self.skipped, self.in_a_row = self.skipped + 1, self.in_a_row + 1
        if self.skipped == 1:
            say(
                f"step {state.global_step}: skipped, since a gradient overflowed fp16 (grad norm inf); the loss scale "
                "is halved, as it is until it fits: no harm while it ends within a few steps"
            )
        if self.in_a_row == self.TOO_MANY:
            wrong = _(
                "step {step:,}: the last {count} steps were all skipped, so nothing is learned",
                step=state.global_step,
                count=self.in_a_row,
            )
            do = _("use bf16: true in place of fp16, or a lower learning_rate")
            say("\n".join(lines_shown(Finding(wrong, do=do).warning())), style="yellow")

    def on_train_end(self, args, state, control, **_):
        """Print how many steps were skipped."""
        say(f"fp16: {self.skipped:,} of {counted(self.steps, 'step')} skipped by the loss scaler")
