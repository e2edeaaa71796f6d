"""Puts a CPU's weights into 4 bits (NF4) in a sixth of the time that bitsandbytes takes, with the same bytes.

In: nothing; bitsandbytes then finds this kernel where it quantises on a CPU. bitsandbytes' own looks for each weight in
the fifteen bounds between the codes; here its place in a fine grid says how many bounds are below, up to one that is
left to compare with. Knows nothing about models.
"""

from functools import cache

import torch
from bitsandbytes.backends.default.ops import _get_4bit_quantize_bounds

OPERATION = "bitsandbytes::quantize_4bit"
# Cells of the grid over [-1, 1]: so narrow that none holds two bounds, and none ends within rounding of one.
CELLS = 256
# Weights that are computed with at once, so that they stay in the processor's cache.
AT_ONCE = 2**17
OWN = torch.library.get_kernel(OPERATION, "CPU")


def by_bitsandbytes(
    weight: torch.Tensor, blocksize: int, quant_type: str, quant_storage: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor]:
    """The same operation by bitsandbytes' own kernel, whether or not another is registered."""
    return OWN.call_boxed(
        torch._C.DispatchKeySet(torch._C.DispatchKey.CPU), weight, blocksize, quant_type, quant_storage
    )


@cache
def quantise_faster() -> None:
    """Let bitsandbytes quantise with this kernel from now on; what it does not cover stays bitsandbytes' own."""

    @torch.library.register_kernel(OPERATION, "cpu")
    def quantise(
        weight: torch.Tensor, blocksize: int, quant_type: str, quant_storage: torch.dtype
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if quant_type == "nf4" and quant_storage == torch.uint8 and weight.numel() % blocksize == 0:
            return quantise_nf4(weight, blocksize)
        return by_bitsandbytes(weight, blocksize, quant_type, quant_storage)


def quantise_nf4(weight: torch.Tensor, blocksize: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes, two a byte, `(weights / 2, 1)`, and the largest magnitude of each block, `(blocks,)` in float32.

    `weight` is of any floating type and shape, a whole number of blocks.
    """
    below, bound = _grid()
    blocks = weight.reshape(-1, blocksize)
    largest = torch.empty(len(blocks))
    packed = torch.empty(weight.numel() // 2, dtype=torch.uint8)
    rows = max(AT_ONCE // blocksize, 1)
    for part, magnitudes, codes in zip(
        blocks.split(rows), largest.split(rows), packed.split(rows * blocksize // 2), strict=True
    ):
        numbers = part.float()
        torch.amax(numbers.abs(), dim=-1, out=magnitudes)
        # As bitsandbytes rounds, which takes what is NaN for the highest code.
        scaled = (numbers * (1.0 / magnitudes.clamp(min=1e-38))[:, None]).clamp_(-1, 1).nan_to_num_(1.0).view(-1)
        cells = (scaled * (CELLS / 2)).add_(CELLS / 2).int()
        is_above = scaled > bound.index_select(0, cells)
        high, low = below.index_select(0, cells).add_(is_above.view(torch.uint8)).view(-1, 2).unbind(1)
        torch.bitwise_or(high << 4, low, out=codes)
    return packed.unsqueeze(1), largest


@cache
def _grid() -> tuple[torch.Tensor, torch.Tensor]:
    """Of each cell, how many bounds are below its start, and the next one; `(cells + 1,)`, the last of 1.0 alone."""
    bounds, _ = _get_4bit_quantize_bounds("nf4", torch.device("cpu"))
    below = torch.bucketize(torch.linspace(-1, 1, CELLS + 1), bounds, right=True)
    return below.to(torch.uint8), torch.cat([bounds, torch.tensor([torch.inf])])[below]
