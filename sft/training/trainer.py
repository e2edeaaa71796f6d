"""TRL's SFTTrainer, with what a recipe promises beyond it.

In: a recipe, a model, packs. Out: a trainer whose warm-up is XTuner's, whose adapter keeps full precision,
and which refuses packs that leak into each other.
"""

import json
import math
import shutil
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from safetensors import SafetensorError
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback
from transformers.integrations import TensorBoardCallback, is_deepspeed_zero3_enabled
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_callback import PrinterCallback, ProgressCallback
from trl import SFTTrainer, get_peft_config

from sft.config.recipe import Recipe
from sft.core.clock import clock
from sft.core.console import say, waiting
from sft.core.errors import RunFailed, UserError, one_line
from sft.core.text import counted
from sft.data.dataset import DatasetCard, keeps_packed_samples_apart, supervised_tokens
from sft.data.encoding import IGNORED
from sft.models import internlm2
from sft.models.adapter import model_fingerprint, write_fingerprint
from sft.models.fused_lora import fuse_lora
from sft.models.loading import preserve_state
from sft.runs import checkpoints
from sft.training.health import Health, highest_rate
from sft.training.memory import usable
from sft.training.packed_attention import attend_over_packs, use_packed_attention
from sft.training.plan import advice_lines
from sft.training.progress import peak_memory
from sft.training.supervised_head import use_masked_lm_head

BETWEEN_LOGS = "between_logs_"


class RecipeTrainer(SFTTrainer):
    """SFTTrainer on packs that are already made, for one recipe."""

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
        self._is_saving, self._save_total_limit = False, recipe.training.save_total_limit
        if recipe.training.use_liger_kernel:
            internlm2.register_with_liger()
        self._health = Health(stops=recipe.run.on_bad_step == "stop")
        # The packs are made and the model is loaded already.
        recipe.training.dataset_kwargs, recipe.training.model_init_kwargs = {"skip_prepare_dataset": True}, None
        super().__init__(
            model=model,
            args=recipe.training,
            train_dataset=packs,
            eval_dataset=held_out,
            processing_class=tokenizer,
            peft_config=get_peft_config(recipe.model),
        )
        if held_out is not None:
            self._held_out_tokens_a_sequence = supervised_tokens(held_out) / len(held_out)
        self._spare_what_is_not_needed()
        for callback in (ProgressCallback, PrinterCallback):
            self.remove_callback(callback)
        if keeps_packed_samples_apart(recipe.training):
            self.add_callback(CheckPackIsolation(self))
        if recipe.training.fp16:
            self.add_callback(CountSkippedSteps(self))
        # At these events callbacks ask and score the model; what else they do there takes next to no time.
        for event in ("on_train_begin", "on_step_end", "on_train_end"):
            call = getattr(self.callback_handler, event)
            setattr(self.callback_handler, event, clock.spent_on("evaluation")(call))
        if recipe.model.use_peft and self.args.should_save:
            self._fingerprint = model_fingerprint(recipe.model.model_name_or_path, recipe.model.model_revision)
        if recipe.model.use_peft and not is_deepspeed_zero3_enabled() and not self.is_fsdp_enabled:
            fuse_lora(self.model)
        if recipe.model.use_peft and not self.is_deepspeed_enabled:
            keep_in_full_precision(self.model)

    @property
    def base(self) -> PreTrainedModel:
        """The model without PEFT's wrapper."""
        return self.model.get_base_model() if self.recipe.model.use_peft else self.model

    @property
    def tensorboard(self) -> TensorBoardCallback | None:
        """The callback that writes TensorBoard events, where `report_to` asks for one."""
        callbacks = self.callback_handler.callbacks
        return next((callback for callback in callbacks if isinstance(callback, TensorBoardCallback)), None)

    @property
    def best_checkpoint(self) -> Path | None:
        """The checkpoint of the best step so far, where anything tells the steps apart."""
        step = self.state.best_global_step
        folder = Path(self.args.output_dir) / f"{checkpoints.PREFIX}{step}"
        return folder if step and folder.is_dir() else None

    @clock.spent_on("training")
    def train(self, resume_from_checkpoint: str | None = None, **kwargs):
        # The Trainer is to delete nothing: it would before a new checkpoint has its name, and the newest at the end.
        self.args.save_total_limit = None
        reading = nullcontext()
        if resume_from_checkpoint:
            self.add_callback(RestoreLogCounters(self, Path(resume_from_checkpoint)))
            reading = checkpoints.read_as_data(resume_from_checkpoint)
        try:
            with reading:
                output = super().train(resume_from_checkpoint, **kwargs)
        finally:
            self.args.save_total_limit = self._save_total_limit
        if not self.state.global_step:
            raise RunFailed("no step was trained, so there is nothing to keep: report this with the recipe")
        return output

    def _spare_what_is_not_needed(self) -> None:
        """Leave out what a step would compute for nothing: pairs of tokens in different samples and, where TRL's head
        does not do so by itself, scores of tokens that carry no loss."""
        if self.args.device.type == "cpu":
            use_masked_lm_head(self.base)
        if keeps_packed_samples_apart(self.args) and not self.accelerator.parallelism_config:
            use_packed_attention(self.base)

    @clock.spent_on("saving")
    def _save_checkpoint(self, *args, **kwargs) -> None:
        """Let every process write its part of the checkpoint aside; then the main one gives it its name.

        Raises:
            RunFailed: a file could not be written; the earlier checkpoints are as they were.
        """
        run, step = Path(self.args.output_dir), self.state.global_step
        self._is_saving = True
        try:
            with waiting(f"step {step}: saving {checkpoints.PREFIX}{step}"):
                super()._save_checkpoint(*args, **kwargs)
                self._finish(checkpoints.staging_dir(run) / f"{checkpoints.PREFIX}{step}")
                self.accelerator.wait_for_everyone()
                if self.is_world_process_zero():
                    self._refuse_missing_parts(checkpoints.staging_dir(run) / f"{checkpoints.PREFIX}{step}")
                    checkpoints.publish(run, step, self.args.world_size, self._inputs)
                    best = [self.best_checkpoint] if self.best_checkpoint else []
                    checkpoints.rotate(run, self._save_total_limit, best)
        except (OSError, RuntimeError, SafetensorError, UserError) as problem:
            if isinstance(problem, RuntimeError) and "inline_container" not in str(problem):
                raise  # not of torch.save, which has no error of its own for a full disk
            raise RunFailed(_unsaved(run, step, problem)) from problem
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
        control = self.state.stateful_callbacks.get("TrainerControl", {}).get("args", {})
        was_stopped_in_time = self.recipe.run.stop_when_identity and control.get("should_training_stop")
        is_over = checkpoint and (self.state.global_step >= max_steps or was_stopped_in_time)
        return (epochs, 0) if is_over else position

    def _finish(self, folder: Path) -> None:
        """Write down what the Trainer does not: what the next log line will be the mean of, each process its own sums.

        Where this checkpoint is the best so far, its state is to name it by the place it will have.
        """
        record = {
            "loss": self._tr_loss.item(),
            "last_logged": self._globalstep_last_logged,
            "metrics": self._metrics["train"],
            "tokens": int(self._total_train_tokens),
        }
        (folder / f"{BETWEEN_LOGS}{self.args.process_index}.json").write_text(json.dumps(record), encoding="utf-8")
        if self.state.best_model_checkpoint == str(folder):
            self.state.best_model_checkpoint = str(Path(self.args.output_dir) / folder.name)
            if self.args.should_save:
                self.state.save_to_json(str(folder / TRAINER_STATE_NAME))

    def create_scheduler(self, num_training_steps: int, optimizer=None):
        """The schedule, with a warm-up ratio rounded down to whole steps as XTuner does.

        Transformers rounds up, which would spend the first steps of a tiny run below the full learning rate.
        """
        if self.args.warmup_steps < 1:
            self.args.warmup_steps = whole_warmup_steps(self.args.warmup_steps, num_training_steps)
        highest = highest_rate(self.args, int(self.args.warmup_steps), num_training_steps)
        self._health.look_at_schedule(self.args.learning_rate, num_training_steps, highest)
        return super().create_scheduler(num_training_steps, optimizer)

    def training_step(self, model, inputs, num_items_in_batch=None) -> torch.Tensor:
        """Forward and backward pass of one batch.

        Raises:
            RunFailed: the memory does not suffice.
        """
        shape = tuple(inputs["input_ids"].shape)
        try:
            return super().training_step(model, inputs, num_items_in_batch)
        except RuntimeError as problem:
            if not is_out_of_memory(problem):
                raise
            raise RunFailed(self._out_of_memory(shape)) from problem

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        found = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        if self.model.training and "labels" in inputs:  # under sequence parallelism each process has a part of them
            self._look_at_loss(found[0] if return_outputs else found, inputs["labels"], num_items_in_batch)
        return found

    def _look_at_loss(self, loss: torch.Tensor, labels: torch.Tensor, items: torch.Tensor | int | None) -> None:
        """Hand on the batch's mean loss; what the Trainer computes is its share in the mean over the whole step."""
        supervised = (labels[:, 1:] != IGNORED).sum()
        whole = supervised if items is None else torch.as_tensor(items, device=loss.device)
        # One wait for the device, not three.
        share, here, all_of_step = torch.stack([loss.detach().float(), supervised.float(), whole.float()]).tolist()
        processes = self.accelerator.num_processes if items is not None else 1
        mean = share * all_of_step / processes / here if here else 0.0
        self._health.look_at_loss(self.state.global_step + 1, mean, int(all_of_step))

    def _get_grad_norm(self, model, grad_norm=None):
        norm = super()._get_grad_norm(model, grad_norm)
        # A step that fp16's scaler leaves out has no norm of its own.
        if norm is not None and not self.accelerator.optimizer_step_was_skipped:
            self._health.look_at_gradients(self.state.global_step + 1, float(norm))
        return norm

    def _out_of_memory(self, shape: tuple[int, ...]) -> str:
        told = (
            f"step {self.state.global_step + 1}: out of memory with a batch of {shape[0]} x {shape[1]:,} tokens, after "
            f"a peak of {peak_memory() / 2**30:.1f} GiB: "
        )
        if self._card and torch.cuda.is_available():
            _, card_bytes = torch.cuda.mem_get_info()
            with suppress(RuntimeError):  # of an architecture whose memory cannot be predicted
                if lines := advice_lines(self.recipe, self._card, usable(card_bytes)):
                    return "\n".join([f"{told}change, the cheapest first, with what it takes then:", *lines])
        return (
            f"{told}set activation_checkpointing: true, then lower per_device_train_batch_size (raise "
            "gradient_accumulation_steps as much) or max_length, then deepspeed: ds_configs/zero2_offload.json"
        )

    def evaluate(self, *args, **kwargs) -> dict[str, float]:
        """The held-out loss, `eval_loss`: the mean over all supervised tokens. Leaves the training as it was."""
        notice = waiting(f"step {self.state.global_step}: computing the held-out loss")
        with clock.spent_on("evaluation"), notice, preserve_state(self.model):
            metrics = super().evaluate(*args, **kwargs)
        self.forget_zero3_trace()
        return metrics

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        """One batch's loss, weighted by its tokens: the Trainer averages batches as if all had the same number."""
        loss, logits, labels = super().prediction_step(model, inputs, prediction_loss_only, ignore_keys)
        return loss * (inputs["labels"] != IGNORED).sum() / self._held_out_tokens_a_sequence, logits, labels

    def _refuse_missing_parts(self, folder: Path) -> None:
        """Raise `RunFailed` where a process has written its part of a checkpoint elsewhere."""
        ranks = range(self.args.world_size)
        if missing := [rank for rank in ranks if not (folder / f"{BETWEEN_LOGS}{rank}.json").is_file()]:
            raise RunFailed(
                f"step {self.state.global_step}: the checkpoint lacks what processes {missing} wrote: put output_dir "
                "on a file system that all machines share, or set save_strategy: no"
            )

    def forget_zero3_trace(self) -> None:
        """Let ZeRO-3 record anew in which order weights are used; called after any forward pass that is not training.

        It fetches weights ahead by the last recorded order. TRL's training pass reads the head's weight directly, where
        answering a prompt runs the head as a module: fetched ahead by that order, the weight is in flight when read.
        """
        if is_deepspeed_zero3_enabled():
            coordinator = self.deepspeed.optimizer.parameter_offload.get_param_coordinator()
            if not coordinator.is_invalid_trace():
                coordinator._invalidate_trace()

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        super()._save(output_dir, state_dict)
        # A pickle of all arguments, tokens for hubs included; nothing here reads it.
        (Path(output_dir or self.args.output_dir) / "training_args.bin").unlink(missing_ok=True)
        if self.recipe.model.use_peft and self.args.should_save:
            write_fingerprint(
                output_dir or self.args.output_dir, self.recipe.model.model_name_or_path, self._fingerprint
            )

    def create_model_card(self, *_, **__) -> None:
        """Nothing: TRL would write a card at every checkpoint; ours is written once, when there are answers to show."""


def keep_in_full_precision(model: torch.nn.Module) -> None:
    """Hold trainable weights in float32; autocast still computes in the recipe's precision.

    TRL stores the adapter of a quantised model in bfloat16, whose 8 bits lose updates of a small learning rate and
    which the fp16 gradient scaler refuses. DeepSpeed keeps float32 masters of its own.
    """
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()


def is_out_of_memory(problem: Exception) -> bool:
    """Whether an accelerator, or a CPU's allocator, which has no error of its own, ran out of memory."""
    return isinstance(problem, torch.OutOfMemoryError) or "can't allocate memory" in str(problem)


def whole_warmup_steps(ratio: float, total_steps: int) -> int:
    """int(ratio * total_steps), safe against 0.03 * 100 being a hair under 3."""
    return math.floor(ratio * total_steps + 1e-9)


class RestoreLogCounters(TrainerCallback):
    """After a resumption, begins the sums of the next log line where the checkpoint had them."""

    def __init__(self, trainer: RecipeTrainer, checkpoint: Path):
        self.trainer = trainer
        path = checkpoint / f"{BETWEEN_LOGS}{trainer.args.process_index}.json"
        self.record = json.loads(path.read_text(encoding="utf-8"))

    def on_train_begin(self, args, state, control, **_):
        trainer = self.trainer
        trainer._tr_loss += self.record["loss"]
        trainer._globalstep_last_logged = self.record["last_logged"]
        trainer._metrics["train"].update(self.record["metrics"])
        trainer._total_train_tokens = self.record["tokens"]


class CountSkippedSteps(TrainerCallback):
    """Says which steps the scaler of fp16 skips because a gradient overflowed, and warns when that goes on."""

    # The scaler begins at 65,536; so many times halved, no sound gradient overflows.
    TOO_MANY = 16

    def __init__(self, trainer: RecipeTrainer):
        self.trainer = trainer
        self.steps = self.skipped = self.in_a_row = 0

    def on_step_end(self, args, state, control, **_):
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
            say(
                f"warning: step {state.global_step}: the last {self.in_a_row} steps were all skipped, so nothing is "
                "learned: use bf16: true in place of fp16, or a lower learning_rate",
                style="yellow",
            )

    def on_train_end(self, args, state, control, **_):
        say(f"fp16: {self.skipped:,} of {counted(self.steps, 'step')} skipped by the loss scaler")


class CheckPackIsolation(TrainerCallback):
    """Before the first step, proves on the real model that packed samples cannot see each other.

    An architecture that does not hand positions down to its attention cannot attend sample by sample: it gets masks.
    """

    def __init__(self, trainer: RecipeTrainer):
        self.trainer = trainer

    def on_train_begin(self, args, state, control, model=None, **_):
        vocabulary = model.config.get_text_config().vocab_size
        leak = packs_leak(model, vocabulary)
        if leak and attend_over_packs(self.trainer.base):
            leak = packs_leak(model, vocabulary)
        self.trainer.forget_zero3_trace()
        if leak:
            raise UserError(
                "packing: with this model and attn_implementation a packed sample sees its neighbour (logits move by "
                f"{leak:.2g}): set attn_implementation to sdpa or flash_attention_2, or packing: false"
            )


def packs_leak(model: torch.nn.Module, vocabulary: int, length: int = 8) -> float:
    """How far the second sample's logits move when only the first sample of its pack is changed; 0.0 is right.

    Two forward passes over `(1, 2 * length)` tokens. Same shapes, same kernels, so any difference is a leak.
    """
    device = next(model.parameters()).device
    first, other, second = (torch.arange(length) * stride + stride for stride in (7, 11, 3))
    positions = torch.arange(length).repeat(2)[None].to(device)
    packs = [torch.cat([start, second])[None].to(device) % vocabulary for start in (first, other)]
    with preserve_state(model):
        logits = [model(input_ids=pack, position_ids=positions, use_cache=False).logits for pack in packs]
    return (logits[0] - logits[1])[:, length:].abs().max().item()


def _unsaved(run: Path, step: int, problem: Exception) -> str:
    """What to tell when a checkpoint could not be written."""
    free = shutil.disk_usage(run).free
    reason = one_line(problem, 160)
    written = sum(file.stat().st_size for file in checkpoints.staging_dir(run).rglob("*") if file.is_file())
    shutil.rmtree(checkpoints.staging_dir(run), ignore_errors=True)
    earlier = checkpoints.in_order(run)
    kept = f"{earlier[-1]} is whole: make room and run the same command to go on from it" if earlier else "make room"
    return (
        f"step {step}: the checkpoint could not be written ({reason}): it needs more than {written / 2**20:,.0f} MiB, "
        f"{free / 2**20:,.0f} MiB were left; {kept}"
    )
