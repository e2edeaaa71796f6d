"""InternLM2 as published, on Transformers' Llama: the numbers of a plain reference, the names of its makers."""

import json

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from torch.nn import functional
from transformers import AutoModelForCausalLM
from trl import ModelConfig

from sft.models.loading import load_model
from tests.support.published_internlm2 import EPSILON, FACTOR, THETA, TRAINED_LENGTH, random_weights, write_folder


def reference(weights: dict, ids: torch.Tensor, heads: int, kv: int) -> torch.Tensor:
    """InternLM2's forward pass in plain PyTorch, `(length,)` ids to `(length, vocabulary)` logits."""
    length = len(ids)
    x = weights["model.tok_embeddings.weight"][ids]
    head, group = x.shape[1] // heads, heads // kv
    theta = THETA
    if length > TRAINED_LENGTH:
        theta *= (FACTOR * length / TRAINED_LENGTH - (FACTOR - 1)) ** (head / (head - 2))
    turns = torch.arange(length)[:, None] * theta ** -(torch.arange(0, head, 2) / head)
    cosine, sine = torch.cat([turns, turns], -1).cos(), torch.cat([turns, turns], -1).sin()

    def rotate(vectors):
        first, second = vectors.chunk(2, -1)
        return vectors * cosine[:, None] + torch.cat([-second, first], -1) * sine[:, None]

    def norm(vectors, weight):
        return vectors * torch.rsqrt(vectors.pow(2).mean(-1, keepdim=True) + EPSILON) * weight

    for layer in range(2):
        part = {name.removeprefix(f"model.layers.{layer}."): value for name, value in weights.items()}
        fused = functional.linear(
            norm(x, part["attention_norm.weight"]), part["attention.wqkv.weight"], part.get("attention.wqkv.bias")
        ).view(length, kv, group + 2, head)
        queries = rotate(fused[:, :, :group].reshape(length, heads, head))
        keys = rotate(fused[:, :, group]).repeat_interleave(group, 1)
        values = fused[:, :, group + 1].repeat_interleave(group, 1)
        scores = torch.einsum("ihd,jhd->hij", queries, keys) / head**0.5
        scores = scores.masked_fill(torch.ones(length, length).triu(1).bool(), -torch.inf).softmax(-1)
        mixed = torch.einsum("hij,jhd->ihd", scores, values).reshape(length, heads * head)
        x = x + functional.linear(mixed, part["attention.wo.weight"], part.get("attention.wo.bias"))
        inner = norm(x, part["ffn_norm.weight"])
        gate = functional.silu(inner @ part["feed_forward.w1.weight"].T)
        x = x + (gate * (inner @ part["feed_forward.w3.weight"].T)) @ part["feed_forward.w2.weight"].T
    return norm(x, weights["model.norm.weight"]) @ weights["output.weight"].T


@pytest.mark.parametrize("length", [1, 40, 100], ids=lambda length: f"{length} tokens")
@pytest.mark.parametrize(
    ("shape", "bias", "shards", "pickled"),
    [
        ((256, 8, 2), False, 1, False),
        ((256, 8, 2), True, 3, False),
        ((256, 4, 4), False, 2, True),
        ((128, 8, 1), True, 1, True),
    ],
    ids=["four queries a key", "bias, three shards", "one query a key, pickled shards", "one key, bias, pickled"],
)
def test_the_logits_are_those_of_the_reference(tmp_path, shape, bias, shards, pickled, length):
    weights = random_weights(*shape, bias=bias)
    write_folder(tmp_path, weights, *shape, bias=bias, shards=shards, pickled=pickled)
    model = load_model(ModelConfig(str(tmp_path), dtype="float32", attn_implementation="sdpa"))
    ids = torch.randint(300, (length,))
    assert model.config._attn_implementation == "sdpa"
    with torch.no_grad():
        logits = model(ids[None]).logits[0]
    torch.testing.assert_close(logits, reference(weights, ids, *shape[1:]), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_what_is_saved_has_the_published_names_bit_for_bit(tmp_path, dtype):
    weights = {name: value.to(getattr(torch, dtype)) for name, value in random_weights(256, 8, 2, bias=True).items()}
    folder = write_folder(tmp_path / "base", weights, 256, 8, 2, bias=True)
    load_model(ModelConfig(str(folder), dtype=dtype)).save_pretrained(tmp_path / "saved")
    saved = load_file(tmp_path / "saved" / "model.safetensors")
    assert saved.keys() == weights.keys()
    assert all(torch.equal(saved[name], weights[name]) for name in weights)
    before, after = (json.loads((tmp_path / name / "config.json").read_text()) for name in ("base", "saved"))
    for key in ("model_type", "bias", "rope_theta", "auto_map", "num_key_value_heads", "vocab_size"):
        assert after[key] == before[key], key
    assert after["rope_scaling"] == before["rope_scaling"]
    assert "attn_implementation" not in after


def test_answers_are_generated_with_the_cache_as_without(tmp_path):
    write_folder(tmp_path, random_weights(256, 8, 2), 256, 8, 2)
    model = load_model(ModelConfig(str(tmp_path), dtype="float32"))
    ids = torch.arange(5, 15)[None]
    settings = {"max_new_tokens": 12, "do_sample": False, "eos_token_id": None}
    cached, plain = (model.generate(ids, use_cache=use_cache, **settings) for use_cache in (True, False))
    assert torch.equal(cached, plain)


def test_a_qlora_run_on_the_published_folder_trains_and_its_adapter_merges_under_the_published_names(
    make_trainer, tokenizer, tmp_path
):
    """NF4 load, training with leak check, save, reload, merge, save, reload: the same answers."""
    shape = (256, 4, 2)
    folder = write_folder(tmp_path / "base", random_weights(*shape, vocabulary=len(tokenizer)), *shape)
    tokenizer.save_pretrained(folder)
    trainer, _ = make_trainer(
        model_name_or_path=str(folder), load_in_4bit=True, bnb_4bit_quant_type="nf4", learning_rate=2e-3, max_steps=24
    )
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert sum(losses[-4:]) < sum(losses[:4])
    assert any("q_proj" in name for name, value in trainer.model.named_parameters() if value.requires_grad)
    trainer.save_model(str(tmp_path / "adapter"))

    ids = torch.arange(3, 40)[None]
    base = load_model(ModelConfig(str(folder), dtype="float32"))
    untrained = base(ids).logits
    adapted = PeftModel.from_pretrained(base, tmp_path / "adapter")
    with_adapter = adapted(ids).logits
    assert not torch.allclose(untrained, with_adapter, atol=1e-2)
    adapted.merge_and_unload().save_pretrained(tmp_path / "merged")
    assert "model.layers.0.attention.wqkv.weight" in load_file(tmp_path / "merged" / "model.safetensors")
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype="float32")
    torch.testing.assert_close(merged(ids).logits, with_adapter, rtol=1e-4, atol=1e-4)
