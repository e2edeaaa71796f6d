"""Holds a model's weights out of 4 bits for many passes, each of which would take all of them out anew on a CPU.

In: a model with bitsandbytes' layers of 4 bits. Out: the same results. Knows nothing about what the passes are for.
"""

import types
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import bitsandbytes
import torch
from bitsandbytes.functional import dequantize_4bit
from peft.tuners import lora
from torch import nn

from sft.models.fused_lora import is_plain
from sft.models.model_state import is_in_parts

# What is held at most, in bytes: a larger model takes more time in its products than out of 4 bits.
HELD_AT_MOST = 2**30


@contextmanager
def weights_unpacked(model: nn.Module, *, with_adapter: bool = False) -> Iterator[None]:
    """Inside, layers in 4 bits multiply with weights that were taken out once; for passes without gradients.

    The results are the same bit for bit. `with_adapter` adds to the weights what LoRA adds to their products, which
    makes one product of three, where all is in float32: there the results are the same up to its rounding.

    Inside another such block it does nothing, and neither where each process holds a part of every weight.
    """
    is_done = any("unpacked" in vars(module) for module in model.modules())
    layers = [] if is_done or is_in_parts(model) else list(_layers(model, with_adapter=with_adapter))
    size = sum(state.shape.numel() * state.dtype.itemsize for state in map(_state, layers))
    if not layers or _packed(layers[0]).weight.device.type != "cpu" or size > HELD_AT_MOST:
        yield
        return
    forwards = [vars(layer).get("forward") for layer in layers]
    for layer in layers:
        vars(layer)["unpacked"] = _unpacked(layer)
        vars(layer)["forward"] = types.MethodType(_forward, layer)
    try:
        yield
    finally:
        for layer, forward in zip(layers, forwards, strict=True):
            del vars(layer)["unpacked"], vars(layer)["forward"]
            if forward:  # that of `fuse_lora`
                vars(layer)["forward"] = forward


def _layers(model: nn.Module, *, with_adapter: bool) -> Iterator[nn.Module]:
    """Each layer in 4 bits, or the LoRA layer around it where its product is to be added."""
    inside = set()
    for module in model.modules():
        if with_adapter and _adds_in_float32(module):
            inside.add(_packed(module))
            yield module
        elif type(module) is bitsandbytes.nn.Linear4bit and module not in inside:
            yield module


def _adds_in_float32(module: nn.Module) -> bool:
    """Whether a module is a LoRA layer in use on a weight in 4 bits, all of which computes in float32."""
    if not is_plain(module) or type(packed := _packed(module)) is not bitsandbytes.nn.Linear4bit:
        return False
    layer: Any = module
    (name,) = layer.active_adapters
    adapter = layer.lora_A[name].weight, layer.lora_B[name].weight
    types_of_all = {*(weight.dtype for weight in adapter), _state(layer).dtype, packed.compute_dtype}
    is_used = not (layer.disable_adapters or layer.merged)
    return is_used and types_of_all == {torch.float32} and not torch.is_autocast_enabled("cpu")


def _packed(layer: nn.Module) -> Any:
    return layer.get_base_layer() if isinstance(layer, lora.LoraLayer) else layer


def _state(layer: nn.Module) -> Any:
    return cast(bitsandbytes.nn.Params4bit, _packed(layer).weight).quant_state


@torch.no_grad()
def _unpacked(layer: nn.Module) -> torch.Tensor:
    """The weight `(out, in)`; of a LoRA layer W + scale * B A (arXiv:2106.09685)."""
    weight = dequantize_4bit(_packed(layer).weight.data, _state(layer))
    if isinstance(layer, lora.LoraLayer):
        (name,) = layer.active_adapters
        low, high = (cast(nn.Linear, half[name]).weight for half in (layer.lora_A, layer.lora_B))
        weight.addmm_(high, low, alpha=layer.scaling[name])
    return weight


def _forward(self, x: torch.Tensor) -> torch.Tensor:
    """As bitsandbytes' own, which computes in the type of what goes in where none was chosen."""
    layer = _packed(self)
    dtype = layer.compute_dtype if layer.compute_type_is_set and layer.compute_dtype else x.dtype
    bias = None if layer.bias is None else layer.bias.to(dtype)
    return nn.functional.linear(x.to(dtype), self.unpacked.to(dtype), bias).to(x.dtype)
