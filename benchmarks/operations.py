"""Counts the floating-point operations that training needs, whatever a program computes besides.

In: how many weights there are, and the data's tokens. Out: operations. A product with N weights takes 2N a token in the
forward pass and 2N for the gradient of its input; only the adapter's own weights need theirs, 2N more. The head is
needed at supervised tokens alone. In attention a token sees on average half of its sample, in 2 products of the width
of all heads, and backward has twice the forward's. Activation checkpointing does the forward pass again.
"""

import statistics
import time
from dataclasses import dataclass

import torch

from sft.models.meta_model import MetaModel

# Dense half-precision peaks of the vendors' data sheets, in TFLOP/s, by what torch calls the card (RTX 4090: fp16,
# accumulated in fp32).
PEAKS = {"RTX 4090": 165, "A100": 312, "H100": 989, "H200": 989}

# The side of the square matrices whose product is the measure of what a device can.
MATRIX = {"cpu": 2048, "cuda": 8192}


@dataclass(frozen=True)
class Sizes:
    """Weights of the layers, of the adapter and of the head, and the layers' number and width of all heads."""

    layers: int
    adapter: int
    head: int
    depth: int
    width: int


def sizes_of(model: MetaModel) -> Sizes:
    """What is multiplied with in a model and its adapter: all its weights but those of an embedding."""
    config = model.text_config
    head = config.vocab_size * config.hidden_size
    return Sizes(
        layers=model.parameters - model.adapter_parameters - head * (1 if config.tie_word_embeddings else 2),
        adapter=model.adapter_parameters,
        head=head,
        depth=config.num_hidden_layers,
        width=config.hidden_size,
    )


def operations(sizes: Sizes, samples: list[int], supervised: int, *, recomputes: bool) -> tuple[float, float, float]:
    """Of the frozen weights, of the adapter and of attention, for samples of so many tokens, so many supervised."""
    tokens, pairs = sum(samples), sum(length**2 / 2 for length in samples)
    forwards = 2 if recomputes else 1
    frozen = (forwards + 1) * 2 * (sizes.layers * tokens + sizes.head * supervised)
    adapter = (forwards + 2) * 2 * sizes.adapter * tokens
    attention = (forwards + 2) * 2 * 2 * sizes.width * sizes.depth * pairs
    return frozen, adapter, attention


def matmul_rate(device: str, dtype: torch.dtype, size: int) -> float:
    """Operations a second of a product of two square matrices of random numbers: the median of ten.

    A GPU's own clock times each; random numbers, since a GPU multiplies zeros faster.
    """
    left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    for _ in range(3):
        torch.mm(left, right)
    return 2 * size**3 / statistics.median(_seconds(device, left, right) for _ in range(10))


def _seconds(device: str, left: torch.Tensor, right: torch.Tensor) -> float:
    if device == "cuda":
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        torch.mm(left, right)
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) / 1e3
    started = time.perf_counter()
    torch.mm(left, right)
    return time.perf_counter() - started
