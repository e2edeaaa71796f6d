"""Holds a model's weights out of 4 bits for many passes, each of which would take all of them out anew on a CPU.

In: a model with bitsandbytes' layers of 4 bits. Out: the same results, bit for bit. Knows nothing about what the passes
are for.
"""

import types
from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast

import bitsandbytes
import torch
from bitsandbytes.functional import dequantize_4bit
from torch import nn

from sft.models.model_state import is_in_parts

# What is held at most, in bytes: a larger model takes more time in its products than out of 4 bits.
HELD_AT_MOST = 2**30


@contextmanager
def weights_unpacked(model: nn.Module) -> Iterator[None]:
    """Inside, layers in 4 bits multiply with weights that were taken out once; for passes without gradients.

    Inside another such block it does nothing, and neither where each process holds a part of every weight.
    """
    in_4_bits = (module for module in model.modules() if type(module) is bitsandbytes.nn.Linear4bit)
    layers = [] if is_in_parts(model) else list(in_4_bits)
    is_done = any(hasattr(layer, "unpacked") for layer in layers)
    states = [cast(bitsandbytes.nn.Params4bit, layer.weight).quant_state for layer in layers]
    size = sum(state.shape.numel() * state.dtype.itemsize for state in states)
    if is_done or not layers or layers[0].weight.device.type != "cpu" or size > HELD_AT_MOST:
        yield
        return
    for layer in layers:
        packed = cast(bitsandbytes.nn.Params4bit, layer.weight)
        vars(layer)["unpacked"] = dequantize_4bit(packed.data, packed.quant_state)
        vars(layer)["forward"] = types.MethodType(_forward, layer)
    try:
        yield
    finally:
        for layer in layers:
            del vars(layer)["unpacked"], vars(layer)["forward"]


def _forward(self, x: torch.Tensor) -> torch.Tensor:
    """As bitsandbytes' own, which computes in the type of what goes in where none was chosen."""
    dtype = self.compute_dtype if self.compute_type_is_set and self.compute_dtype else x.dtype
    bias = None if self.bias is None else self.bias.to(dtype)
    return nn.functional.linear(x.to(dtype), self.unpacked.to(dtype), bias).to(x.dtype)
