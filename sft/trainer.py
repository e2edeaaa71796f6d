"""TRL's SFTTrainer, with what a recipe promises beyond it.

In: a recipe, a model, packs. Out: a trainer whose warm-up is XTuner's, whose adapter keeps full precision,
and which refuses packs that leak into each other.
"""

import math

import torch
from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback
from transformers.integrations import TensorBoardCallback, is_deepspeed_zero3_enabled
from transformers.trainer_callback import PrinterCallback, ProgressCallback
from trl import SFTTrainer, get_peft_config

from data_tools.errors import UserError
from sft import fingerprint
from sft.clock import clock
from sft.dataset import IGNORED, supervised_tokens
from sft.model import leaving_no_trace
from sft.recipe import Recipe


class RecipeTrainer(SFTTrainer):
    """SFTTrainer on packs that are already made, for one recipe."""

    def __init__(
        self,
        recipe: Recipe,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        packs: Dataset,
        held_out: Dataset | None = None,
    ):
        self.recipe = recipe
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
        for callback in (ProgressCallback, PrinterCallback):
            self.remove_callback(callback)
        if recipe.training.packing and recipe.training.packing_strategy != "wrapped":
            self.add_callback(RefuseLeakingPacks(self))
        # At these events callbacks ask and score the model; what else they do there takes next to no time.
        for event in ("on_train_begin", "on_step_end", "on_train_end"):
            call = getattr(self.callback_handler, event)
            setattr(self.callback_handler, event, clock.spent_on("evaluation")(call))
        if recipe.model.use_peft and self.args.should_save:
            self._fingerprint = fingerprint.fingerprint(recipe.model.model_name_or_path, recipe.model.model_revision)
        if recipe.model.use_peft and not self.is_deepspeed_enabled:
            _keep_adapter_in_full_precision(self.model)

    @property
    def tensorboard(self) -> TensorBoardCallback | None:
        """The callback that writes TensorBoard events, where `report_to` asks for one."""
        callbacks = self.callback_handler.callbacks
        return next((callback for callback in callbacks if isinstance(callback, TensorBoardCallback)), None)

    @clock.spent_on("training")
    def train(self, *args, **kwargs):
        return super().train(*args, **kwargs)

    @clock.spent_on("saving")
    def _save_checkpoint(self, *args, **kwargs) -> None:
        super()._save_checkpoint(*args, **kwargs)

    def create_scheduler(self, num_training_steps: int, optimizer=None):
        """The schedule, with a warm-up ratio rounded down to whole steps as XTuner does.

        Transformers rounds up, which would spend the first steps of a tiny run below the full learning rate.
        """
        if self.args.warmup_steps < 1:
            self.args.warmup_steps = whole_warmup_steps(self.args.warmup_steps, num_training_steps)
        return super().create_scheduler(num_training_steps, optimizer)

    def evaluate(self, *args, **kwargs) -> dict[str, float]:
        """The held-out loss, `eval_loss`: the mean over all supervised tokens. Leaves the training as it was."""
        with clock.spent_on("evaluation"), leaving_no_trace(self.model):
            metrics = super().evaluate(*args, **kwargs)
        self.forget_zero3_trace()
        return metrics

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
            coordinator = self.deepspeed.optimizer.parameter_offload.get_param_coordinator()
            if not coordinator.is_invalid_trace():
                coordinator._invalidate_trace()

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        super()._save(output_dir, state_dict)
        if self.recipe.model.use_peft and self.args.should_save:
            fingerprint.write(
                output_dir or self.args.output_dir, self.recipe.model.model_name_or_path, self._fingerprint
            )

    def create_model_card(self, *_, **__) -> None:
        """Nothing: TRL would write a card at every checkpoint; ours is written once, when there are answers to show."""


def whole_warmup_steps(ratio: float, total_steps: int) -> int:
    """int(ratio * total_steps), safe against 0.03 * 100 being a hair under 3."""
    return math.floor(ratio * total_steps + 1e-9)


class RefuseLeakingPacks(TrainerCallback):
    """Before the first step, proves on the real model that packed samples cannot see each other."""

    def __init__(self, trainer: RecipeTrainer):
        self.trainer = trainer

    def on_train_begin(self, args, state, control, model=None, **_):
        leak = packs_leak(model, model.config.get_text_config().vocab_size)
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
    with leaving_no_trace(model):
        logits = [model(input_ids=pack, position_ids=positions, use_cache=False).logits for pack in packs]
    return (logits[0] - logits[1])[:, length:].abs().max().item()


def _keep_adapter_in_full_precision(model: torch.nn.Module) -> None:
    """Hold trainable weights in float32; autocast still computes in the recipe's precision.

    TRL stores the adapter of a quantised model in bfloat16, whose 8 bits lose updates of a small learning rate and
    which the fp16 gradient scaler refuses. DeepSpeed keeps float32 masters of its own.
    """
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
