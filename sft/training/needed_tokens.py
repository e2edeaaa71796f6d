"""Computes of a pack what its loss needs, and that once: samples that begin alike share the states of their beginning.

Where attention is causal, the states of a token follow from it and the tokens before it. Samples that begin with one
system message, or ask one question, have the same states there; and on what stands behind a sample's last supervised
token no loss depends. The loss and its gradients are those of the whole pack, up to rounding, at the cost of fewer
tokens. Knows nothing about how packs are made.
"""

import functools
import types
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from peft import PeftModel
from transformers import PreTrainedConfig, PreTrainedModel
from trl import SFTConfig

from sft.data.labels import IGNORED
from sft.models.model_state import preserve_state

# How far logits may be apart, in their standard deviations, on average: half precision rounds differently where there
# are fewer tokens, by up to 0.02; a sample that does not see its beginning is apart by about one.
TOLERANCE = 0.05


class NeededTokens:
    """A collator that says of each pack what is to be computed of it, for a model as `compute_needed_tokens` leaves it.

    Beside what the collator it is made of returns for a pack of `(1, tokens)`:
    `computed_tokens` `(computed,)`: which tokens are computed;
    `state_places` `(tokens,)`: where among these the states of each token are. A token that is not needed has some
    other's.
    """

    def __init__(self, collate: Callable[[list], dict[str, Any]]):
        self.collate = collate
        self.is_used = True

    def __call__(self, samples: list) -> dict[str, Any]:
        """The batch of these samples."""
        batch = self.collate(samples)
        if not self.is_used:
            return batch
        tokens, labels = batch["input_ids"][0].tolist(), batch["labels"][0].tolist()
        computed, places = needed_tokens(tokens, labels, batch["cu_seq_lens_q"].tolist())
        return batch | {"computed_tokens": torch.tensor(computed), "state_places": torch.tensor(places)}


def needed_tokens(tokens: list[int], labels: list[int], bounds: list[int]) -> tuple[list[int], list[int]]:
    """Which tokens of a pack are computed, and for each token the place of its states among them.

    `bounds` are the first token of each sample and the end of the last.
    """
    computed: list[int] = []
    places: list[int] = []
    # By the place of the token before, -1 for none, and the token itself: a tree of what samples begin with.
    known: dict[tuple[int, int], int] = {}
    for start, end in pairwise(bounds):
        last_needed = next((index for index in range(end - 1, start, -1) if labels[index] != IGNORED), start)
        place = -1
        for index in range(start, end):
            if index < last_needed or not computed:
                place = known.setdefault((place, tokens[index]), len(computed))
                if place == len(computed):
                    computed.append(index)
                places.append(place)
            else:
                places.append(0)
    return computed, places


def compute_needed_tokens(base: PreTrainedModel) -> None:
    """Let the model's layers compute `computed_tokens` alone where a batch names them, and return the states of all."""
    layers: Any = base.base_model
    whole_forward = layers.forward

    @functools.wraps(whole_forward)
    def forward(self, input_ids=None, *args, computed_tokens=None, state_places=None, position_ids=None, **kwargs):
        if computed_tokens is None:
            return whole_forward(input_ids, *args, position_ids=position_ids, **kwargs)
        kwargs |= {"computed_tokens": computed_tokens, "state_places": state_places}
        output = whole_forward(
            input_ids[:, computed_tokens], *args, position_ids=position_ids[:, computed_tokens], **kwargs
        )
        output.last_hidden_state = output.last_hidden_state.index_select(1, state_places)
        return output

    layers.forward = types.MethodType(forward, layers)


def can_leave_tokens_out(training: SFTConfig, model: PreTrainedModel | PeftModel, *, on_gpu: bool) -> bool:
    """Whether a run, whose attention goes sample by sample, may leave out tokens that its loss does not need.

    Dropout is to be drawn for each sample anew, and what mixtures of experts learn to balance is the load of all
    tokens. A GPU would gain by it too, but no run on one has shown it.
    """
    config = model.config.get_text_config()
    drops_out = getattr(config, "attention_dropout", 0) or any(
        module.p for module in model.modules() if isinstance(module, torch.nn.Dropout)
    )
    balances = getattr(config, "output_router_logits", False)
    longest = training.max_length or config.max_position_embeddings
    return not (on_gpu or training.fsdp or drops_out or balances) and sees_all_before(config, longest)


def sees_all_before(config: PreTrainedConfig, longest: int) -> bool:
    """Whether each layer's attention sees all that comes before a token, in samples of so many tokens."""
    kinds = set(getattr(config, "layer_types", None) or ["sliding_attention"])
    window = getattr(config, "sliding_window", None)
    slides = "sliding_attention" in kinds and window is not None and longest > window
    return kinds <= {"full_attention", "sliding_attention"} and not slides


def changes_logits(model: torch.nn.Module, base: PreTrainedModel, collate: NeededTokens) -> bool:
    """Whether the model gives other logits for the needed tokens of a pack than for all of it, by trying it.

    An architecture that does not hand arguments down to its attention, or mixes tokens by something else, does.
    """
    size, device = base.config.get_text_config().vocab_size, base.device
    shared, first, second = ([step * number % size for number in range(1, 9)] for step in (7, 11, 3))
    tokens, length = shared + first + shared + second, len(shared + first)
    pack = {"input_ids": tokens, "labels": tokens, "seq_lengths": [length, length]}
    batch = {key: value.to(device) if torch.is_tensor(value) else value for key, value in collate([pack]).items()}
    labels = batch.pop("labels")
    whole = {key: value for key, value in batch.items() if key not in ("computed_tokens", "state_places")}
    with preserve_state(model):
        alone, together = (model(**inputs, use_cache=False).logits.float() for inputs in (batch, whole))
    needed = labels[0, 1:] != IGNORED
    difference = (alone - together)[0, :-1][needed].abs().mean()
    return bool(difference > TOLERANCE * together.std())
