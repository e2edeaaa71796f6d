"""The tensors of a LoRA adapter and their names: in a model that trains, in PEFT's files, and what shapes tell.

In: tensors by name. Out: the same under the names of `adapter_model.safetensors`. Knows nothing about files.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, TypeAlias

from sft.core.errors import UserError

if TYPE_CHECKING:
    import torch

Tensors: TypeAlias = "dict[str, torch.Tensor]"

PREFIX = "base_model.model."
# What PEFT trains, as it names it in a model; XTuner's model has PEFT's one under `llm`.
TRAINED = re.compile(
    rf"(?:llm\.)?({re.escape(PREFIX)}.+)\."
    r"(lora_[AB]|lora_embedding_[AB]|lora_magnitude_vector|trainable_tokens_delta|modules_to_save)\.default(\..+)?"
)
BIAS = re.compile(rf"(?:llm\.)?({re.escape(PREFIX)}.+\.bias)")
FIRST_FACTOR = re.compile(rf"(?:llm\.)?{re.escape(PREFIX)}(.+)\.lora_(?:embedding_)?A(?:\.default)?(?:\.weight)?")


def rename_as_in_files(trained: Tensors, where: object) -> Tensors:
    """Trained tensors under the names that PEFT gives them in a file.

    Raises:
        UserError: a tensor has no place in such a file; names it.
    """
    named: Tensors = {}
    for name, tensor in trained.items():
        if match := TRAINED.fullmatch(name):
            module, kind, leaf = match[1], match[2], match[3] or ""
            if kind == "modules_to_save":
                named[module + leaf] = tensor
            elif kind == "lora_magnitude_vector":
                # PEFT's files keep the name from when this was no module of its own.
                named[f"{module}.{kind}"] = tensor
            else:
                named[f"{module}.{kind}{leaf}"] = tensor
        elif match := BIAS.fullmatch(name):
            named[match[1]] = tensor
        else:
            raise UserError(f"{where}: {name} was trained and has no place in a LoRA adapter: nothing was written")
    if not module_ranks(named):
        raise UserError(f"{where}: holds no LoRA tensors (lora_A): was this model trained with LoRA?")
    return named


def module_ranks(tensors: dict) -> dict[str, int]:
    """The rank of each adapted module by its name in the base model, from anything by tensors' names with a `shape`."""
    matches = {name: FIRST_FACTOR.fullmatch(name) for name in tensors}
    return {match[1]: tensors[name].shape[0] for name, match in matches.items() if match}
