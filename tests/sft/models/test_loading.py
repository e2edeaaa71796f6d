"""Loading models: quantised as asked, the head left whole, and unharmed by being asked questions."""

import shutil

import bitsandbytes
import pytest
import torch
from transformers import ByT5Tokenizer

from sft.config.load import load_recipe
from sft.core.errors import UserError
from sft.evaluation.chat_eval import ask
from sft.models.loading import describe_parameters, load_model, load_tokenizer


def settings_of(write_recipe, **keys):
    return load_recipe([str(write_recipe(**keys))]).model


def test_4bit_quantises_the_layers_and_leaves_the_head_alone(write_recipe):
    model = load_model(settings_of(write_recipe, load_in_4bit=True, use_bnb_nested_quant=True, dtype="bfloat16"))
    layer, head = model.model.layers[0].mlp.up_proj, model.get_output_embeddings()
    assert isinstance(layer, bitsandbytes.nn.Linear4bit)
    assert layer.weight.quant_state.quant_type == "nf4"
    assert layer.weight.quant_state.nested
    assert type(head) is torch.nn.Linear
    assert head.weight.dtype == torch.bfloat16


def test_8bit_and_plain_weights_load_too(write_recipe):
    eight = load_model(settings_of(write_recipe, load_in_8bit=True))
    assert isinstance(eight.model.layers[0].mlp.up_proj, bitsandbytes.nn.Linear8bitLt)
    plain = load_model(settings_of(write_recipe, use_peft=False))
    assert {parameter.dtype for parameter in plain.parameters()} == {torch.float32}


def test_answering_questions_leaves_nf4_weights_bit_for_bit(write_recipe, tokenizer):
    model = load_model(settings_of(write_recipe, load_in_4bit=True, use_bnb_nested_quant=True, dtype="bfloat16"))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    ask(model, tokenizer, ["Who are you?"], system=None, generation={"max_new_tokens": 3, "do_sample": False})
    after = model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("bits", [{}, {"load_in_4bit": True}])
def test_parameters_are_counted_as_weights_however_they_are_stored(make_trainer, bits):
    trainer, _ = make_trainer(dtype="bfloat16" if bits else "float32", lora_r=8, lora_alpha=4, **bits)
    base = 2 * 400 * 64 + 2 * (2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 128 + 2 * 64) + 64
    adapter = 2 * 8 * (2 * (64 + 64) + 2 * (64 + 32) + 3 * (64 + 128))
    line = describe_parameters(trainer.model, trainer.recipe.model)
    assert f"{adapter:,} of {base + adapter:,} parameters" in line
    assert "scale alpha/r = 0.5" in line


def test_a_tokenizer_that_is_damaged_or_slow_is_told_from_a_missing_model(tiny_model, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(tiny_model, folder)
    (folder / "tokenizer_config.json").write_text("{")
    with pytest.raises(UserError, match=r"model: its tokenizer cannot be loaded \(.*\): copy its files again"):
        load_tokenizer(str(folder))
    shutil.rmtree(folder)
    ByT5Tokenizer().save_pretrained(folder)
    with pytest.raises(UserError, match=r"has no fast tokenizer, .* with a tokenizer\.json"):
        load_tokenizer(str(folder))


def test_a_missing_model_says_how_to_get_one(write_recipe):
    settings = settings_of(write_recipe, model_name_or_path="models/nowhere")
    said = "models/nowhere: no such folder: .* make it with: python -m model_tools demo-model models/nowhere"
    with pytest.raises(UserError, match=said):
        load_model(settings)
    with pytest.raises(UserError, match=said):
        load_tokenizer("models/nowhere")
    with pytest.raises(UserError, match=r"nobody/nothing: it is not in the hub's cache, .* name a local folder"):
        load_tokenizer("nobody/nothing")
