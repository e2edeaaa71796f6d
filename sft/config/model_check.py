"""Refuses a model folder that is not whole, and settings of it that contradict each other or this machine.

In: a folder, or the settings a person chose. Out: nothing, or one line that says what to do. No weight is loaded.
"""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.compute as compute
import torch
from datasets import Dataset
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
from sft.config.deepspeed import read_config
from sft.core.errors import UserError
from sft.models import internlm2
from sft.models.weight_files import WeightFiles

# What a fast tokenizer is read from, or built from.
TOKENIZERS = ("tokenizer.json", "tokenizer.model", "spiece.model", "vocab.txt", "vocab.json")
FLASH = {
    "flash_attention_2": (is_flash_attn_2_available, "flash-attn"),
    "flash_attention_3": (is_flash_attn_3_available, "flash_attn_3"),
}


def check_model_folder(path: str | Path, *, with_weights: bool = True) -> None:
    """Look through a local model folder: configuration, tokenizer and, unless told not to, every shard there and whole.

    What is no folder here is taken for a hub's id and left to whoever loads it.

    Raises:
        UserError: something is missing, cut short or not readable; names the file.
    """
    folder = Path(path)
    if folder.is_file():
        raise UserError(f"model_name_or_path: {folder}: is a file: name the folder it is in")
    if not folder.is_dir():
        return
    config = folder / "config.json"
    if not config.is_file():
        if (folder / "adapter_config.json").is_file():
            merge = f"python -m model_tools merge BASE {folder} MERGED"
            raise UserError(f"model_name_or_path: {folder}: is an adapter, and a run starts from a model: {merge}")
        raise UserError(f"model_name_or_path: {folder}: holds no config.json: is it a model folder?")
    try:
        read = json.loads(config.read_text(encoding="utf-8"))
    except ValueError as problem:
        raise UserError(f"{config}: not JSON ({problem}): download it again") from None
    if not isinstance(read, dict) or "model_type" not in read:
        raise UserError(f"{config}: has no model_type, so nobody can tell what model it is: download it again")
    if not any((folder / name).is_file() for name in TOKENIZERS):
        raise UserError(f"{folder}: holds no tokenizer (looked for {', '.join(TOKENIZERS)}): download it again")
    if with_weights:
        WeightFiles(folder)


def check_tokens(packs: Dataset, vocabulary: int, model: str) -> None:
    """See that the model has a row for every token of the data.

    Raises:
        UserError: the tokenizer gives tokens that the model does not know.
    """
    largest = compute.max(compute.list_flatten(packs.with_format("arrow")[:]["input_ids"])).as_py()
    if largest >= vocabulary:
        raise UserError(
            f"{model}: its tokenizer gives token {largest:,}, and its weights end at {vocabulary - 1:,}: they are not "
            "of one model: download it again"
        )


def refuse_contradictions(
    chosen: dict[str, Any], refuse: Callable[[str, str], None], *, gpu_has_bf16: bool | None = None
) -> None:
    """Call `refuse(key, problem)`, which raises, for settings that cannot work together or be trained on this machine.

    `chosen` holds the keys a person set. `gpu_has_bf16`: whether this machine's GPU computes in bfloat16, None where
    there is no GPU; left out, the GPU is asked.
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
    _refuse_zero3(chosen, refuse)
    refuse_fsdp(chosen, refuse)


def _refuse_attention(chosen: dict[str, Any], refuse: Callable[[str, str], None]) -> None:
    asked = chosen.get("attn_implementation")
    if asked == "flex_attention" and not torch.accelerator.is_available():
        refuse("attn_implementation", "flex_attention has no backward pass on a CPU; use sdpa")
    if asked and "/" not in asked and asked not in (known := {"eager", *AttentionInterface().valid_keys()}):
        refuse("attn_implementation", f"{asked}: no such attention{did_you_mean(asked, known)}; sdpa is always there")
    if asked not in FLASH:
        return
    is_there, package = FLASH[asked]
    # With the package `kernels`, Transformers fetches a compiled one from the hub instead.
    if not is_there() and not is_kernels_available():
        refuse("attn_implementation", f"{asked} is not installed; pip install {package}, or use sdpa")


def _refuse_kernels(chosen: dict[str, Any], refuse: Callable[[str, str], None]) -> None:
    """Kernels that take the place of a model's own: Liger's, and those that Transformers fetches from the hub."""
    if chosen.get("use_liger_kernel"):
        if not torch.accelerator.is_available():
            refuse("use_liger_kernel", "its kernels run on a GPU, and this machine has none; leave it out")
        if not is_liger_kernel_available():
            refuse("use_liger_kernel", "liger-kernel is not installed; pip install liger-kernel, or leave it out")
    if (chosen.get("model_init_kwargs") or {}).get("use_kernels") and not is_kernels_available():
        wanted = f"'kernels>={KERNELS_MIN_VERSION},<{KERNELS_MAX_VERSION}'"
        refuse("model_init_kwargs", f"use_kernels needs the package kernels; pip install {wanted}, or leave it out")


def check_liger_fits(training: SFTConfig, model_type: str) -> None:
    """See that `use_liger_kernel` would do something: Liger passes over models it does not know without a word.

    Raises:
        UserError: Liger has no kernels for this kind of model.
    """
    if not training.use_liger_kernel or not is_liger_kernel_available():
        return
    if model_type not in internlm2.register_with_liger():
        raise UserError(
            f"use_liger_kernel: Liger has no kernels for {model_type}, so it would change nothing; leave it out"
        )


def _refuse_storage(chosen: dict[str, Any], refuse: Callable[[str, str], None]) -> None:
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


def _refuse_zero3(chosen: dict[str, Any], refuse: Callable[[str, str], None]) -> None:
    """Every quantisation and storage trains under ZeRO-3 (tried with two processes), with DoRA none does.

    TRL keeps DoRA's magnitudes in float32 beside bfloat16 adapters, and ZeRO-3 lays all of them in one buffer.
    """
    quantised = next((key for key in ("load_in_4bit", "load_in_8bit") if chosen.get(key)), None)
    if not (chosen.get("use_dora") and quantised and chosen.get("deepspeed")):
        return
    zero, _ = read_config(chosen["deepspeed"])
    if zero.get("zero_optimization", {}).get("stage") == 3:
        refuse("use_dora", f"does not work with {quantised} under ZeRO-3; use --deepspeed ds_configs/zero2.json")


def refuse_fsdp(chosen: dict[str, Any], refuse: Callable[[str, str], None]) -> None:
    """Where `fsdp` cannot work; accelerate leaves it aside on a CPU without a word (`AcceleratorState`)."""
    if not chosen.get("fsdp"):
        return
    if chosen.get("deepspeed"):
        refuse("fsdp", "a model is divided by one engine; leave out fsdp or deepspeed")
    if "RANK" not in os.environ:
        refuse("fsdp", "needs a launcher; start it with torchrun --nproc_per_node GPUS train_sft.py RECIPE")
    if not torch.accelerator.is_available():
        refuse("fsdp", "divides a model between GPUs, and this machine has none; leave it out")
