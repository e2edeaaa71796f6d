"""A model is made in place of nothing but its shape, once, and whole."""

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from benchmarks.shapes import SHAPES, make_model

TINY = {"num_hidden_layers": 2, "hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4}


def test_a_model_of_a_shape_loads_as_a_llama_with_its_tokenizer(tiny_model, tmp_path):
    shape = SHAPES["InternLM2.5-7B"] | TINY | {"num_key_value_heads": 2, "vocab_size": 500}
    folder = make_model(shape, tiny_model, tmp_path / "made", "cpu")
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert (model.config.model_type, model.dtype) == ("llama", torch.bfloat16)
    assert model.get_output_embeddings().weight.shape == (500, 64)
    assert model.model.layers[1].mlp.up_proj.weight.std() > 0
    assert AutoTokenizer.from_pretrained(folder).chat_template


def test_it_is_made_once_and_half_of_one_is_not_taken_for_it(tiny_model, tmp_path):
    shape = SHAPES["Llama-3.1-8B"] | TINY | {"num_key_value_heads": 2, "vocab_size": 500}
    (tmp_path / "made.part").mkdir()
    (tmp_path / "made.part" / "left over").touch()
    folder = make_model(shape, tiny_model, tmp_path / "made", "cpu")
    assert not (folder / "left over").exists()
    before = (folder / "model.safetensors").stat().st_mtime_ns
    assert make_model(shape, tiny_model, folder, "cpu") == folder
    assert (folder / "model.safetensors").stat().st_mtime_ns == before
