"""Attention over packs on a CPU, one sample after the other.

Samples of a pack do not see each other, yet masked attention over the whole pack computes every pair of its tokens.
Sample by sample the cost follows the samples' lengths, not the pack's squared. Knows nothing about how packs are made.
"""

import torch
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

NAME = "sdpa_by_sample"


def attend_by_sample(model: PreTrainedModel) -> None:
    """Let a model that attends by SDPA do so sample by sample; every other pass, generation too, stays as it was."""
    if model.config._attn_implementation == "sdpa":
        model.set_attn_implementation(NAME)


def sample_attention(module, query, key, value, attention_mask, position_ids=None, **kwargs):
    """SDPA over `(batch, heads, tokens, size)`; where `position_ids` `(1, tokens)` restart, a new sample begins."""
    bounds = _bounds(position_ids) if query.shape[2] == key.shape[2] and len(query) == 1 else []
    if len(bounds) < 2:
        return sdpa_attention_forward(module, query, key, value, attention_mask, position_ids=position_ids, **kwargs)
    parts = (
        sdpa_attention_forward(module, *(states[:, :, start:end] for states in (query, key, value)), None, **kwargs)
        for start, end in bounds
    )
    return torch.cat([part for part, _ in parts], dim=1), None


def _bounds(position_ids: torch.Tensor | None) -> list[tuple[int, int]]:
    """First token of each sample and the one after its last."""
    if position_ids is None or len(position_ids) != 1:
        return []
    starts = (position_ids[0] == 0).nonzero()[:, 0].tolist()
    return list(zip(starts, [*starts[1:], position_ids.shape[1]], strict=True))


AttentionInterface.register(NAME, sample_attention)
AttentionMaskInterface.register(NAME, sdpa_mask)
