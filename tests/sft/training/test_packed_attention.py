"""Attention sample by sample gives what masked attention over the whole pack gives, and costs what the samples cost."""

from itertools import pairwise

import pytest
import torch
from torch.nn import functional
from transformers import AutoModelForCausalLM, LlamaConfig, MistralConfig, MistralForCausalLM

from sft.training import packed_attention
from sft.training.packed_attention import attend_over_packs, needs_no_mask, use_packed_attention

LENGTHS = (5, 1, 9)


@pytest.fixture
def models(tiny_model):
    """The same model twice: attending over whole packs, and sample by sample."""
    whole, by_sample = (AutoModelForCausalLM.from_pretrained(tiny_model, attn_implementation="sdpa") for _ in range(2))
    use_packed_attention(by_sample)
    return whole, by_sample


@pytest.fixture
def pairs(monkeypatch):
    """How many pairs of tokens each call of SDPA looked at."""
    seen, attend = [], packed_attention.sdpa_attention_forward

    def count(module, query, key, *rest, **kwargs):
        seen.append(query.shape[2] * key.shape[2])
        return attend(module, query, key, *rest, **kwargs)

    monkeypatch.setattr(packed_attention, "sdpa_attention_forward", count)
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
    is_plain, attend = [], packed_attention.sdpa_attention_forward

    def look(*arguments, **kwargs):
        is_plain.append(not torch.backends.cuda.flash_sdp_enabled())
        return attend(*arguments, **kwargs)

    whole, by_sample = models
    pack = pack_of((packed_attention.SHORT, packed_attention.SHORT + 1, 3))
    exact, exact_gradients = gradients_of(whole, pack)
    monkeypatch.setattr(packed_attention, "sdpa_attention_forward", look)
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
    assert trainer.model.config._attn_implementation == packed_attention.NAME
    trainer.save_model(tmp_path / "saved")
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "saved").config._attn_implementation == "sdpa"


def test_it_can_be_undone(models):
    _, by_sample = models
    assert attend_over_packs(by_sample)
    assert by_sample.config._attn_implementation == "sdpa"
    assert not attend_over_packs(by_sample)


@pytest.fixture
def kernel(monkeypatch):
    """The kernel of a GPU in plain PyTorch, taken for what suits every input; returns what it was called with."""
    calls = []

    def attend(query, key, value, starts, ends, longest, _, scale, window_size, **grouped):
        assert window_size == (-1, 0)
        assert starts is ends
        calls.append((starts.tolist(), longest))
        groups = query.shape[1] // key.shape[1]
        parts = []
        for start, end in pairwise(starts.tolist()):
            q, k, v = (states[start:end].transpose(0, 1) for states in (query, key, value))
            k, v = (heads.repeat_interleave(groups, 0) for heads in (k, v))
            parts.append(functional.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale).transpose(0, 1))
        return torch.cat(parts)

    monkeypatch.setattr(packed_attention, "varlen_attn", attend)
    monkeypatch.setattr(packed_attention, "_suits_the_kernel", lambda *_, **__: True)
    return calls


def test_a_gpus_kernel_is_given_the_samples_and_gives_what_masks_do(models, kernel):
    pack = pack_of(LENGTHS)
    (expected, expected_gradients), (logits, gradients) = (gradients_of(model, pack) for model in models)
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(gradients, expected_gradients, atol=1e-3, rtol=1e-3)
    assert kernel == [([0, 5, 6, 15], 9)] * models[1].config.num_hidden_layers


def test_the_collators_bounds_spare_a_wait_for_the_device(make_trainer, kernel, monkeypatch):
    trainer, _ = make_trainer(lora_dropout=0.0)
    monkeypatch.setattr(packed_attention, "_bounds", lambda _: pytest.fail("looked for bounds that were there"))
    pack = trainer.train_dataset[0]
    batch = trainer.data_collator([pack])
    trainer.compute_loss(trainer.model, dict(batch))
    starts, longest = kernel[0]
    assert [end - start for start, end in pairwise(starts)] == pack["seq_lengths"]
    assert longest == max(pack["seq_lengths"])


def test_a_window_shorter_than_the_pack_keeps_its_mask(pairs):
    torch.manual_seed(0)
    for window, masked in ((4, True), (64, False)):
        config = MistralConfig(
            vocab_size=320, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, sliding_window=window,
        )  # fmt: skip
        whole, by_sample = MistralForCausalLM(config).eval(), MistralForCausalLM(config).eval()
        by_sample.load_state_dict(whole.state_dict())
        for model in (whole, by_sample):
            model.set_attn_implementation("sdpa")
        use_packed_attention(by_sample)
        pack = pack_of(LENGTHS)
        torch.testing.assert_close(by_sample(**pack).logits, whole(**pack).logits, atol=1e-5, rtol=1e-4)
        # A pack under a mask is one call over all its pairs.
        assert (15**2 in pairs) == masked
        pairs.clear()


@pytest.mark.parametrize(
    ("device", "dtype", "head", "expected"),
    [
        ("cpu", torch.float32, 64, True),
        ("cuda", torch.float16, 128, True),
        ("cuda", torch.bfloat16, 256, True),
        ("cuda", torch.float32, 128, False),
        ("cuda", torch.float16, 512, False),
        ("mps", torch.float16, 128, False),
    ],
)
def test_no_mask_is_made_where_a_kernel_does_without(device, dtype, head, expected):
    assert needs_no_mask(LlamaConfig(head_dim=head), dtype, device) == expected


@pytest.mark.parametrize("capability", [(7, 5), (8, 0), (9, 0)])
def test_a_gpu_older_than_ampere_gets_masks(monkeypatch, capability):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    assert needs_no_mask(LlamaConfig(), torch.float16, "cuda") == (capability >= (8, 0))
