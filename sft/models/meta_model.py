"""A recipe's model without its weights: parameters have shapes and no memory, and a training pass can be counted.

In: a recipe's model settings. Out: how many weights there are, in how many bytes they are held, and how many bytes a
forward pass keeps for the backward pass. Everything is asked of the real modules on the meta device, so that it holds
for any architecture of Transformers and any adapter of PEFT.
"""

import inspect
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
from peft import PeftConfig, get_peft_model
from peft.tuners.lora import LoraLayer
from torch import nn
from transformers import AttentionInterface, AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.integrations import deepspeed
from transformers.pytorch_utils import Conv1D
from transformers.quantizers import AutoHfQuantizer
from transformers.quantizers.quantizers_utils import should_convert_module
from trl import ModelConfig, SFTConfig, get_peft_config, get_quantization_config

from sft.core.errors import UserError
from sft.core.text import one_line_message
from sft.models import internlm2
from sft.models.fused_lora import fuse_lora, unfuse_lora

internlm2.register_with_transformers()

# bitsandbytes, `functional.quantize_4bit`: a float32 scale for every block; nested, one byte instead, and a float32
# for every 256 of those. 8 bits: a float32 for every output, `nn.Int8Params.SCB`.
BLOCK, NESTED_BLOCK = 64, 256
# Attention that computes nothing and keeps what a fused kernel keeps; the second is given no mask.
MASKED, UNMASKED = "counted_with_mask", "counted"


class MetaModel:
    """The model on the meta device, with its adapter if the settings ask for one.

    `weights` are the base model's parameters; one that two modules share counts once. `adapter_parameters` counts the
    weights that PEFT adds. `stored_dtype` is what the checkpoint holds, as far as it says, and `dtype` what weights
    that are not quantised are loaded in. `init_kwargs` as `load_model` takes them.

    Raises:
        UserError: the model's configuration cannot be read, no model can be built by it, or the adapter does not fit
            that.
    """

    def __init__(self, settings: ModelConfig, *, trust_remote_code: bool = False, **init_kwargs):
        self.settings = settings
        config = self._config(trust_remote_code, init_kwargs)
        self.text_config = config.get_text_config()
        self.stored_dtype = cast(torch.dtype, self.text_config.dtype or torch.float32)
        self.dtype = self.stored_dtype if settings.dtype in (None, "auto") else getattr(torch, settings.dtype)
        try:
            with _undivided(), torch.device("meta"):
                self._base = AutoModelForCausalLM.from_config(
                    config, dtype=self.dtype, attn_implementation="sdpa", trust_remote_code=trust_remote_code
                )
        except (ValueError, TypeError, KeyError, AttributeError, ImportError) as problem:
            of = "model_init_kwargs" if init_kwargs else settings.model_name_or_path
            raise UserError(f"{of}: no model can be built by this configuration ({_reason(problem)})") from None
        for module in self._base.modules():
            # RoPE that follows the length (InternLM2.5's: dynamic) would ask for the positions' values.
            if isinstance(getattr(module, "rope_type", None), str):
                module.rope_type = "default"
        self.has_tied_head = self._base.get_output_embeddings().weight is self._base.get_input_embeddings().weight
        quantised = self._quantised_layers()
        self.weights = [
            Weight(parameter.numel(), len(parameter), name.removesuffix(".weight") in quantised)
            for name, parameter in self._base.named_parameters()
        ]
        with _undivided():
            self._model = self._adapted() if settings.use_peft else self._base
        if isinstance(self._base.get_output_embeddings(), LoraLayer):
            # TRL computes log-probabilities from the head's own weight.
            raise UserError("lora_target_modules: an adapter on the output head would never be trained: remove it")
        trained = sum(parameter.numel() for parameter in self._model.parameters() if parameter.requires_grad)
        self.adapter_parameters = trained if settings.use_peft else 0

    @classmethod
    def of(cls, settings: ModelConfig, training: SFTConfig) -> "MetaModel":
        """The model that a run with these settings trains."""
        init_kwargs = cast(dict[str, Any], training.model_init_kwargs or {})
        return cls(settings, trust_remote_code=training.trust_remote_code, **init_kwargs)

    @property
    def is_quantised(self) -> bool:
        """Whether the base model is loaded in 4 or 8 bits."""
        return self.settings.load_in_4bit or self.settings.load_in_8bit

    @property
    def module(self) -> nn.Module:
        """The model itself, for what only asks for names and shapes."""
        return self._model

    @property
    def parameters(self) -> int:
        """How many weights there are, with the adapter's."""
        return sum(weight.parameters for weight in self.weights) + self.adapter_parameters

    @property
    def trainable(self) -> int:
        """How many weights are trained."""
        return self.adapter_parameters if self.settings.use_peft else self.parameters

    def bytes_held(self, weight: "Weight", dtype: torch.dtype) -> float:
        """Bytes in which a weight is held, where those that are not quantised are held in `dtype`."""
        if not weight.is_quantised:
            return weight.parameters * dtype.itemsize
        if self.settings.load_in_8bit:
            return weight.parameters + weight.rows * 4
        scale = 1 + 4 / NESTED_BLOCK if self.settings.use_bnb_nested_quant else 4
        return weight.parameters / 2 + weight.parameters / BLOCK * scale

    def kept_for_backward(
        self,
        shape: tuple[int, int],
        dtype: torch.dtype,
        adapter_dtype: torch.dtype,
        *,
        is_masked: bool,
        is_fused: bool = True,
    ) -> int:
        """Bytes that a forward pass through all layers but the head keeps, none of them recomputed.

        `shape` is (sequences, tokens). `is_masked`: packed or padded, so that attention is given a mask, which sdpa
        turns into numbers in every layer. `is_fused`: LoRA layers compute as `sft.models.fused_lora` has them.

        Raises:
            RuntimeError: the architecture computes something that cannot be done without values or on no device, as
                mixtures of experts do.
        """
        implementation = str(self.settings.attn_implementation)
        attention = MASKED if is_masked and not implementation.startswith("flash_attention") else UNMASKED
        is_eager = implementation == "eager"
        self._base.set_attn_implementation("eager" if is_eager else attention)
        (fuse_lora if is_fused else unfuse_lora)(self._model)
        self._prepare(dtype, adapter_dtype)
        own = {_storage(tensor) for tensor in (*self._model.parameters(), *self._model.buffers())}
        saved: dict[int, torch.UntypedStorage] = {}

        def save(tensor: torch.Tensor) -> torch.Tensor:
            if _storage(tensor) not in own:
                saved[_storage(tensor)] = tensor.untyped_storage()
            return tensor

        zeros = torch.zeros(shape, dtype=torch.long, device="meta")
        mask = torch.zeros(shape[0], 1, shape[1], shape[1], dtype=dtype, device="meta") if is_eager else None
        with torch.autograd.graph.saved_tensors_hooks(save, lambda tensor: tensor):
            self._base.base_model(input_ids=zeros, position_ids=zeros, attention_mask=mask, use_cache=False)
        return sum(storage.nbytes() for storage in saved.values())

    def _prepare(self, dtype: torch.dtype, adapter_dtype: torch.dtype) -> None:
        """Put the model into training mode and every weight into the type it is computed with."""
        self._model.train()
        for parameter in self._model.parameters():
            is_adapter = self.settings.use_peft and parameter.requires_grad
            parameter.data = parameter.data.to(adapter_dtype if is_adapter else dtype)

    def try_checkpointing(self, kwargs: dict[str, Any]) -> None:
        """Recompute a number as the layers would be with these `activation_checkpointing_kwargs`.

        Raises:
            ValueError: they cannot be; says why.
        """
        rest = dict(kwargs)
        # Two are the Trainer's own: which layers, and where what they keep lies.
        every_n_layers = rest.pop("every_n_layers", 1)
        if rest.pop("offload", False) and not torch.accelerator.is_available():
            raise ValueError("offload moves what a GPU keeps to RAM, and this machine has no GPU")
        self._base.activation_checkpointing_enable(rest or None, every_n_layers=every_n_layers)
        recompute = next(module for module in self._base.modules() if hasattr(module, "_gradient_checkpointing_func"))
        recompute._gradient_checkpointing_func(lambda number: number, torch.zeros((), requires_grad=True))
        self._base.activation_checkpointing_disable()

    def _config(self, trust_remote_code: bool, init_kwargs: dict[str, Any]) -> PreTrainedConfig:
        """The model's configuration, changed as `init_kwargs` say; see `PreTrainedModel.from_pretrained`."""
        path = str(self.settings.model_name_or_path)
        taken = init_kwargs.keys() & _arguments_of_loading() if init_kwargs else set()
        try:
            config, unknown = AutoConfig.from_pretrained(
                path,
                revision=self.settings.model_revision,
                trust_remote_code=trust_remote_code,
                return_unused_kwargs=True,
                **{key: value for key, value in init_kwargs.items() if key not in taken},
            )
        except (OSError, ValueError, TypeError, KeyError) as problem:
            raise UserError(f"{path}: its configuration cannot be read ({_reason(problem)})") from None
        if unknown:
            key = next(iter(unknown))
            raise UserError(f"model_init_kwargs: {key}: neither the model's configuration nor its loading knows it")
        return config

    def _adapted(self) -> nn.Module:
        self._refuse_names_of_nothing()
        try:
            model = get_peft_model(self._base, cast(PeftConfig, get_peft_config(self.settings)), low_cpu_mem_usage=True)
        except (ValueError, TypeError, re.error) as problem:
            raise UserError(f"lora_target_modules: the model takes no such adapter ({_reason(problem)})") from None
        model.enable_input_require_grads()
        return model

    def _refuse_names_of_nothing(self) -> None:
        """PEFT refuses names of which none is in the model, but skips one of several without a message."""
        modules = [name for name, _ in self._base.named_modules()]
        weights = [name for name, _ in self._base.named_parameters()]
        matrices = [name for name, weight in self._base.named_parameters() if weight.ndim > 1]
        adaptable = dict.fromkeys(name.removesuffix(".weight").rpartition(".")[2] for name in matrices)
        for key, present in (
            ("lora_target_modules", modules),
            ("lora_modules_to_save", modules),
            ("lora_target_parameters", weights),
        ):
            names = getattr(self.settings, key)
            for name in names if isinstance(names, list) else ():
                # By their ends, which for modules that are saved whole need not be whole names.
                end = name if key == "lora_modules_to_save" else f".{name}"
                if not any(f".{path}".endswith(end) for path in present):
                    raise UserError(f"{key}: {name}: is not in this model; there are {', '.join(adaptable)}")

    def _quantised_layers(self) -> set[str]:
        """The layers that Transformers puts bitsandbytes' in place of; `replace_with_bnb_linear` has the rule."""
        try:
            config = get_quantization_config(self.settings)
            quantizer = AutoHfQuantizer.from_config(config) if config else None
        except ValueError as problem:
            raise UserError(f"bnb_4bit_quant_storage: {_reason(problem)}") from None
        if quantizer is None:
            return set()
        skipped = quantizer.get_modules_to_not_convert(
            self._base, quantizer.quantization_config.llm_int8_skip_modules, self._base._keep_in_fp32_modules
        )
        return {
            name
            for name, module in self._base.named_modules()
            if (type(module) is nn.Linear or isinstance(module, Conv1D)) and should_convert_module(name, skipped)
        }


@dataclass(frozen=True)
class Weight:
    """One parameter: how many numbers, in how many rows, and whether it is quantised."""

    parameters: int
    rows: int
    is_quantised: bool


@contextmanager
def _undivided() -> Iterator[None]:
    """Inside, a model is made whole, and by this process alone: under ZeRO-3 all would have to deal out its weights."""
    config = deepspeed._hf_deepspeed_config_weak_ref
    deepspeed.unset_hf_deepspeed_config()
    try:
        yield
    finally:
        deepspeed._hf_deepspeed_config_weak_ref = config


def _arguments_of_loading() -> set[str]:
    """What `from_pretrained` takes for itself, by its source: its signature leaves most of it open."""
    source = inspect.getsource(PreTrainedModel.from_pretrained)
    old = re.search(r"for name in \[(.*?)\]", source)
    return {
        *inspect.signature(PreTrainedModel.from_pretrained).parameters,
        *re.findall(r'kwargs\.pop\("(\w+)"', source),
        *re.findall(r'"(\w+)"', old[1] if old else ""),
    }


def _reason(problem: Exception) -> str:
    """What the stack says, in one line; of a KeyError the key alone would say nothing."""
    reason = one_line_message(problem, 200)
    return f"KeyError: {reason}" if isinstance(problem, KeyError) else reason


def _storage(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage()._cdata


class _Attention(torch.autograd.Function):
    """Keeps what torch's fused attention kernels keep: their inputs, their output, the log of each row's sum."""

    @staticmethod
    def forward(ctx, query, key, value, mask):
        sequences, heads, tokens, _ = query.shape
        output = query.new_empty(sequences, tokens, heads, value.shape[-1]).transpose(1, 2)
        sums = query.new_empty(query.shape[:-1], dtype=torch.float32)
        ctx.save_for_backward(query, key, value, output, sums, mask)
        return output

    @staticmethod
    def backward(ctx, *_):
        raise NotImplementedError("a model without weights has no backward pass")


def _unmasked(module: nn.Module, query, key, value, attention_mask, **_):
    return _Attention.apply(query, key, value, None).transpose(1, 2).contiguous(), None


def _masked(module: nn.Module, query, key, value, attention_mask, **_):
    # With a mask, Transformers' sdpa repeats keys and values for every query head; without, the kernels do.
    groups = getattr(module, "num_key_value_groups", 1)
    key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    mask = query.new_empty(query.shape[0], 1, query.shape[2], key.shape[2])
    return _Attention.apply(query, key, value, mask).transpose(1, 2).contiguous(), None


AttentionInterface.register(MASKED, _masked)
AttentionInterface.register(UNMASKED, _unmasked)
