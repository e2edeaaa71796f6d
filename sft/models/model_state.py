"""What a model and its process are like while they are asked something, and how to leave them so.

In: a model. Out: whether each process holds only parts of it; a block of code that changes neither modes nor dice.
"""

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy
import torch


def is_in_parts(model: torch.nn.Module) -> bool:
    """Whether each process holds a part of every weight (ZeRO-3, FSDP), so that only all together can run the model."""
    from torch.distributed.tensor import DTensor
    from transformers.integrations import is_deepspeed_zero3_enabled

    return is_deepspeed_zero3_enabled() or any(isinstance(parameter, DTensor) for parameter in model.parameters())


@contextmanager
def preserve_state(model: torch.nn.Module) -> Iterator[None]:
    """Run the model in evaluation mode without gradients; restore each module's mode and all random states."""
    modes = [(module, module.training) for module in model.modules()]
    python_state, numpy_state = random.getstate(), numpy.random.get_state()
    model.eval()
    try:
        with torch.random.fork_rng(), torch.no_grad():
            yield
    finally:
        random.setstate(python_state)
        numpy.random.set_state(numpy_state)
        for module, mode in modes:
            module.training = mode
