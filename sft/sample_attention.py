"""Attention over packs on a CPU, one sample after the other.

Samples of a pack do not see each other, yet masked attention over the whole pack computes every pair of its tokens.
Sample by sample the cost follows the samples' lengths, not the pack's squared. Knows nothing about how packs are made.
"""

from contextlib import nullcontext

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

NAME = "sdpa_by_sample"
# Up to so many tokens, torch's plain kernel, which computes in float32, is faster in half precision than its flash
# kernel for CPUs, whose backward pass takes seven times the forward's (benchmarks/README.md).
SHORT = 160


def attend_by_sample(model: PreTrainedModel) -> None:
    """Let a model that attends by SDPA do so sample by sample; every other pass, generation too, stays as it was."""
    if model.config._attn_implementation == "sdpa":
        model.set_attn_implementation(NAME)


def sample_attention(module, query, key, value, attention_mask, position_ids=None, **kwargs):
    """SDPA over `(batch, heads, tokens, size)`; where `position_ids` `(1, tokens)` restart, a new sample begins."""
    bounds = _bounds(position_ids) if query.shape[2] == key.shape[2] and len(query) == 1 else []
    if len(bounds) < 2:
        return sdpa_attention_forward(module, query, key, value, attention_mask, position_ids=position_ids, **kwargs)
    parts = []
    for start, end in bounds:
        sample = (states[:, :, start:end] for states in (query, key, value))
        is_short = end - start <= SHORT and query.dtype != torch.float32
        with sdpa_kernel(SDPBackend.MATH) if is_short else nullcontext():
            parts.append(sdpa_attention_forward(module, *sample, None, **kwargs)[0])
    return torch.cat(parts, dim=1), None


def _bounds(position_ids: torch.Tensor | None) -> list[tuple[int, int]]:
    """First token of each sample and the one after its last."""
    if position_ids is None or len(position_ids) != 1:
        return []
    starts = (position_ids[0] == 0).nonzero()[:, 0].tolist()
    return list(zip(starts, [*starts[1:], position_ids.shape[1]], strict=True))


AttentionInterface.register(NAME, sample_attention)
AttentionMaskInterface.register(NAME, sdpa_mask)
