"""Attention over packs, each sample for itself: without a mask, at a cost that follows the samples' lengths.

Samples of a pack do not see each other, yet masked attention over the whole pack computes every pair of its tokens, and
on a GPU no flash kernel takes such a mask. One mechanism for both kinds of machine: a GPU attends by torch's own kernel
for sequences of varying length, a CPU by one call a sample. Knows nothing about how packs are made.
"""

import inspect
from contextlib import nullcontext

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.varlen import varlen_attn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedConfig, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask
from trl import SFTConfig

from sft.config.recipe import keeps_packed_samples_apart

NAME = "sdpa_by_sample"
# Up to so many tokens, torch's plain kernel, which computes in float32, is faster in half precision than its flash
# kernel for CPUs, whose backward pass takes seven times the forward's (benchmarks/README.md).
SHORT = 160
# What torch's flash kernel for GPUs asks for: aten/src/ATen/native/transformers/cuda/flash_attn/flash_api.cpp.
LEAST_CAPABILITY, LARGEST_HEAD = (8, 0), 256
# torch 2.11 groups heads by itself; later versions need to be asked.
GROUPED = {"enable_gqa": True} if "enable_gqa" in inspect.signature(varlen_attn).parameters else {}


def use_packed_attention(model: PreTrainedModel) -> bool:
    """Let a model that attends by SDPA do so sample by sample; every other pass, generation too, stays as it was.

    Returns whether it is such a model.
    """
    if model.config._attn_implementation != "sdpa":
        return False
    model.set_attn_implementation(NAME)
    return True


def attend_over_packs(model: PreTrainedModel) -> bool:
    """Undo `use_packed_attention`; returns whether there was anything to undo."""
    if model.config._attn_implementation != NAME:
        return False
    model.set_attn_implementation("sdpa")
    return True


def attends_by_sample(training: SFTConfig) -> bool:
    """Whether attention over a pack runs sample by sample, where the model attends by SDPA."""
    return keeps_packed_samples_apart(training) and not training.parallelism_config


def needs_no_mask(config: PreTrainedConfig, dtype: torch.dtype, device: str) -> bool:
    """Whether packs are attended over without a mask on a device ("cpu", "cuda", ...), in activations of this type.

    A GPU that is planned for and not here is assumed to have the kernel.
    """
    if device != "cuda":
        return device == "cpu"
    has_kernel = not torch.cuda.is_available() or torch.cuda.get_device_capability() >= LEAST_CAPABILITY
    return has_kernel and dtype.itemsize == 2 and head_size(config) <= LARGEST_HEAD


def head_size(config: PreTrainedConfig) -> int:
    """Numbers in a head of a text model's attention."""
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def sample_mask(
    batch_size: int,
    q_length: int,
    kv_length: int,
    *,
    config: PreTrainedConfig,
    dtype: torch.dtype,
    device: torch.device,
    attention_mask: torch.Tensor | None = None,
    local_size: int | None = None,
    use_vmap: bool = False,
    **kwargs,
) -> torch.Tensor | None:
    """SDPA's mask, or None where `sample_attention` finds the samples by itself.

    That is in a single sequence without padding or cache, whose tokens see all of their sample before them: no sliding
    window shorter than the sequence, and nothing that a model adds of its own (`use_vmap`).
    """
    is_whole = batch_size == 1 and q_length == kv_length and attention_mask is None
    sees_all = not use_vmap and (local_size is None or local_size >= q_length)
    if is_whole and sees_all and needs_no_mask(config, dtype, device.type):
        return None
    return sdpa_mask(
        batch_size,
        q_length,
        kv_length,
        attention_mask=attention_mask,
        local_size=local_size,
        use_vmap=use_vmap,
        device=device,
        **kwargs,
    )


def sample_attention(
    module,
    query,
    key,
    value,
    attention_mask,
    position_ids=None,
    cu_seq_lens_q=None,
    max_length_q=None,
    computed_tokens=None,
    state_places=None,
    **kwargs,
):
    """SDPA over `(batch, heads, tokens, size)`; where `position_ids` `(1, tokens)` restart, a new sample begins.

    `cu_seq_lens_q` `(samples + 1,)` and `max_length_q`, as TRL's collator makes them, say the same without a wait for
    the device. Where a pack's needed tokens alone are computed (`sft.training.needed_tokens`), all its tokens take part
    here, each with its states among the computed.
    """
    is_pack = attention_mask is None and len(query) == 1 and query.shape[2] == key.shape[2]
    if not is_pack or position_ids is None or len(position_ids) != 1:
        return sdpa_attention_forward(module, query, key, value, attention_mask, position_ids=position_ids, **kwargs)
    if state_places is not None:
        whole = (states.index_select(2, state_places) for states in (query, key, value))
        output = _attend(module, *whole, cu_seq_lens_q, max_length_q, **kwargs)
        return output.index_select(1, computed_tokens), None
    bounds = _bounds(position_ids) if cu_seq_lens_q is None else cu_seq_lens_q
    return _attend(module, query, key, value, bounds, max_length_q, **kwargs), None


def _attend(module, query, key, value, bounds, max_length_q, **kwargs):
    """SDPA within `bounds`, `(1, tokens, heads, size)`."""
    if _suits_the_kernel(module, query, value, **kwargs):
        longest = max_length_q or int(bounds.diff().max())
        states = (heads[0].transpose(0, 1) for heads in (query, key, value))
        options = {"scale": kwargs.get("scaling"), "window_size": (-1, 0)} | GROUPED
        return varlen_attn(*states, bounds, bounds, longest, longest, **options)[None]
    lengths = bounds.diff().tolist()
    parts = []
    for sample in zip(*(states.split(lengths, dim=2) for states in (query, key, value)), strict=True):
        is_short = sample[0].shape[2] <= SHORT and query.dtype != torch.float32 and not query.is_cuda
        with sdpa_kernel(SDPBackend.MATH) if is_short else nullcontext():
            parts.append(sdpa_attention_forward(module, *sample, None, **kwargs)[0])
    return torch.cat(parts, dim=1)


def _suits_the_kernel(module, query, value, dropout=0.0, is_causal=None, **_) -> bool:
    """Whether `varlen_attn` computes this: on a GPU, in half precision, heads of one size, causal, without dropout."""
    causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    fits = query.dtype.itemsize == 2 and query.shape[-1] == value.shape[-1] and causal and not dropout
    return query.is_cuda and fits


def _bounds(position_ids: torch.Tensor) -> torch.Tensor:
    """First token of each sample, and the end of the last: `(samples + 1,)`, as kernels want it."""
    starts = (position_ids[0] == 0).nonzero()[:, 0]
    return torch.cat([starts, starts.new_tensor([position_ids.shape[1]])]).to(torch.int32)


AttentionInterface.register(NAME, sample_attention)
AttentionMaskInterface.register(NAME, sample_mask)
