"""How a run computes, decided once: whether LoRA is fused, in which precision, what DeepSpeed divides.

In: a recipe's settings. Out: the decisions that the trainer carries out and that the prediction of memory counts with.
Knows nothing about sizes.
"""

from typing import Any

import torch
from transformers import TrainingArguments
from trl import ModelConfig

from sft.config.deepspeed import AUTO, read_config
from sft.core.paths import REPOSITORY


def fuses_lora(model: ModelConfig, zero_stage: int | None, *, is_fsdp: bool) -> bool:
    """Whether LoRA layers compute as `sft.models.fused_lora` has them.

    `zero_stage` is DeepSpeed's, None without DeepSpeed. ZeRO-3 and FSDP divide the parameters that a fused layer needs
    whole.
    """
    return model.use_peft and zero_stage != 3 and not is_fsdp


def holds_adapter_in_float32(model: ModelConfig, training: TrainingArguments, zero_stage: int | None) -> bool:
    """Whether an adapter is held in float32 whatever the base model is in.

    Not where DeepSpeed makes all weights half and keeps float32 masters of its own, nor where ZeRO-3 has divided the
    adapter by then. Full precision under ZeRO-1 and 2 would otherwise cast TRL's bfloat16 adapter at every use.
    """
    return model.use_peft and (zero_stage is None or (zero_stage != 3 and half_precision(training) is None))


def half_precision(training: TrainingArguments) -> torch.dtype | None:
    """The type of mixed precision, None where there is none."""
    return torch.float16 if training.fp16 else torch.bfloat16 if training.bf16 else None


def autocasts(training: TrainingArguments) -> bool:
    """Whether torch's autocast computes in half precision; under DeepSpeed the weights themselves are half."""
    return half_precision(training) is not None and not training.deepspeed


def compute_dtype(training: TrainingArguments, held: torch.dtype) -> torch.dtype:
    """What activations are kept in, for a model held in `held`; under autocast the larger of both."""
    return (half_precision(training) if training.deepspeed else None) or held


def trained_dtype(model: ModelConfig, training: TrainingArguments, held: torch.dtype) -> torch.dtype:
    """What trained weights are held and saved in, for a base model held in `held`.

    TRL keeps adapters of a quantised model in bfloat16 and PEFT those of a half-precision one in float32; the trainer
    makes all of them float32, and DeepSpeed all of them half in mixed precision.
    """
    half = half_precision(training) if training.deepspeed else None
    if half:
        return half
    zero = zero_config(training)
    if holds_adapter_in_float32(model, training, None if zero is None else zero.stage):
        return torch.float32
    if not model.use_peft:
        return held
    return torch.bfloat16 if model.load_in_4bit or model.load_in_8bit else torch.float32


def optimizer_name(training: TrainingArguments) -> str:
    """Such as "adamw_torch_fused"."""
    return str(getattr(training.optim, "value", training.optim))


def zero_config(training: TrainingArguments, hidden_size: int = 1) -> Any:
    """DeepSpeed's own reading of `zero_optimization`, a `DeepSpeedZeroConfig`, or None without DeepSpeed.

    `hidden_size` is the model's, from which Transformers fills in `reduce_bucket_size: auto`.
    """
    if not training.deepspeed:
        return None
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

    config = training.deepspeed
    if isinstance(config, str) and config.startswith("ds_configs/"):
        config = str(REPOSITORY / config)
    section = dict(read_config(config)[0].get("zero_optimization", {}))
    if section.get("reduce_bucket_size") == AUTO:
        section["reduce_bucket_size"] = hidden_size * hidden_size
    return DeepSpeedZeroConfig(**section)


def shares_gradients(training: TrainingArguments, zero: Any, *, on_gpu: bool) -> bool:
    """Whether ZeRO by a `DeepSpeedZeroConfig` brings gradients together, also where one process has them all.

    On a GPU they pass through its buckets all the same: no run on one has shown what it would gain without.
    """
    return on_gpu or training.world_size > 1 or zero.stage != 2 or offloads_optimizer(zero)


def offloads_optimizer(zero: Any) -> bool:
    """Whether a `DeepSpeedZeroConfig` keeps the optimizer's states in RAM."""
    return zero.offload_optimizer is not None and zero.offload_optimizer.device != "none"
