"""Completes settings for this machine, and refuses those that it cannot train or that contradict each other.

In: the settings a person chose. Out: the same with this CPU's precision, or one line that says what to do. Asks torch,
Transformers and DeepSpeed what is here; loads no weight.
"""

import os
from dataclasses import replace
from typing import Any

import torch
from transformers import AttentionInterface
from transformers.utils import (
    is_flash_attn_2_available,
    is_flash_attn_3_available,
    is_kernels_available,
    is_liger_kernel_available,
)
from transformers.utils.import_utils import KERNELS_MAX_VERSION, KERNELS_MIN_VERSION
from trl import SFTConfig

from sft.config.aliases import did_you_mean
from sft.config.deepspeed import check_deepspeed, config_source
from sft.config.settings import Settings
from sft.config.settings_check import Refusal
from sft.core.errors import UserError
from sft.models import internlm2, precision

FLASH = {
    "flash_attention_2": (is_flash_attn_2_available, "flash-attn"),
    "flash_attention_3": (is_flash_attn_3_available, "flash_attn_3"),
}
GPU_ELSEWHERE = "; to plan for a GPU that is not here: --dry_run --card 24"


def settings_for_this_machine(settings: Settings) -> Settings:
    """The settings with the precision of this CPU where none was chosen; as they are where nothing will be trained.

    Raises:
        UserError: they cannot be trained on this machine or contradict each other, or DeepSpeed does not take its
            configuration; names the file, line and key.
    """
    if not settings.for_training:
        return settings
    chosen, has_gpu = settings.chosen, bool(torch.accelerator.is_available() or settings.chosen.get("card"))
    if not has_gpu and not chosen.keys() & precision.KEYS:
        chosen = chosen | precision.of_this_cpu(use_peft=bool(chosen.get("use_peft")))
    if settings.deepspeed:
        try:
            check_deepspeed(settings.deepspeed, config_source(chosen["deepspeed"]))
        except UserError as problem:
            settings.refuse("deepspeed", str(problem).removeprefix("deepspeed: "))
    if not has_gpu and chosen.get("fp16"):
        settings.refuse(
            "fp16",
            "needs a GPU and this machine has none; use --fp16 false --bf16 true --dtype bfloat16" + GPU_ELSEWHERE,
        )
    if not has_gpu and chosen.get("activation_offloading"):
        settings.refuse(
            "activation_offloading",
            "moves what a GPU keeps to RAM, and this machine has no GPU; leave it out" + GPU_ELSEWHERE,
        )
    zero = (settings.deepspeed or {}).get("zero_optimization", {})
    refuse_contradictions(chosen, settings.refuse, zero_stage=zero.get("stage", 0))
    return replace(settings, chosen=chosen)


def refuse_contradictions(
    chosen: dict[str, Any], refuse: Refusal, *, zero_stage: int = 0, gpu_has_bf16: bool | None = None
) -> None:
    """Call `refuse(key, problem)`, which raises, for settings that cannot work together or be trained on this machine.

    `chosen` holds the keys a person set. `zero_stage`: of the DeepSpeed configuration, 0 without one. `gpu_has_bf16`:
    whether this machine's GPU computes in bfloat16; None asks the GPU, if there is one.
    """
    if gpu_has_bf16 is None and torch.cuda.is_available() and not chosen.get("card"):
        gpu_has_bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
    fp16, dtype = chosen.get("fp16"), chosen.get("dtype", "float32")
    # TRL trains in bf16 where neither is chosen.
    bf16 = chosen.get("bf16", not fp16)
    if bf16 and gpu_has_bf16 is False:
        key = "bf16" if "bf16" in chosen else "fp16"
        refuse(key, "this GPU has no bfloat16; use --bf16 false --fp16 true --dtype float16")
    if fp16 and dtype == "bfloat16":
        refuse("dtype", "bfloat16 weights under fp16: true; use --dtype float16, or --fp16 false --bf16 true")
    if bf16 and dtype == "float16":
        key = "dtype" if "bf16" in chosen else "bf16"
        refuse(key, "float16 weights under bf16: true; use --dtype bfloat16, or --bf16 false --fp16 true")
    if fp16 and dtype == "float16" and not chosen.get("use_peft") and not chosen.get("deepspeed"):
        # torch/amp/grad_scaler.py: "Attempting to unscale FP16 gradients".
        refuse("dtype", "weights that are trained themselves cannot be float16 under fp16: true; use --dtype float32")
    if not chosen.get("card"):  # what is installed here says nothing of where that card is
        _refuse_attention(chosen, refuse)
        _refuse_kernels(chosen, refuse)
    if chosen.get("padding_free") and not chosen.get("packing") and chosen.get("max_length", 1) is not None:
        refuse("padding_free", "without packing TRL holds nothing to max_length; add packing: true or max_length: null")
    _refuse_storage(chosen, refuse)
    _refuse_zero3(chosen, zero_stage, refuse)
    refuse_fsdp(chosen, refuse)


def _refuse_attention(chosen: dict[str, Any], refuse: Refusal) -> None:
    attention = chosen.get("attn_implementation")
    if attention == "flex_attention" and not torch.accelerator.is_available():
        refuse("attn_implementation", "flex_attention has no backward pass on a CPU; use sdpa")
    names = {"eager", *AttentionInterface().valid_keys()}
    if attention and "/" not in attention and attention not in names:
        advice = did_you_mean(attention, names)
        refuse("attn_implementation", f"{attention}: no such attention{advice}; sdpa is always there")
    if attention not in FLASH:
        return
    is_there, package = FLASH[attention]
    # With the package `kernels`, Transformers fetches a compiled one from the hub instead.
    if not is_there() and not is_kernels_available():
        refuse("attn_implementation", f"{attention} is not installed; pip install {package}, or use sdpa")


def _refuse_kernels(chosen: dict[str, Any], refuse: Refusal) -> None:
    """Kernels that take the place of a model's own: Liger's, and those that Transformers fetches from the hub."""
    if chosen.get("use_liger_kernel"):
        if not torch.accelerator.is_available():
            refuse("use_liger_kernel", "its kernels run on a GPU, and this machine has none; leave it out")
        if not is_liger_kernel_available():
            refuse("use_liger_kernel", "liger-kernel is not installed; pip install liger-kernel, or leave it out")
    if (chosen.get("model_init_kwargs") or {}).get("use_kernels") and not is_kernels_available():
        wanted = f"'kernels>={KERNELS_MIN_VERSION},<{KERNELS_MAX_VERSION}'"
        refuse("model_init_kwargs", f"use_kernels needs the package kernels; pip install {wanted}, or leave it out")


def _refuse_storage(chosen: dict[str, Any], refuse: Refusal) -> None:
    """4-bit weights kept in a floating type that is not the one trained in, to which DeepSpeed and FSDP cast weights.

    Of numbers that are no numbers but packed bytes, a cast leaves nothing.
    """
    storage = str(chosen.get("bnb_4bit_quant_storage"))
    if not (chosen.get("load_in_4bit") and storage.startswith(("float", "bfloat"))):
        return
    engine = next((name for key, name in (("deepspeed", "DeepSpeed"), ("fsdp", "FSDP")) if chosen.get(key)), None)
    fp16 = chosen.get("fp16")
    trained_in = "float16" if fp16 else "bfloat16" if chosen.get("bf16", not fp16) else "float32"
    if engine and storage != trained_in:
        refuse(
            "bnb_4bit_quant_storage",
            f"{storage} in a run in {trained_in}: {engine} would cast the packed weights as if they were numbers and "
            f"destroy them; write {trained_in}, or leave it out",
        )


def _refuse_zero3(chosen: dict[str, Any], zero_stage: int, refuse: Refusal) -> None:
    """Every quantisation and storage trains under ZeRO-3 (tried with two processes), with DoRA none does.

    TRL keeps DoRA's magnitudes in float32 beside bfloat16 adapters, and ZeRO-3 lays all of them in one buffer.
    """
    quantised = next((key for key in ("load_in_4bit", "load_in_8bit") if chosen.get(key)), None)
    if chosen.get("use_dora") and quantised and zero_stage == 3:
        refuse("use_dora", f"does not work with {quantised} under ZeRO-3; use --deepspeed ds_configs/zero2.json")


def refuse_fsdp(chosen: dict[str, Any], refuse: Refusal) -> None:
    """Call `refuse(key, problem)` where `fsdp` cannot work; accelerate ignores it on a CPU (`AcceleratorState`)."""
    if not chosen.get("fsdp"):
        return
    if chosen.get("deepspeed"):
        refuse("fsdp", "a model is divided by one engine; leave out fsdp or deepspeed")
    if "RANK" not in os.environ:
        refuse("fsdp", "needs a launcher; start it with torchrun --nproc_per_node GPUS train_sft.py RECIPE")
    if not torch.accelerator.is_available():
        refuse("fsdp", "divides a model between GPUs, and this machine has none; leave it out")


def check_liger_fits(training: SFTConfig, model_type: str) -> None:
    """See that `use_liger_kernel` would do something: Liger ignores models that it does not know.

    Raises:
        UserError: Liger has no kernels for this kind of model.
    """
    if not training.use_liger_kernel or not is_liger_kernel_available():
        return
    if model_type not in internlm2.register_with_liger():
        raise UserError(
            f"use_liger_kernel: Liger has no kernels for {model_type}, so it would change nothing; leave it out"
        )
