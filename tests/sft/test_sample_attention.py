"""Attention sample by sample gives what masked attention over the whole pack gives, and costs what the samples cost."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from sft import sample_attention
from sft.sample_attention import attend_by_sample

LENGTHS = (5, 1, 9)


@pytest.fixture
def models(tiny_model):
    """The same model twice: attending over whole packs, and sample by sample."""
    whole, by_sample = (AutoModelForCausalLM.from_pretrained(tiny_model, attn_implementation="sdpa") for _ in range(2))
    attend_by_sample(by_sample)
    return whole, by_sample


@pytest.fixture
def pairs(monkeypatch):
    """How many pairs of tokens each call of SDPA looked at."""
    seen, attend = [], sample_attention.sdpa_attention_forward

    def count(module, query, key, *rest, **kwargs):
        seen.append(query.shape[2] * key.shape[2])
        return attend(module, query, key, *rest, **kwargs)

    monkeypatch.setattr(sample_attention, "sdpa_attention_forward", count)
    return seen


def pack_of(lengths) -> dict:
    positions = torch.cat([torch.arange(length) for length in lengths])[None]
    return {"input_ids": (torch.arange(sum(lengths)) * 7 % 300)[None], "position_ids": positions, "use_cache": False}


def gradients_of(model, pack) -> tuple[torch.Tensor, list[torch.Tensor]]:
    logits = model(**pack).logits
    return logits, torch.autograd.grad(logits.logsumexp(-1).square().sum(), model.parameters())


def test_a_packs_logits_and_gradients_are_those_of_masked_attention(models, pairs):
    pack = pack_of(LENGTHS)
    (expected, expected_gradients), (logits, gradients) = (gradients_of(model, pack) for model in models)
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(gradients, expected_gradients, atol=1e-3, rtol=1e-3)
    layers = models[1].config.num_hidden_layers
    assert sum(pairs) == layers * sum(length**2 for length in LENGTHS)


@pytest.mark.parametrize(("dtype", "expected"), [(torch.bfloat16, [True, False, True]), (torch.float32, [False] * 3)])
def test_short_samples_in_half_precision_take_the_plain_kernel(models, monkeypatch, dtype, expected):
    is_plain, attend = [], sample_attention.sdpa_attention_forward

    def look(*arguments, **kwargs):
        is_plain.append(not torch.backends.cuda.flash_sdp_enabled())
        return attend(*arguments, **kwargs)

    whole, by_sample = models
    pack = pack_of((sample_attention.SHORT, sample_attention.SHORT + 1, 3))
    exact, exact_gradients = gradients_of(whole, pack)
    monkeypatch.setattr(sample_attention, "sdpa_attention_forward", look)
    logits, gradients = gradients_of(by_sample.to(dtype), pack)
    assert is_plain == expected * by_sample.config.num_hidden_layers
    assert torch.backends.cuda.flash_sdp_enabled()
    torch.testing.assert_close(logits.float(), exact, atol=2e-2, rtol=2e-2)
    error = sum((got.float() - right).norm() for got, right in zip(gradients, exact_gradients, strict=True))
    assert error < 0.02 * sum(right.norm() for right in exact_gradients)


@pytest.mark.parametrize("lengths", [(6,), (1,)])
def test_a_single_sample_is_attended_over_as_before(models, pairs, lengths):
    whole, by_sample = models
    torch.testing.assert_close(by_sample(**pack_of(lengths)).logits, whole(**pack_of(lengths)).logits)
    assert pairs == [lengths[0] ** 2] * by_sample.config.num_hidden_layers


def test_padded_batches_and_answers_are_as_before(models, tokenizer):
    whole, by_sample = models
    tokenizer.padding_side = "left"
    batch = tokenizer(["Who are you?", "I"], return_tensors="pt", padding=True)
    answers = [model.generate(**batch, max_new_tokens=8, do_sample=False) for model in models]
    assert torch.equal(*answers)
    torch.testing.assert_close(by_sample(**batch).logits, whole(**batch).logits)


def test_a_run_on_a_cpu_attends_by_sample_and_saves_a_model_that_does_not(make_trainer, tmp_path):
    trainer, _ = make_trainer(use_peft=False, max_steps=1)
    assert trainer.model.config._attn_implementation == sample_attention.NAME
    trainer.save_model(tmp_path / "saved")
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "saved").config._attn_implementation == "sdpa"
