"""Of a pack what its loss needs is computed, once: the loss and its gradients are those of the whole pack."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, Lfm2Config, LlamaConfig, MistralConfig, Qwen2Config
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from sft.data.labels import IGNORED
from sft.training.needed_tokens import (
    NeededTokens,
    changes_logits,
    compute_needed_tokens,
    needed_tokens,
    sees_all_before,
)
from sft.training.packed_attention import use_packed_attention

sample = st.lists(st.tuples(st.integers(0, 2), st.booleans()), min_size=1, max_size=6)


def pack_of(samples) -> dict:
    """The samples, lists of (token, whether it is supervised), laid end to end; TRL takes the first label out."""
    tokens = [token for part in samples for token, _ in part]
    labels = [token if index and kept else IGNORED for part in samples for index, (token, kept) in enumerate(part)]
    return {"input_ids": tokens, "labels": labels, "seq_lengths": [len(part) for part in samples]}


@given(st.lists(sample, min_size=1, max_size=5))
def test_every_needed_token_has_the_states_of_its_own_beginning_and_none_is_computed_twice(samples):
    pack = pack_of(samples)
    bounds = [0, *torch.tensor(pack["seq_lengths"]).cumsum(0).tolist()]
    computed, places = needed_tokens(pack["input_ids"], pack["labels"], bounds)
    beginnings = {
        index: tuple(pack["input_ids"][start : index + 1])
        for start, end in pairwise(bounds)
        for index in range(start, end)
    }
    needed = [
        index
        for start, end in pairwise(bounds)
        for index in range(start, end)
        if any(label != IGNORED for label in pack["labels"][index + 1 : end])
    ]
    assert all(beginnings[computed[places[index]]] == beginnings[index] for index in needed)
    assert len(places) == len(pack["input_ids"])
    assert computed == sorted(computed)
    if needed:
        assert {beginnings[index] for index in computed} >= {beginnings[index] for index in needed}
        assert len(computed) <= len({beginnings[index] for index in needed}) + 1
        assert len({beginnings[index] for index in computed}) == len(computed)


SHARED = [(token, False) for token in (5, 9, 2, 8)]
SAMPLES = [
    [*SHARED, (11, False), (12, True), (13, True), (4, False)],
    [*SHARED, (11, False), (12, True), (14, True)],
    [(7, False), (3, True)],
    [*SHARED, (15, False), (16, True), (4, True), (1, False), (1, False)],
]


def gradients_of(model, batch) -> tuple[torch.Tensor, tuple]:
    labels = batch.pop("labels")
    logits = model(**batch, use_cache=False).logits[:, :-1]
    loss = torch.nn.functional.cross_entropy(logits[0], labels[0, 1:], ignore_index=IGNORED)
    return loss, torch.autograd.grad(loss, model.parameters())


def test_loss_and_gradients_are_those_of_the_whole_pack(tiny_model):
    model = AutoModelForCausalLM.from_pretrained(tiny_model, attn_implementation="sdpa")
    use_packed_attention(model)
    compute_needed_tokens(model)
    computed = []
    model.model.layers[0].register_forward_pre_hook(lambda _, inputs: computed.append(inputs[0].shape[1]))
    collate = NeededTokens(DataCollatorForLanguageModeling(pad_token_id=0, padding_free=True))
    loss, gradients = gradients_of(model, collate([pack_of(SAMPLES)]))
    collate.is_used = False
    expected, expected_gradients = gradients_of(model, collate([pack_of(SAMPLES)]))
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(gradients, expected_gradients, atol=1e-6, rtol=1e-4)
    # 6 of the first sample, no more of the second, one of the third and 2 of the last.
    assert computed == [6 + 0 + 1 + 2, sum(len(part) for part in SAMPLES)]


@pytest.mark.parametrize("keys", [{}, {"use_peft": False}])
def test_a_run_on_a_cpu_computes_needed_tokens_alone_and_learns_the_same(make_trainer, monkeypatch, keys):
    losses = {}
    for is_used in (True, False):
        trainer, _ = make_trainer(max_steps=3, logging_steps=1, lora_dropout=0, **keys)
        monkeypatch.setattr("sft.training.callbacks.changes_logits", lambda *_, wanted=is_used: not wanted)
        trainer.train()
        assert trainer.data_collator.is_used is is_used
        losses[is_used] = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[True] == pytest.approx(losses[False], abs=1e-3)
    assert len(losses[True]) == 3


def test_the_model_proves_it_before_the_first_step(make_trainer):
    trainer, _ = make_trainer(max_steps=1, lora_dropout=0)
    trainer.train()
    assert trainer.data_collator.is_used


def test_with_dropout_every_token_is_computed(make_trainer):
    trainer, _ = make_trainer(lora_dropout=0.1)
    assert not isinstance(trainer.data_collator, NeededTokens)


def test_attention_that_is_not_told_of_shared_beginnings_is_found_out(tiny_model):
    collate = NeededTokens(DataCollatorForLanguageModeling(pad_token_id=0, padding_free=True))
    told, untold = (AutoModelForCausalLM.from_pretrained(tiny_model, attn_implementation="sdpa") for _ in range(2))
    use_packed_attention(told)
    for model in (told, untold):
        compute_needed_tokens(model)
        with torch.no_grad():
            for layer in model.model.layers:  # of random weights this small, attention moves next to nothing
                layer.self_attn.v_proj.weight *= 30
                layer.self_attn.o_proj.weight *= 30
    assert not changes_logits(told, told, collate)
    assert changes_logits(untold, untold, collate)


@pytest.mark.parametrize(
    ("config", "longest", "expected"),
    [
        (LlamaConfig(), 4096, True),
        (MistralConfig(sliding_window=1024), 1024, True),
        (MistralConfig(sliding_window=1024), 1025, False),
        (MistralConfig(sliding_window=None), 99_999, True),
        (Qwen2Config(sliding_window=1024, use_sliding_window=False), 4096, True),
        (Qwen2Config(sliding_window=1024, use_sliding_window=True, max_window_layers=0), 4096, False),
        (Lfm2Config(num_hidden_layers=2, layer_types=["conv", "full_attention"]), 64, False),
    ],
)
def test_only_attention_that_sees_all_of_a_sample_is_shared(config, longest, expected):
    assert sees_all_before(config, longest) is expected
