"""What only a CPU needs: a head that runs on supervised tokens alone, gradients that one process of DeepSpeed leaves in
place, and warnings of what is slow here.

TRL's fused head spares a GPU most of the logits; elsewhere it scores every token, twice, and most tokens of a
conversation carry no loss. Here the head costs in proportion to the supervised tokens. A GPU could run it and gains
nothing by it (benchmarks/ablations.py). Knows nothing about the trainer.
"""

import functools
import re
import types
from typing import Any

import torch
from peft import PeftModel
from torch.distributed.tensor import DTensor
from torch.nn import functional
from transformers import PreTrainedModel
from trl.trainer.utils import FusedCausalLMOutput, maybe_gather_lm_head_ctx

from sft.config.recipe import Recipe
from sft.core.finding import Finding
from sft.core.language import _
from sft.data.labels import IGNORED
from sft.training.strategy import optimizer_name

# Rows of the `(tokens, vocabulary)` logits that are in memory at once.
HEAD_TILE = 256
# What some architectures do to logits before the softmax, or add to the loss; TRL's head knows how.
SPECIAL = (
    "final_logit_softcapping",
    "logit_scale",
    "logits_scaling",
    "lm_head_multiplier",
    "output_multiplier",
    "output_router_logits",
)


class SupervisedLogProbs(torch.autograd.Function):
    """log p(target) of each token under a head that is not trained, and its entropy and top-1 hit.

    Shapes: hidden `(tokens, hidden size)`, weight `(vocabulary, hidden size)`, bias `(vocabulary,)` or None, targets
    `(tokens,)`; the three results `(tokens,)`, of which log p alone has a gradient. That is W[target] - sum_v p_v W[v];
    p is at hand in the forward pass, so it is made there and no logits are kept or computed again, as in Liger's fused
    cross entropy (arXiv:2410.10989).
    """

    @staticmethod
    def forward(ctx, hidden, weight, bias, targets):
        """log p, entropy and top-1 hit of each token, tile by tile."""
        device = hidden.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype
        weight, bias = weight.to(dtype), None if bias is None else bias.to(dtype)
        tiles = zip(hidden.to(dtype).split(HEAD_TILE), targets.split(HEAD_TILE), strict=True)
        parts = [_tile(*tile, weight, bias, needs_gradient=ctx.needs_input_grad[0]) for tile in tiles]
        log_probs, entropy, is_top1, gradient = (torch.cat(column) for column in zip(*parts, strict=True))
        ctx.save_for_backward(gradient)
        ctx.dtype = hidden.dtype
        ctx.mark_non_differentiable(entropy, is_top1)
        return log_probs, entropy, is_top1

    @staticmethod
    def backward(ctx, grad_log_probs, *_):
        """The gradient by the hidden states, made in the forward pass, times that of each log p."""
        (gradient,) = ctx.saved_tensors
        return (gradient * grad_log_probs[:, None]).to(ctx.dtype), None, None, None


def _tile(hidden, targets, weight, bias, *, needs_gradient: bool) -> tuple[torch.Tensor, ...]:
    """log p, entropy, top-1 hit and the gradient of log p by the hidden states (empty unless needed) of some tokens."""
    target = targets[:, None]
    with torch.autocast(hidden.device.type, enabled=False):
        logits = functional.linear(hidden, weight, bias).float()
        is_top1 = logits.argmax(dim=-1) == targets
        log_total = logits.logsumexp(dim=-1, keepdim=True)
        log_probs = logits.gather(-1, target) - log_total
        probabilities = (logits - log_total).exp_()
        entropy = log_total[:, 0] - torch.linalg.vecdot(probabilities, logits)
        if not needs_gradient:
            return log_probs[:, 0], entropy, is_top1, hidden.new_empty(0)
        probabilities.scatter_add_(-1, target, torch.full_like(log_probs, -1.0))
        gradient = -(probabilities.to(weight.dtype) @ weight).float()
    return log_probs[:, 0], entropy, is_top1, gradient


def can_mask_head(model: PreTrainedModel | PeftModel) -> bool:
    """Whether `use_masked_lm_head` covers this model's head; any other head stays TRL's.

    Not covered are a head that is trained or quantised, logits that are scaled or capped, and mixtures of experts.
    """
    head, config = model.get_output_embeddings(), model.config.get_text_config()
    is_plain = type(head) is torch.nn.Linear and not head.weight.requires_grad
    return is_plain and not any(getattr(config, key, None) for key in SPECIAL)


def use_masked_lm_head(model: PreTrainedModel) -> None:
    """Let `model(..., labels=labels, fused_lm_head=True)` run the head on supervised tokens alone.

    Call it after SFTTrainer has added its fused head, whose place it takes, save where `can_mask_head` is false or FSDP
    divides the head.
    """
    if not can_mask_head(model):
        return
    fused_forward = model.forward

    # `generate` looks at the signature of `forward` for the arguments it may pass.
    @functools.wraps(type(model).forward)
    def forward(self, *args, fused_lm_head=False, labels=None, num_items_in_batch=None, **kwargs):
        head = self.get_output_embeddings()
        if not fused_lm_head or kwargs.get("shift_labels") is not None or isinstance(head.weight, DTensor):
            kwargs |= {"fused_lm_head": fused_lm_head, "labels": labels, "num_items_in_batch": num_items_in_batch}
            return fused_forward(*args, **kwargs)
        hidden = self.base_model(*args, **kwargs | {"use_cache": False}).last_hidden_state[:, :-1]
        targets = labels[:, 1:]
        mask = targets != IGNORED
        with maybe_gather_lm_head_ctx(head.weight, head.bias):
            supervised = SupervisedLogProbs.apply(hidden[mask], head.weight, head.bias, targets[mask])
        log_probs, entropy, is_top1 = (part.new_zeros(mask.shape).masked_scatter(mask, part) for part in supervised)
        items = mask.sum().clamp(min=1) if num_items_in_batch is None else num_items_in_batch
        return FusedCausalLMOutput(
            loss=-log_probs.sum() / items, log_probs=log_probs, entropy=entropy, is_top1=is_top1, label_mask=mask
        )

    model.forward = types.MethodType(forward, model)


def leave_gradients_in_place(optimizer: Any) -> None:
    """Let ZeRO-2 of one process take each gradient from where the backward pass left it.

    DeepSpeed copies gradients into a bucket, averages them over the one process and copies them out of it, each time
    into fresh memory. Gradients, steps and checkpoints are the same without. Where they are accumulated in another type
    than they are computed in, the copies are needed.
    """
    if optimizer.gradient_accumulation_dtype == optimizer.dtype:
        optimizer.contiguous_gradients = False
        optimizer.buffered_reduce_fallback = lambda *_, **__: None


def check_speed(recipe: Recipe) -> list[Finding]:
    """Warnings where a setting makes steps slow on a CPU that another would not."""
    optim = optimizer_name(recipe.training)
    if recipe.run.card or torch.accelerator.is_available() or not re.search("bnb_8bit|^(paged_)?[a-z]+_8bit", optim):
        return []
    # 0.04 to 0.2 s a matrix of 16,384 to 2,359,296 numbers with bitsandbytes 0.50.2 on two cores.
    wrong = _("optim: {optim} takes about 0.1 s a step for every weight matrix on a CPU", optim=optim)
    return [Finding(wrong, do=_("set {setting}", setting="optim: adamw_torch_fused"))]
