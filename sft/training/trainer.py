"""TRL's SFTTrainer, with what a recipe promises beyond it.

In: a recipe, a model, packs. Out: a trainer whose warm-up is XTuner's, whose adapter keeps full precision,
and which refuses packs that leak into each other. The recipe stays as it was.
"""

import copy
import math
from contextlib import AbstractContextManager, nullcontext, suppress
from pathlib import Path
from typing import Any, cast

import torch
from datasets import Dataset
from peft import PeftModel
from safetensors import SafetensorError
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerState
from transformers.integrations import TensorBoardCallback, is_deepspeed_zero3_enabled
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_callback import PrinterCallback, ProgressCallback
from trl import SFTConfig, SFTTrainer, get_peft_config

from sft.config.recipe import Recipe, keeps_packed_samples_apart
from sft.core.clock import clock
from sft.core.console import waiting
from sft.core.errors import RunFailed, UserError
from sft.data.counts import supervised_tokens
from sft.data.dataset_card import DatasetCard
from sft.data.labels import IGNORED
from sft.data.questions import system_to_ask_with
from sft.models import internlm2
from sft.models.adapter import model_fingerprint, write_fingerprint, write_system_message
from sft.models.fused_lora import fuse_lora
from sft.models.model_state import preserve_state
from sft.models.precision import hold_in_float32
from sft.runs import checkpoints
from sft.training.callbacks import (
    CheckPackIsolation,
    EarlyStopping,
    RestoreLogCounters,
    check_all_wrote,
    write_log_counters,
)
from sft.training.cpu import leave_gradients_in_place, use_masked_lm_head
from sft.training.gpu import CountSkippedSteps, suggest_changes, suggestion_lines, usable_bytes
from sft.training.health import Health, peak_learning_rate
from sft.training.memory import peak_memory
from sft.training.needed_tokens import NeededTokens, can_leave_tokens_out, compute_needed_tokens
from sft.training.packed_attention import attends_by_sample, use_packed_attention
from sft.training.strategy import fuses_lora, holds_adapter_in_float32, shares_gradients, zero_config


class RecipeTrainer(SFTTrainer):
    """SFTTrainer on packs that are already made, for one recipe; `args` are a copy of the recipe's."""

    args: SFTConfig
    model: PreTrainedModel | PeftModel
    processing_class: PreTrainedTokenizerBase

    def __init__(
        self,
        recipe: Recipe,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        packs: Dataset,
        held_out: Dataset | None = None,
        inputs: dict[str, Any] | None = None,
        card: DatasetCard | None = None,
    ):
        """`inputs`, what decides how the run comes out, are kept in its checkpoints; `card` is that of the packs."""
        self.recipe = recipe
        self._card = card
        self._inputs = inputs or {}
        self._is_saving = False
        if recipe.training.use_liger_kernel:
            internlm2.register_with_liger()
        self._health = Health(stops=recipe.run.on_bad_step == "stop")
        super().__init__(
            model=model,
            args=own_arguments(recipe.training),
            train_dataset=packs,
            eval_dataset=held_out,
            processing_class=tokenizer,
            peft_config=get_peft_config(recipe.model),
        )
        if held_out is not None:
            self._held_out_tokens_a_sequence = supervised_tokens(held_out) / len(held_out)
        self._prepare_model()
        self._add_and_remove_callbacks()
        if recipe.model.use_peft and self.args.should_save:
            self._fingerprint = model_fingerprint(self._base_name, recipe.model.model_revision)

    def _prepare_model(self) -> None:
        """Avoid work without effect: attention between samples, PEFT's copies of LoRA outputs and, on a CPU, logits of
        tokens that carry no loss; and hold the adapter in float32."""
        if self.args.device.type == "cpu":
            use_masked_lm_head(self.base)
        by_sample = attends_by_sample(self.args) and use_packed_attention(self.base)
        if by_sample and can_leave_tokens_out(self.args, self.model, on_gpu=self.args.device.type != "cpu"):
            compute_needed_tokens(self.base)
            self.data_collator = NeededTokens(self.data_collator)
        plugin = self.args.deepspeed_plugin
        zero_stage = plugin.zero_stage if plugin else None
        if fuses_lora(self.recipe.model, zero_stage, is_fsdp=self.is_fsdp_enabled):
            fuse_lora(self.model)
        if holds_adapter_in_float32(self.recipe.model, self.args, zero_stage):
            hold_in_float32(self.model)

    def _prepare_for_training(self, *args, **kwargs):
        prepared = super()._prepare_for_training(*args, **kwargs)
        on_gpu = self.args.device.type != "cpu"
        if self.deepspeed and not shares_gradients(self.args, zero_config(self.args), on_gpu=on_gpu):
            leave_gradients_in_place(self.deepspeed.optimizer)
        return prepared

    def _add_and_remove_callbacks(self) -> None:
        for callback in (ProgressCallback, PrinterCallback):
            self.remove_callback(callback)
        if keeps_packed_samples_apart(self.args):
            self.add_callback(CheckPackIsolation(self.base, self.forget_zero3_trace, self.data_collator))
        if self.args.fp16:
            self.add_callback(CountSkippedSteps(self))
        if patience := self.recipe.run.early_stopping_patience:
            self.add_callback(EarlyStopping(patience))
        # At these events callbacks ask and score the model; what else they do there takes next to no time.
        for event in ("on_train_begin", "on_step_end", "on_train_end"):
            call = getattr(self.callback_handler, event)
            setattr(self.callback_handler, event, clock.spent_on("evaluation")(call))

    @property
    def base(self) -> PreTrainedModel:
        """The model without PEFT's wrapper."""
        model = self.model.get_base_model() if isinstance(self.model, PeftModel) else self.model
        return cast(PreTrainedModel, model)

    @property
    def _base_name(self) -> str:
        return cast(str, self.recipe.model.model_name_or_path)

    @property
    def run_directory(self) -> Path:
        """Where the run writes."""
        return Path(cast(str, self.args.output_dir))

    @property
    def tensorboard(self) -> TensorBoardCallback | None:
        """The callback that writes TensorBoard events, where `report_to` asks for one."""
        callbacks = self.callback_handler.callbacks
        return next((callback for callback in callbacks if isinstance(callback, TensorBoardCallback)), None)

    @property
    def best_checkpoint(self) -> Path | None:
        """The checkpoint of the best step so far, where anything tells the steps apart."""
        step = self.state.best_global_step
        folder = self.run_directory / f"{checkpoints.PREFIX}{step}"
        return folder if step and folder.is_dir() else None

    @clock.spent_on("training")
    def train(self, resume_from_checkpoint: str | None = None, **kwargs):  # type: ignore[override]
        """Train to the end, from the folder of a checkpoint where one is given.

        Raises:
            RunFailed: no step was trained, or one of those that were showed a problem.
            UserError: a packed sample sees its neighbour.
        """
        reading: AbstractContextManager = nullcontext()
        if resume_from_checkpoint:
            self.add_callback(RestoreLogCounters(self, Path(resume_from_checkpoint)))
            reading = checkpoints.read_as_data(resume_from_checkpoint)
        with reading:
            output = super().train(resume_from_checkpoint, **kwargs)
        if not self.state.global_step:
            raise RunFailed("no step was trained, so there is nothing to keep: report this with the recipe")
        return output

    @clock.spent_on("saving")
    def _save_checkpoint(self, *args, **kwargs) -> None:
        """Let every process write its part of the checkpoint to a staging folder, which the main one then publishes.

        Raises:
            RunFailed: a file could not be written; the earlier checkpoints are as they were.
        """
        run, step = self.run_directory, self.state.global_step
        staged = checkpoints.staging_dir(run) / f"{checkpoints.PREFIX}{step}"
        self._is_saving = True
        try:
            with waiting(f"step {step}: saving {checkpoints.PREFIX}{step}"):
                super()._save_checkpoint(*args, **kwargs)
                write_log_counters(self, staged)
                self._name_best_checkpoint(staged)
                self.accelerator.wait_for_everyone()
                if self.is_world_process_zero():
                    check_all_wrote(staged, self.args.world_size, step)
                    checkpoints.publish(run, step, self.args.world_size, self._inputs)
                    best = [self.best_checkpoint] if self.best_checkpoint else []
                    checkpoints.rotate(run, self.recipe.training.save_total_limit, best)
        except (OSError, RuntimeError, SafetensorError, UserError) as problem:
            if isinstance(problem, RuntimeError) and "inline_container" not in str(problem):
                raise  # not of torch.save, which has no error of its own for a full disk
            raise RunFailed(checkpoints.abandon(run, step, problem)) from problem
        finally:
            self._is_saving = False
        self.accelerator.wait_for_everyone()

    def _get_output_dir(self, trial) -> str:
        folder = super()._get_output_dir(trial)
        return str(checkpoints.staging_dir(Path(folder))) if self._is_saving else folder

    def _init_training_state(self, max_steps, steps_per_epoch, epochs, checkpoint, trial) -> tuple[int, int]:
        """(whole epochs done, batches done in the next); a run that was over when it was saved has all behind it.

        Transformers would take one more step before it looks.
        """
        position = super()._init_training_state(max_steps, steps_per_epoch, epochs, checkpoint, trial)
        callbacks = cast(dict, self.state.stateful_callbacks)
        control = callbacks.get("TrainerControl", {}).get("args", {})
        may_stop_early = self.recipe.run.stop_when_identity or self.recipe.run.early_stopping_patience
        was_stopped_early = False
        if may_stop_early and checkpoint and control.get("should_training_stop"):
            # At its last step a run stops too; if it is given more steps now, it was not stopped early.
            saved = TrainerState.load_from_json(str(Path(checkpoint) / TRAINER_STATE_NAME))
            was_stopped_early = self.state.global_step < saved.max_steps
        is_over = checkpoint and (self.state.global_step >= max_steps or was_stopped_early)
        return (epochs, 0) if is_over else position

    def _name_best_checkpoint(self, staged: Path) -> None:
        """Where the staged checkpoint is the best so far, let its state name it by the place it will have."""
        if self.state.best_model_checkpoint == str(staged):
            self.state.best_model_checkpoint = str(self.run_directory / staged.name)
            if self.args.should_save:
                self.state.save_to_json(str(staged / TRAINER_STATE_NAME))

    def create_scheduler(self, num_training_steps: int, optimizer=None):
        """The schedule, with a warm-up ratio rounded down to whole steps as XTuner does.

        Transformers rounds up, which would spend the first steps of a tiny run below the full learning rate.
        """
        warmup = self.recipe.training.warmup_steps
        self.args.warmup_steps = whole_warmup_steps(warmup, num_training_steps) if warmup < 1 else warmup
        highest = peak_learning_rate(self.args, int(self.args.warmup_steps), num_training_steps)
        self._health.check_schedule(self.args.learning_rate, num_training_steps, highest)
        return super().create_scheduler(num_training_steps, optimizer)

    def training_step(self, model, inputs, num_items_in_batch=None) -> torch.Tensor:
        """Forward and backward pass of one batch.

        Raises:
            RunFailed: out of memory.
        """
        shape = tuple(inputs["input_ids"].shape)
        try:
            return super().training_step(model, inputs, num_items_in_batch)
        except RuntimeError as problem:
            if not is_out_of_memory(problem):
                raise
            raise RunFailed(self._out_of_memory(shape)) from problem

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """The batch's part of the step's loss, checked while training; with `return_outputs` the model's output too.

        Raises:
            RunFailed: as `Health.check_loss`.
        """
        result = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        if self.model.training and "labels" in inputs:  # under sequence parallelism each process has a part of them
            self._check_loss(result[0] if return_outputs else result, inputs["labels"], num_items_in_batch)
        return result

    def _check_loss(self, loss: torch.Tensor, labels: torch.Tensor, items: torch.Tensor | int | None) -> None:
        """Check the batch's mean loss; what the Trainer computes is its part of the mean over the whole step."""
        supervised = (labels[:, 1:] != IGNORED).sum()
        whole = supervised if items is None else torch.as_tensor(items, device=loss.device)
        # One wait for the device, not three.
        part, here, all_of_step = torch.stack([loss.detach().float(), supervised.float(), whole.float()]).tolist()
        processes = self.accelerator.num_processes if items is not None else 1
        mean = part * all_of_step / processes / here if here else 0.0
        self._health.check_loss(self.state.global_step + 1, mean, int(all_of_step))

    def _get_grad_norm(self, model, grad_norm=None):
        norm = super()._get_grad_norm(model, grad_norm)
        # A step that fp16's scaler skips has no norm of its own.
        if norm is not None and not self.accelerator.optimizer_step_was_skipped:
            self._health.check_gradients(self.state.global_step + 1, float(norm))
        return norm

    def _out_of_memory(self, shape: tuple[int, ...]) -> str:
        problem = (
            f"step {self.state.global_step + 1}: out of memory with a batch of {shape[0]} x {shape[1]:,} tokens, after "
            f"a peak of {peak_memory() / 2**30:.1f} GiB: "
        )
        if self._card and torch.cuda.is_available():
            _, card_bytes = torch.cuda.mem_get_info()
            with suppress(RuntimeError):  # of an architecture whose memory cannot be predicted
                usable = usable_bytes(card_bytes)
                if suggestions := suggest_changes(self.recipe, self._card, usable):
                    changes = [f"         {line.en}" for line in suggestion_lines(suggestions, usable)]
                    return "\n".join([f"{problem}change, the cheapest first, with what it takes then:", *changes])
        return (
            f"{problem}set activation_checkpointing: true, then lower per_device_train_batch_size (raise "
            "gradient_accumulation_steps as much) or max_length, then deepspeed: ds_configs/zero2_offload.json"
        )

    def evaluate(self, *args, **kwargs) -> dict[str, float]:
        """The held-out loss, `eval_loss`: the mean over all supervised tokens. Leaves the training as it was."""
        notice = waiting(f"step {self.state.global_step}: computing the held-out loss")
        with clock.spent_on("evaluation"), notice, preserve_state(self.model):
            metrics = super().evaluate(*args, **kwargs)
        self.forget_zero3_trace()
        return metrics

    @property
    def asked_system(self) -> str | None:
        """The system message before what the model is asked: the recipe's, else the one that every row begins with."""
        shared = self._card.system_message if self._card else None
        return system_to_ask_with(self.recipe.run.eval_prompts_system, shared)

    def log_scores(self, scores: dict[str, float]) -> None:
        """Hand numbers of an evaluation to every tracker; the next line of the training's own log stays as it was."""
        should_log = self.control.should_log
        # Not TRL's `log`, which would begin its means over the steps anew.
        super(SFTTrainer, self).log(scores)
        self.control.should_log = should_log

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        """One batch's loss, weighted by its tokens: the Trainer averages batches as if all had the same number."""
        loss, logits, labels = super().prediction_step(model, inputs, prediction_loss_only, ignore_keys)
        return loss * (inputs["labels"] != IGNORED).sum() / self._held_out_tokens_a_sequence, logits, labels

    def forget_zero3_trace(self) -> None:
        """Let ZeRO-3 record anew in which order weights are used; called after any forward pass that is not training.

        It fetches weights ahead by the last recorded order. TRL's training pass reads the head's weight directly, where
        answering a prompt runs the head as a module: fetched ahead by that order, the weight is in flight when read.
        """
        if is_deepspeed_zero3_enabled():
            engine: Any = self.deepspeed
            coordinator = engine.optimizer.parameter_offload.get_param_coordinator()
            if not coordinator.is_invalid_trace():
                coordinator._invalidate_trace()

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Write the model, or the adapter, and the tokenizer.

        To save an adapter, accelerate copies all weights into RAM under DeepSpeed, and gathers all under FSDP2. Where
        no weight is divided, the adapter is there to be read; of those that are, what is trained is enough.
        """
        is_adapter = isinstance(self.model, PeftModel)
        is_divided = is_deepspeed_zero3_enabled() or (self.deepspeed and "tensor_parallel" in self.deepspeed.config)
        if is_adapter and self.is_deepspeed_enabled and not is_divided:
            self._save(output_dir)
        elif is_adapter and self.is_fsdp_enabled:
            options = StateDictOptions(full_state_dict=True, cpu_offload=True, ignore_frozen_params=True)
            self._save(output_dir, get_model_state_dict(self.model, options=options))
        else:
            super().save_model(output_dir, _internal_call)
            return
        if self.args.push_to_hub and not _internal_call:
            self.push_to_hub(commit_message="Model save", revision=self.args.hub_revision)

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        super()._save(output_dir, state_dict)
        # A pickle of all arguments, tokens for hubs included; nothing here reads it.
        (Path(output_dir or self.run_directory) / "training_args.bin").unlink(missing_ok=True)
        if self.recipe.model.use_peft and self.args.should_save:
            write_fingerprint(output_dir or self.run_directory, self._base_name, self._fingerprint)
        if self._card and self._card.system_message and self.args.should_save:
            write_system_message(output_dir or self.run_directory, self._card.system_message)

    def create_model_card(self, *_, **__) -> None:
        """Nothing: TRL would write a card at every checkpoint; ours is written once, when there are answers to show."""


def own_arguments(training: SFTConfig) -> SFTConfig:
    """A copy of a recipe's arguments and their dictionaries, for a trainer and the stack to change.

    With it the Trainer prepares no packs, loads no model and deletes no checkpoint: it would delete one before the new
    one has its name, and at the end the newest. `dataclasses.replace` would open process groups in `__post_init__`.
    """
    args = copy.copy(training)
    vars(args).update({key: dict(value) for key, value in vars(args).items() if type(value) is dict})
    args.dataset_kwargs, args.model_init_kwargs = {"skip_prepare_dataset": True}, None
    args.save_total_limit = None
    return args


def is_out_of_memory(problem: Exception) -> bool:
    """Whether an accelerator, or a CPU's allocator, which has no error of its own, ran out of memory."""
    return isinstance(problem, torch.OutOfMemoryError) or "can't allocate memory" in str(problem)


def whole_warmup_steps(ratio: float, total_steps: int) -> int:
    """int(ratio * total_steps), safe against 0.03 * 100 being a hair under 3."""
    return math.floor(ratio * total_steps + 1e-9)
