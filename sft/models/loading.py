"""Loads what is trained: the tokenizer and the model, quantised and adapted as the recipe says.

The one way in for every script; what only a model needs is imported when one is loaded. Knows nothing about data or
training.
"""

from __future__ import annotations

from datetime import date
from pathlib import Path
from pickle import UnpicklingError
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from transformers import AutoTokenizer, PreTrainedConfig, PreTrainedTokenizerBase
from transformers.utils import cached_file

from sft.core.errors import UserError
from sft.core.text import one_line_message
from sft.models import hub
from sft.models.adapter import scale_line
from sft.models.chat_template import KWARGS
from sft.models.model_folder import require_model

if TYPE_CHECKING:
    from transformers import BitsAndBytesConfig, PreTrainedModel
    from trl import ModelConfig


def load_tokenizer(
    folder: str,
    *,
    revision: str = "main",
    trust_remote_code: bool = False,
    chat_template_path: str | None = None,
    chat_template_kwargs: dict[str, Any] | None = None,
    chat_template_date: date | None = None,
    pad_token: str | None = None,
) -> PreTrainedTokenizerBase:
    """The tokenizer of a model folder or hub id, with a pad token and, if a path is given, another chat template.

    `chat_template_kwargs` win over those that the folder brings, and are saved with the tokenizer; a template that asks
    for today's date is told `chat_template_date`. InternLM2's tokenizer is built from its `tokenizer.model`.

    Raises:
        UserError: there is no such model, its tokenizer is damaged or not a fast one, or has no such pad token.
    """
    require_model(folder, revision, with_weights=False)
    try:
        with hub.downloading(folder):
            tokenizer = _internlm2_tokenizer(folder, revision, is_published=not trust_remote_code)
            if tokenizer is None:
                tokenizer = AutoTokenizer.from_pretrained(
                    folder, revision=revision, trust_remote_code=trust_remote_code
                )
    except (OSError, ValueError) as problem:
        if (Path(folder) / "config.json").is_file():
            reason = one_line_message(problem, 200)
            raise UserError(f"{folder}: its tokenizer cannot be loaded ({reason}): copy its files again") from None
        raise UserError(_cannot_load(folder, problem)) from None
    if not tokenizer.is_fast:
        raise UserError(
            f"{folder}: has no fast tokenizer, and only that says where in a text a token stands: use a model with "
            "a tokenizer.json"
        )
    if pad_token and pad_token not in tokenizer.get_vocab():
        raise UserError(f"pad_token: {pad_token}: the tokenizer has no such token: leave it out")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    if chat_template_path:
        tokenizer.chat_template = Path(chat_template_path).read_text(encoding="utf-8")
    if chat_template_kwargs is not None:
        tokenizer.init_kwargs[KWARGS] = chat_template_kwargs
    if chat_template_date:
        tokenizer.chat_template_date = chat_template_date
    return tokenizer


def _internlm2_tokenizer(folder: str, revision: str, *, is_published: bool) -> PreTrainedTokenizerBase | None:
    """The tokenizer of an InternLM2 folder or hub id if it is as published; None for any other.

    Transformers then knows InternLM2, so that it looks for no remote code.
    """
    lookup = {"revision": revision, "_raise_exceptions_for_missing_entries": False}
    if not cached_file(folder, "config.json", **lookup):
        return None
    config, _ = PreTrainedConfig.get_config_dict(folder, revision=revision)
    if config.get("model_type") != "internlm2":
        return None
    from sft.models import internlm2, internlm2_tokenizer  # import what only a model needs, and protobuf

    internlm2.register_with_transformers()
    path = cached_file(folder, "tokenizer.model", **lookup) if is_published else None
    if not path:
        return None
    tokenizer = internlm2_tokenizer.build_tokenizer(Path(path), config["vocab_size"])
    tokenizer.name_or_path = folder
    return tokenizer


def load_model(settings: ModelConfig, *, trust_remote_code: bool = False, **init_kwargs) -> PreTrainedModel:
    """The base model in the settings' dtype, quantised if asked; its head stays as it is.

    `init_kwargs` go to `from_pretrained` and win over the settings, like TRL's `model_init_kwargs`.

    Raises:
        UserError: there is no such model, or it cannot be loaded as asked.
    """
    from transformers import AutoModelForCausalLM

    from sft.models import internlm2

    internlm2.register_with_transformers()
    folder = str(settings.model_name_or_path)
    kwargs = {
        "revision": settings.model_revision,
        "trust_remote_code": trust_remote_code,
        "dtype": settings.dtype,
        "attn_implementation": settings.attn_implementation,
        "quantization_config": _quantization(settings),
    }
    require_model(folder, settings.model_revision)
    try:
        with hub.downloading(folder):
            model = AutoModelForCausalLM.from_pretrained(folder, **kwargs | init_kwargs)
    except (OSError, ValueError, ImportError, UnpicklingError, SafetensorError) as problem:
        raise UserError(_cannot_load(folder, problem)) from None
    _keep_quantised_weights_as_they_are(model)
    return model


def _quantization(settings: ModelConfig) -> BitsAndBytesConfig | None:
    if not (settings.load_in_4bit or settings.load_in_8bit):
        return None
    from trl import get_quantization_config  # imports PEFT and bitsandbytes, which no other model needs

    from sft.models.nf4 import quantise_faster

    quantise_faster()
    return get_quantization_config(settings)


def describe_parameters(model: torch.nn.Module, settings: ModelConfig) -> str:
    """One line: trainable and all parameters, and the scale alpha/r an adapter's output is multiplied with.

    Counts weights, not storage: a 4-bit layer counts all its weights, a ZeRO-3 shard the whole tensor.
    """
    trainable = sum(_size(parameter) for parameter in model.parameters() if parameter.requires_grad)
    total = sum(_size(parameter) for parameter in model.parameters())
    line = f"trainable      {trainable:,} of {total:,} parameters ({trainable / total:.2%})"
    if not settings.use_peft:
        return line
    return f"{line}; LoRA {scale_line(settings.lora_alpha, settings.lora_r, is_rslora=settings.use_rslora)}"


def _keep_quantised_weights_as_they_are(model: torch.nn.Module) -> None:
    """Stop bitsandbytes from repacking NF4 weights at the first evaluation on a CPU with AVX512-BF16.

    The repacked scales are rounded to bfloat16, so asking the model a question would change what is trained next.
    """
    if not getattr(model, "is_loaded_in_4bit", False):
        return
    import bitsandbytes

    for module in model.modules():
        if isinstance(module, bitsandbytes.nn.Linear4bit):
            module.support_avx512bf16_for_cpu = False


def _size(parameter: torch.nn.Parameter) -> int:
    if hasattr(parameter, "quant_state") and parameter.quant_state is not None:
        return parameter.quant_state.shape.numel()
    return getattr(parameter, "ds_numel", parameter.numel())


def _cannot_load(model: str, problem: Exception) -> str:
    return f"{model}: cannot be loaded as a model ({one_line_message(problem, 200)}): copy or download it again"
