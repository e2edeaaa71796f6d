"""Keeps an adapter's weights in float32 while products are computed in half precision, without a copy too many.

In: a model with PEFT's adapters. Knows nothing about the trainer.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from peft.tuners.tuners_utils import BaseTunerLayer


def keep_in_full_precision(model: torch.nn.Module) -> None:
    """Hold trainable weights in float32; autocast still computes in the recipe's precision.

    TRL stores the adapter of a quantised model in bfloat16, whose 8 bits lose updates of a small learning rate and
    which the fp16 gradient scaler refuses. DeepSpeed keeps float32 masters of its own.
    """
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()


class AutocastInputs:
    """Lets autocast alone bring the inputs of adapters into the precision of their products.

    PEFT first casts each input to the weights' float32, which autocast takes back: two copies for every layer, the
    second kept for the backward pass. Outside autocast PEFT's is the only cast, so it is left out just where asked.
    """

    def __init__(self, model: torch.nn.Module):
        self._layers = [module for module in model.modules() if isinstance(module, BaseTunerLayer)]

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Within, no adapter casts its input by itself; every forward pass must be under autocast."""
        for layer in self._layers:
            layer.cast_input_dtype_enabled = False
        try:
            yield
        finally:
            for layer in self._layers:
                layer.cast_input_dtype_enabled = True
