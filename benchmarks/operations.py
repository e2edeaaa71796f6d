"""Counts the floating-point operations that training needs, whatever a program computes besides.

In: how many weights there are, and the data's tokens. Out: operations. A product with N weights takes 2N a token in the
forward pass and 2N for the gradient of its input; only the adapter's own weights need theirs, 2N more. The head is
needed at supervised tokens alone. In attention a token sees on average half of its sample, in 2 products of the width
of all heads, and backward has twice the forward's. Activation checkpointing does the forward pass again.
"""

import time
from dataclasses import dataclass

import torch

from sft.hollow_model import HollowModel

# Dense half-precision peaks of the vendors' data sheets, in TFLOP/s, by what torch calls the card (RTX 4090: fp16,
# accumulated in fp32).
PEAKS = {"RTX 4090": 165, "A100": 312, "H100": 989, "H200": 989}


@dataclass(frozen=True)
class Sizes:
    """Weights of the layers, of the adapter and of the head, and the layers' number and width of all heads."""

    layers: int
    adapter: int
    head: int
    depth: int
    width: int


def sizes_of(model: HollowModel) -> Sizes:
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


def highest_rate(device: str, dtype: torch.dtype) -> tuple[float, str]:
    """The most operations a second: by the card's data sheet, or what a square product reaches; and which of them."""
    if device == "cuda":
        for card, peak in PEAKS.items():
            if card in torch.cuda.get_device_name():
                return peak * 1e12, f"the data sheet's {peak} TFLOP/s"
    rate = _matmul_rate(device, dtype)
    return rate, f"products of this type reach {rate / 1e9:,.0f} GFLOP/s"


def _matmul_rate(device: str, dtype: torch.dtype, size: int = 2048) -> float:
    left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    torch.mm(left, right)[0, 0].item()
    started = time.perf_counter()
    for _ in range(10):
        product = torch.mm(left, right)
    product[0, 0].item()  # waits for the device
    return 10 * 2 * size**3 / (time.perf_counter() - started)
