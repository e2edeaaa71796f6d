"""Prompts read into a cache in parts give what one pass over them gives, in fewer tokens."""

import pytest
import torch
from transformers import (
    DynamicCache,
    GPTNeoConfig,
    GPTNeoForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
)

from sft.models.prompt_cache import FAMILY, read_prompts

SIZES = {
    "vocab_size": 97, "hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "attn_implementation": "sdpa",
}  # fmt: skip


@pytest.fixture
def model():
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**SIZES)).eval().requires_grad_(False)


def prompts(*kinds: tuple[int, list[int]]) -> list[list[int]]:
    """Of each kind, prompts that begin with the same so many tokens and go on with so many of their own."""
    torch.manual_seed(1)
    made = []
    for shared, lengths in kinds:
        beginning = torch.randint(97, (shared,)).tolist()
        made += [beginning + torch.randint(97, (length,)).tolist() for length in lengths]
    return made


def padded(rows: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    longest = max(map(len, rows))
    tokens = torch.tensor([[5] * (longest - len(row)) + row for row in rows])
    return tokens, torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows])


@pytest.fixture
def passes(model):
    """The shapes `(prompts, tokens)` of the model's passes."""
    shapes: list[tuple[int, int]] = []
    seen = lambda _, __, inputs: shapes.append(tuple(inputs["input_ids"].shape))  # noqa: E731
    model.base_model.register_forward_pre_hook(seen, with_kwargs=True)
    return shapes


def never() -> bool:
    return False


@pytest.mark.parametrize(
    "rows",
    [
        prompts((20, [3, 9, 30, 4, 1, 12])),
        prompts((20, [7, 2, 15, 5]), (18, [4, 4, 6, 5]), (0, [3, 50, 22])),
        prompts((0, [12, 3, 40])),
        prompts((0, [2])),
        [*prompts((30, [0])) * 5, *prompts((30, [4, 8]))],
    ],
    ids=["one family", "two and some alone", "all alone", "one", "the same"],
)
def test_the_cache_is_that_of_one_pass(model, rows):
    tokens, mask = padded(rows)
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    expected = DynamicCache(config=model.config)
    logits = model(tokens, attention_mask=mask, position_ids=positions, past_key_values=expected).logits[:, -1]
    cache = read_prompts(model, tokens, mask, never)
    assert cache.get_seq_length() == tokens.shape[1] - 1
    own = mask[:, None, :-1, None].bool()
    for layer, wanted in zip(cache.layers, expected.layers, strict=True):
        for held, whole in ((layer.keys, wanted.keys), (layer.values, wanted.values)):
            assert torch.allclose(held, torch.where(own, whole[:, :, :-1], 0.0), atol=1e-5)
    last = model(tokens[:, -1:], attention_mask=mask, position_ids=positions[:, -1:], past_key_values=cache).logits
    assert torch.allclose(last[:, -1], logits, atol=1e-5)


def test_what_a_family_begins_with_is_read_once_and_prompts_of_like_length_together(model, passes):
    tokens, mask = padded(prompts((20, [5, 6, 11, 50, 51]), (0, [30, 31])))
    assert read_prompts(model, tokens, mask, never) is not None
    # The last token of each is left to who generates.
    assert passes == [(1, 20), (2, 5), (1, 10), (2, 50), (2, 30)]


def test_fewer_than_a_family_are_read_whole(model, passes):
    tokens, mask = padded(prompts((20, [10] * (FAMILY - 1))))
    read_prompts(model, tokens, mask, never)
    assert passes == [(FAMILY - 1, 29)]


@pytest.mark.parametrize("after", [0, 1, 2])
def test_it_stops_before_the_pass_for_which_there_is_no_time(model, passes, after):
    tokens, mask = padded(prompts((20, [10, 11, 12, 50, 51])))
    assert read_prompts(model, tokens, mask, lambda: len(passes) >= after) is None
    assert len(passes) == after


def test_a_model_that_forgets_tokens_is_left_to_its_own_cache():
    windows_in_its_mask = GPTNeoConfig(
        vocab_size=97, hidden_size=48, num_layers=2, num_heads=4, attention_types=[[["global", "local"], 1]]
    )
    for model in (
        MistralForCausalLM(MistralConfig(**SIZES, sliding_window=8)),
        GPTNeoForCausalLM(windows_in_its_mask),
    ):
        assert read_prompts(model.eval(), *padded(prompts((20, [3, 9, 30, 4]))), never) is None


def test_prompts_of_one_token_need_no_cache(model):
    assert read_prompts(model, *padded([[3], [4]]), never) is None
