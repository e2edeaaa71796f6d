"""Embeddings that are tied in the base: they part in weights and config together, or stay together."""

import json

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import BartConfig, BartForConditionalGeneration, LlamaForCausalLM

from model_tools.merging.merged_folder import _untie
from tests.support.adapters import llama, lora, merge

BART_PART = {"layers": 1, "attention_heads": 4, "ffn_dim": 96}
IDS = torch.arange(1, 20)[None]


def as_pickle_with_both(base) -> None:
    """Write the weights as `torch.save` does, in which tied tensors stand both."""
    weights = load_file(base / "model.safetensors")
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"]
    torch.save(weights, base / "pytorch_model.bin")
    (base / "model.safetensors").unlink()


def with_head_alone(base) -> None:
    """Keep the tied tensor under the head's name, as some files do."""
    weights = load_file(base / "model.safetensors")
    weights["lm_head.weight"] = weights.pop("model.embed_tokens.weight")
    save_file(weights, base / "model.safetensors", metadata={"format": "pt"})


def logits(base, adapter) -> torch.Tensor:
    return PeftModel.from_pretrained(LlamaForCausalLM.from_pretrained(base), adapter)(IDS).logits


@pytest.mark.parametrize("stored", [as_pickle_with_both, with_head_alone], ids=["both", "head alone"])
@pytest.mark.parametrize(
    ("target", "kind"),
    # Tokens of embed_tokens PEFT trains in both, of which the next test is.
    [(target, kind) for target in ("embed_tokens", "lm_head") for kind in ("LoRA", "whole")] + [("lm_head", "tokens")],
)
def test_two_that_differ_are_said_to_be_two(pair, tmp_path, stored, target, kind):
    config = {
        "LoRA": lora(target_modules=[target, "q_proj"]),
        "whole": lora(modules_to_save=[target], target_modules=["q_proj"]),
        "tokens": lora(trainable_token_indices={target: [3, 5]}, target_modules=["q_proj"]),
    }[kind]
    base, adapter = pair(llama(tie_word_embeddings=True), config)
    stored(base)
    assert merge(base, adapter, tmp_path / "out") == 0
    written = load_file(tmp_path / "out" / "model.safetensors")
    assert not torch.equal(written["lm_head.weight"], written["model.embed_tokens.weight"])
    assert json.loads((tmp_path / "out" / "config.json").read_text())["tie_word_embeddings"] is False
    merged = LlamaForCausalLM.from_pretrained(tmp_path / "out")(IDS).logits
    torch.testing.assert_close(merged, logits(base, adapter), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("target", ["lm_head", "embed_tokens", "shared"])
def test_where_one_tie_of_several_parts_the_others_keep_their_weights(pair, tmp_path, target):
    keys = {f"{part}_{key}": value for part in ("encoder", "decoder") for key, value in BART_PART.items()}
    base, adapter = pair(
        BartForConditionalGeneration(BartConfig(vocab_size=100, d_model=64, max_position_embeddings=64, **keys)),
        lora(target_modules=[target, "q_proj"], task_type="SEQ_2_SEQ_LM"),
    )
    assert merge(base, adapter, tmp_path / "out") == 0
    model = PeftModel.from_pretrained(BartForConditionalGeneration.from_pretrained(base), adapter)
    merged, report = BartForConditionalGeneration.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not report["missing_keys"]
    asked = {"input_ids": IDS, "decoder_input_ids": IDS}
    torch.testing.assert_close(merged(**asked).logits, model(**asked).logits, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("stored", [None, as_pickle_with_both, with_head_alone], ids=["one", "both", "head alone"])
def test_tokens_that_are_trained_in_both_leave_them_tied(pair, tmp_path, stored):
    base, adapter = pair(llama(tie_word_embeddings=True), lora(trainable_token_indices=[3, 5]))
    if stored:
        stored(base)
    assert merge(base, adapter, tmp_path / "out") == 0
    written = load_file(tmp_path / "out" / "model.safetensors")
    embeddings = [written[name] for name in ("lm_head.weight", "model.embed_tokens.weight") if name in written]
    assert len(embeddings) == (2 if stored is as_pickle_with_both else 1)
    assert all(torch.equal(each, embeddings[0]) for each in embeddings)
    assert json.loads((tmp_path / "out" / "config.json").read_text())["tie_word_embeddings"] is True
    merged = LlamaForCausalLM.from_pretrained(tmp_path / "out")(IDS).logits
    torch.testing.assert_close(merged, logits(base, adapter), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("keys", "name"),
    [
        ({"target_modules": ["q_proj", "lm_head"]}, "lm_head"),
        ({"modules_to_save": ["lm_head"]}, "lm_head"),
        ({"modules_to_save": ["embed_tokens"]}, "model.embed_tokens"),
    ],
    ids=["LoRA", "whole head", "whole embedding"],
)
def test_tokens_beside_another_change_of_the_same_are_refused_for_that_reason(pair, refused, keys, name):
    config = lora(**{"target_modules": ["q_proj"], "trainable_token_indices": [3, 5]} | keys)
    base, adapter = pair(llama(tie_word_embeddings=True), config)
    assert f"{adapter}: changes {name} in two ways at once" in refused(base, adapter)


def test_both_in_the_file_stay_one_where_no_adapter_touches_them(pair, tmp_path):
    base, adapter = pair(llama(tie_word_embeddings=True), lora(target_modules=["q_proj"]))
    as_pickle_with_both(base)
    assert merge(base, adapter, tmp_path / "out") == 0
    assert json.loads((tmp_path / "out" / "config.json").read_text())["tie_word_embeddings"] is True


def test_the_flag_is_taken_back_wherever_it_stands():
    config = {
        "text_config": {"vocab_size": 9, "tie_word_embeddings": True},
        "vision_config": {"hidden_size": 4},
        "thinker_config": {"text_config": {"vocab_size": 9}},
    }
    _untie(config)
    assert config == {
        "tie_word_embeddings": False,
        "text_config": {"vocab_size": 9, "tie_word_embeddings": False},
        "vision_config": {"hidden_size": 4},
        "thinker_config": {
            "tie_word_embeddings": False,
            "text_config": {"vocab_size": 9, "tie_word_embeddings": False},
        },
    }
