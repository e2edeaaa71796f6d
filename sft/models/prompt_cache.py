"""Reads prompts into a cache in as few tokens as it takes: of like length together, what several begin with once.

In: a model and left-padded prompts. Out: the cache that one pass over them would have filled, up to rounding. Knows
nothing about answers.
"""

import copy
import inspect
import itertools
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.cache_utils import DynamicCache, DynamicLayer

# Prompts that begin with the same so many tokens are a family where there are so many of them: a chat template's own
# system message is longer.
BEGINNING, FAMILY = 16, 4
# So many prompts are read in one pass at most, of which the longest is at most so many times as long as the shortest:
# more at once are no faster a token on a CPU, and less alike they would be padding by a fifth.
TOGETHER, UNLIKE = 16, 1.4


def read_prompts(
    model: PreTrainedModel, tokens: torch.Tensor, mask: torch.Tensor, is_over: Callable[[], bool]
) -> DynamicCache | None:
    """The cache of all of `tokens`, `(prompts, tokens)`, but the last; what it holds of padding is zero.

    None as soon as it `is_over`, which is asked before every pass, and for a model that keeps something else than keys
    and values of every token, has its windows by place in the cache, or cannot be asked for one token's logits alone.
    """
    prompts = [row[is_own][:-1].tolist() for row, is_own in zip(tokens, mask.bool(), strict=True)]
    if not all(prompts) or not _keeps_every_token(model):
        return None
    size = (len(prompts), tokens.shape[1] - 1)
    held: list[list[torch.Tensor]] = []  # of each layer keys and values, `(prompts, heads, tokens, size)`
    for family, shared in _families(prompts):
        begun = DynamicCache(config=model.config.get_text_config())
        if is_over():
            return None
        _read(model, [prompts[family[0]][:shared]], begun)
        for rows in _of_like_length({row: len(prompts[row]) - shared for row in family}):
            if is_over():
                return None
            part = copy.deepcopy(begun)
            part.batch_repeat_interleave(len(rows))
            _read(model, [prompts[row][shared:] for row in rows], part)
            layers: list[Any] = part.layers
            pairs = [(layer.keys, layer.values) for layer in layers]
            held = held or [
                [new.new_zeros(size[0], new.shape[1], size[1], new.shape[3]) for new in two] for two in pairs
            ]
            for whole, new in zip(itertools.chain(*held), itertools.chain(*pairs), strict=True):
                for row, own in zip(rows, new, strict=True):
                    _put_at_the_right(whole[row], own, shared, len(prompts[row]))
    cache = DynamicCache(config=model.config.get_text_config())
    for number, (keys, values) in enumerate(held):
        cache.update(keys, values, number)
        held[number] = []  # the cache has a copy
    return cache


def _keeps_every_token(model: PreTrainedModel) -> bool:
    config = model.config.get_text_config()
    layers = DynamicCache(config=config).layers
    takes = inspect.signature(model.forward).parameters.keys() >= {"position_ids", "logits_to_keep"}
    # GPT-Neo's windows count what lies between two tokens in the cache, padding too, and are not in its cache's layers.
    has_windows = bool(getattr(config, "attention_types", None))
    return takes and not has_windows and {type(layer) for layer in layers} == {DynamicLayer}


def _families(prompts: list[list[int]]) -> Iterator[tuple[list[int], int]]:
    """Places of prompts, the shortest first, and how many tokens all of these begin with."""
    places = sorted(range(len(prompts)), key=lambda row: len(prompts[row]))
    alike = defaultdict(list)
    for row in places:
        alike[tuple(prompts[row][:BEGINNING])].append(row)
    families = [rows for rows in alike.values() if len(rows) >= FAMILY]
    for rows in families:
        columns = zip(*(prompts[row] for row in rows), strict=False)
        yield rows, sum(1 for _ in itertools.takewhile(lambda column: len(set(column)) == 1, columns))
    related = {row for rows in families for row in rows}
    if alone := [row for row in places if row not in related]:
        yield alone, 0


def _of_like_length(lengths: dict[int, int]) -> Iterator[list[int]]:
    """Places by their lengths, the shortest first, as one pass after the other reads them."""
    rows = list(lengths)
    while rows:
        most = UNLIKE * lengths[rows[0]]
        some = [row for row in rows[:TOGETHER] if lengths[row] <= most]
        yield some
        rows = rows[len(some) :]


def _read(model: PreTrainedModel, prompts: list[list[int]], cache: DynamicCache) -> None:
    """Add prompts to a cache, padded at their left to the longest of them; nothing where all are empty."""
    longest = max(map(len, prompts))
    if not longest:
        return
    known = torch.ones(len(prompts), cache.get_seq_length(), dtype=torch.long)
    own = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    mask = torch.cat([known, own], dim=1).to(model.device)
    # Not the layers alone: accelerate computes in half precision around the model's own forward.
    model(
        input_ids=torch.tensor([[0] * (longest - len(prompt)) + prompt for prompt in prompts], device=model.device),
        attention_mask=mask,
        position_ids=(mask.cumsum(1) - 1).clamp(min=0)[:, -longest:],
        past_key_values=cache,
        use_cache=True,
        logits_to_keep=1,
    )


def _put_at_the_right(whole: torch.Tensor, own: torch.Tensor, shared: int, length: int) -> None:
    """Copy a prompt's keys or values, `(heads, tokens, size)`, without the padding after what is shared."""
    end, rest = whole.shape[1], length - shared
    whole[:, end - length : end - rest] = own[:, :shared]
    whole[:, end - rest :] = own[:, own.shape[1] - rest :]
