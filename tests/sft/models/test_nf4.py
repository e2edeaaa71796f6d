"""Quantising on a CPU gives bitsandbytes' own bytes, whatever the weights are."""

import bitsandbytes
import pytest
import torch
from bitsandbytes.backends.default.ops import _get_4bit_quantize_bounds

from sft.models.nf4 import AT_ONCE, CELLS, by_bitsandbytes, quantise_faster, quantise_nf4


def expected(weight, blocksize=64, quant_type="nf4", storage=torch.uint8):
    return by_bitsandbytes(weight, blocksize, quant_type, storage)


def assert_same(ours, theirs):
    for one, other in zip(ours, theirs, strict=True):
        assert one.dtype == other.dtype
        torch.testing.assert_close(one, other, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("blocksize", [32, 64, 4096])
def test_weights_become_the_same_bytes_and_stay_themselves(dtype, blocksize):
    weight = torch.randn(48, AT_ONCE // 32, generator=torch.Generator().manual_seed(0)).to(dtype)
    before = weight.clone()
    assert_same(quantise_nf4(weight, blocksize), expected(weight, blocksize))
    assert torch.equal(weight, before)


def test_what_lies_on_a_bound_or_at_the_end_of_a_cell_falls_to_the_same_side():
    bounds, _ = _get_4bit_quantize_bounds("nf4", torch.device("cpu"))
    at = torch.cat([bounds, torch.linspace(-1, 1, CELLS + 1)])
    near = [at]
    for direction in (2.0, -2.0):
        number = at
        for _ in range(4):
            number = torch.nextafter(number, torch.tensor(direction))
            near.append(number)
    numbers = torch.cat(near).clamp(-1, 1)
    # In blocks that hold a 1, so that the scale is 1.
    blocks = torch.ones(len(numbers), 64)
    blocks[:, 1:] = numbers[:, None]
    assert_same(quantise_nf4(blocks, 64), expected(blocks))


@pytest.mark.parametrize("odd", [float("nan"), float("inf"), -float("inf"), 0.0, 1e-45])
def test_blocks_of_nothing_and_damaged_ones_too(odd):
    weight = torch.randn(4, 64, generator=torch.Generator().manual_seed(1))
    weight[1], weight[2, 5] = odd, odd
    assert_same(quantise_nf4(weight, 64), expected(weight))


def test_bitsandbytes_itself_quantises_by_it_and_by_its_own_what_it_does_not_cover():
    quantise_faster()
    quantise_faster()
    weight = torch.randn(64, 96, generator=torch.Generator().manual_seed(2))
    for numbers, quant_type, storage in (
        (weight, "nf4", torch.uint8),
        (weight, "fp4", torch.uint8),
        (weight, "nf4", torch.bfloat16),
        (weight[:, :95].contiguous(), "nf4", torch.uint8),
    ):
        packed, state = bitsandbytes.functional.quantize_4bit(
            numbers, blocksize=64, quant_type=quant_type, quant_storage=storage
        )
        assert_same((packed, state.absmax), expected(numbers, 64, quant_type, storage))
