"""A LoRA layer's training pass in few operations: base product, dropout and adapter in one autograd function.

In: a model with PEFT's adapters. Out: the same model; each plain LoRA layer computes what PEFT's computes, without its
copies of the output, which is three times as wide as what goes in. Generation and every adapter of another kind are
left to PEFT. Knows nothing about the trainer.
"""

import types
from typing import cast

import bitsandbytes
import torch
from bitsandbytes.functional import dequantize_4bit
from peft.tuners import lora
from torch import nn


class LoraProduct(torch.autograd.Function):
    """y = x W^T + bias + scale * dropout(x) A^T B^T, W frozen, in 4 bits or not (arXiv:2106.09685).

    Shapes: x `(..., in)`, A `(rank, in)`, B `(out, rank)`, y `(..., out)`. Kept for the backward pass: dropout(x), the
    mask it was made with, and its product with A^T; W is taken out of 4 bits once more. Products are of x's type, or
    autocast's where that is on; gradients have the types of what they are of.
    """

    @staticmethod
    def forward(ctx, x, layer, a, b, scale, dropout):
        """See the class."""
        dtype = _product_dtype(x)
        rows, bias = x.reshape(-1, x.shape[-1]).to(dtype), layer.bias
        y = nn.functional.linear(rows, _weight(layer, dtype), None if bias is None else bias.to(dtype))
        dropped, mask = torch.native_dropout(rows, dropout, True) if dropout else (rows, None)
        low = dropped @ a.to(dtype).t()
        y.addmm_(low, b.to(dtype).t(), alpha=scale)
        ctx.save_for_backward(dropped, mask, low, a, b)
        ctx.layer, ctx.scale, ctx.dropout, ctx.dtype, ctx.shape = layer, scale, dropout, x.dtype, x.shape
        return y.view(*x.shape[:-1], y.shape[-1])

    @staticmethod
    def backward(ctx, grad_y):
        """Gradients of x, A and B."""
        dropped, mask, low, a, b = ctx.saved_tensors
        dtype = dropped.dtype
        grad_y = grad_y.reshape(-1, grad_y.shape[-1]).to(dtype)
        grad_low = (grad_y @ b.to(dtype)).mul_(ctx.scale)
        grad_a, grad_b = grad_low.t() @ dropped, (grad_y.t() @ low).mul_(ctx.scale)
        grad_x = None
        if ctx.needs_input_grad[0]:
            grad_x = grad_y @ _weight(ctx.layer, dtype)
            if mask is None:
                grad_x.addmm_(grad_low, a.to(dtype))
            else:
                # With the mask as it is, of booleans, this would take torch three times as long.
                grad_x.addcmul_(grad_low @ a.to(dtype), mask.to(dtype), value=1 / (1 - ctx.dropout))
            grad_x = grad_x.view(ctx.shape).to(ctx.dtype)
        return grad_x, None, grad_a.to(a.dtype), grad_b.to(b.dtype), None, None


def fuse_lora(model: nn.Module) -> int:
    """Let every plain LoRA layer train by `LoraProduct`; returns how many there are.

    The parameters of an adapter must be whole in each process, as they are not under ZeRO-3 or FSDP.
    """
    layers = [module for module in model.modules() if is_plain(module)]
    for layer in layers:
        layer.forward = types.MethodType(_forward, layer)
    return len(layers)


def unfuse_lora(model: nn.Module) -> None:
    """Undo `fuse_lora`."""
    for module in model.modules():
        if isinstance(module, lora.LoraLayer):
            module.__dict__.pop("forward", None)


def _forward(self, x, *args, **kwargs):
    if not self.training or self.disable_adapters or self.merged or args or kwargs:
        return type(self).forward(self, x, *args, **kwargs)
    (name,) = self.active_adapters
    dropout = self.lora_dropout[name]
    rate = dropout.p if isinstance(dropout, nn.Dropout) else 0.0
    weights = self.lora_A[name].weight, self.lora_B[name].weight
    return LoraProduct.apply(x, self.base_layer, *weights, self.scaling[name], rate)


def is_plain(module: nn.Module) -> bool:
    """Whether a module is LoRA as in its paper, alone on a linear layer in 4 bits or unquantised."""
    if type(module) not in (lora.Linear, lora.Linear4bit):
        return False
    layer = cast(lora.Linear, module)
    if len(layer.active_adapters) != 1 or layer.active_adapters[0] not in layer.lora_A:
        return False
    (name,) = layer.active_adapters
    return (
        type(layer.base_layer) in (nn.Linear, bitsandbytes.nn.Linear4bit)
        and not layer.fan_in_fan_out
        and name not in layer.lora_variant
        and type(layer.lora_A[name]) is nn.Linear
        and layer.lora_B[name].bias is None
        and isinstance(layer.lora_dropout[name], (nn.Dropout, nn.Identity))
    )


def _product_dtype(x: torch.Tensor) -> torch.dtype:
    device = x.device.type
    autocasts = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
    return torch.get_autocast_dtype(device) if autocasts else x.dtype


def _weight(layer: nn.Linear, dtype: torch.dtype) -> torch.Tensor:
    """The layer's weight `(out, in)`, taken out of 4 bits where it is in them."""
    if isinstance(layer, bitsandbytes.nn.Linear4bit):
        packed = cast(bitsandbytes.nn.Params4bit, layer.weight)
        return dequantize_4bit(packed, packed.quant_state).to(dtype)
    return layer.weight.to(dtype)
