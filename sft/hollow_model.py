"""A recipe's model without its weights: parameters have shapes and no memory, and a training pass can be counted.

In: a recipe's model settings. Out: how many weights there are, in how many bytes they are held, and how many bytes a
forward pass keeps for the backward pass. Everything is asked of the real modules on the meta device, so that it holds
for any architecture of Transformers and any adapter of PEFT.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from peft import get_peft_model
from peft.tuners.lora import LoraLayer
from torch import nn
from transformers import AttentionInterface, AutoConfig, AutoModelForCausalLM, PreTrainedConfig
from transformers.integrations import deepspeed
from transformers.pytorch_utils import Conv1D
from transformers.quantizers import AutoHfQuantizer
from transformers.quantizers.quantizers_utils import should_convert_module
from trl import ModelConfig, get_peft_config, get_quantization_config

from data_tools.errors import UserError
from sft import internlm2
from sft.fused_lora import fuse_lora, unfuse_lora

internlm2.register()

# bitsandbytes, `functional.quantize_4bit`: a float32 scale for every block; nested, one byte instead, and a float32
# for every 256 of those. 8 bits: a float32 for every output, `nn.Int8Params.SCB`.
BLOCK, NESTED_BLOCK = 64, 256
# Attention that computes nothing and keeps what a fused kernel keeps; the second is given no mask.
MASKED, UNMASKED = "counted_with_mask", "counted"


class HollowModel:
    """The model on the meta device, with its adapter if the settings ask for one.

    `weights` are the base model's parameters; one that two modules share counts once. `adapter_parameters` counts the
    weights that PEFT adds. `stored_dtype` is what the checkpoint holds, as far as it says, and `dtype` what weights
    that are not quantised are loaded in.

    Raises:
        UserError: the model's configuration cannot be read, or the adapter does not fit it.
    """

    def __init__(self, settings: ModelConfig, *, trust_remote_code: bool = False):
        self.settings = settings
        known = {"revision": settings.model_revision, "trust_remote_code": trust_remote_code}
        try:
            config: PreTrainedConfig = AutoConfig.from_pretrained(settings.model_name_or_path, **known)
        except (OSError, ValueError) as problem:
            reason = " ".join(str(problem).split())[:200]
            raise UserError(f"{settings.model_name_or_path}: its configuration cannot be read ({reason})") from None
        self.text_config = config.get_text_config()
        self.stored_dtype: torch.dtype = self.text_config.dtype or torch.float32
        self.dtype = self.stored_dtype if settings.dtype in (None, "auto") else getattr(torch, settings.dtype)
        with _undivided(), torch.device("meta"):
            self._base = AutoModelForCausalLM.from_config(
                config, dtype=self.dtype, attn_implementation="sdpa", trust_remote_code=trust_remote_code
            )
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
            raise UserError("lora_target_modules: an adapter on the output head would never be trained: leave it out")
        trained = sum(parameter.numel() for parameter in self._model.parameters() if parameter.requires_grad)
        self.adapter_parameters = trained if settings.use_peft else 0

    @property
    def is_quantised(self) -> bool:
        return self.settings.load_in_4bit or self.settings.load_in_8bit

    @property
    def parameters(self) -> int:
        return sum(weight.parameters for weight in self.weights) + self.adapter_parameters

    @property
    def trainable(self) -> int:
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
        turns into numbers in every layer. `is_fused`: LoRA layers compute as `sft.fused_lora` has them.

        Raises:
            RuntimeError: the architecture computes something that cannot be done without values or on no device, as
                mixtures of experts do.
        """
        asked = str(self.settings.attn_implementation)
        attention = MASKED if is_masked and not asked.startswith("flash_attention") else UNMASKED
        self._base.set_attn_implementation("eager" if asked == "eager" else attention)
        (fuse_lora if is_fused else unfuse_lora)(self._model)
        self._prepare(dtype, adapter_dtype)
        own = {_storage(tensor) for tensor in (*self._model.parameters(), *self._model.buffers())}
        kept: dict[int, torch.UntypedStorage] = {}

        def keep(tensor: torch.Tensor) -> torch.Tensor:
            if _storage(tensor) not in own:
                kept[_storage(tensor)] = tensor.untyped_storage()
            return tensor

        zeros = torch.zeros(shape, dtype=torch.long, device="meta")
        mask = torch.zeros(shape[0], 1, shape[1], shape[1], dtype=dtype, device="meta") if asked == "eager" else None
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            self._base.base_model(input_ids=zeros, position_ids=zeros, attention_mask=mask, use_cache=False)
        return sum(storage.nbytes() for storage in kept.values())

    def _prepare(self, dtype: torch.dtype, adapter_dtype: torch.dtype) -> None:
        """Put the model into training mode and every weight into the type it is computed with."""
        self._model.train()
        for parameter in self._model.parameters():
            is_adapter = self.settings.use_peft and parameter.requires_grad
            parameter.data = parameter.data.to(adapter_dtype if is_adapter else dtype)

    def _adapted(self) -> nn.Module:
        try:
            model = get_peft_model(self._base, get_peft_config(self.settings), low_cpu_mem_usage=True)
        except ValueError as problem:
            reason = " ".join(str(problem).split())[:200]
            raise UserError(f"{self.settings.model_name_or_path}: takes no such adapter ({reason})") from None
        model.enable_input_require_grads()
        return model

    def _quantised_layers(self) -> set[str]:
        """The layers that Transformers puts bitsandbytes' in place of; `replace_with_bnb_linear` has the rule."""
        if not self.is_quantised:
            return set()
        quantizer = AutoHfQuantizer.from_config(get_quantization_config(self.settings))
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
    kept = deepspeed._hf_deepspeed_config_weak_ref
    deepspeed.unset_hf_deepspeed_config()
    try:
        yield
    finally:
        deepspeed._hf_deepspeed_config_weak_ref = kept


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
        raise NotImplementedError("a hollow model has no backward pass")


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
