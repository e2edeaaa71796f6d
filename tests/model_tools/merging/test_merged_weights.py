"""Weights merged part by part and written by a thread of their own: the same bits, and no error lost on the way."""

import resource

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

from model_tools.merging.merged_weights import MergedWeights
from tests.support.adapters import LLAMA, llama, lora, merge


@pytest.fixture
def small_parts(monkeypatch):
    """Parts that hold neither whole tensors nor whole rows."""
    monkeypatch.setattr("model_tools.merging.merged_weights.MERGED_AT_ONCE", 1000)
    monkeypatch.setattr("sft.models.weight_files.COPIED_AT_ONCE", 1000)


@pytest.mark.parametrize("written", ["auto", "fp16", "fp32"])
@pytest.mark.parametrize("make", [llama, lambda: Qwen2ForCausalLM(Qwen2Config(**LLAMA))], ids=["Llama", "with biases"])
def test_parts_come_to_what_pefts_whole_merge_comes_to(pair, tmp_path, monkeypatch, small_parts, make, written):
    # Whatever is plain LoRA on whole matrices is to go part by part, and not by PEFT's own merge.
    monkeypatch.setattr(MergedWeights, "_merged", lambda *_: pytest.fail("merged whole"))
    base, adapter = pair(make(), lora(), dtype=torch.bfloat16)
    assert merge(base, adapter, tmp_path / "out", "--dtype", written) == 0
    wide = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    expected = PeftModel.from_pretrained(wide, adapter).merge_and_unload().state_dict()
    merged = load_file(tmp_path / "out" / "model.safetensors")
    assert merged.keys() == expected.keys()
    for name, value in merged.items():
        assert torch.equal(value, expected[name].to(value.dtype)), name
        assert value.dtype == {"auto": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}[written]


def test_a_bias_that_an_adapter_brings_along_is_merged_with_its_weight(pair, tmp_path):
    base, adapter = pair(Qwen2ForCausalLM(Qwen2Config(**LLAMA)), lora(bias="all", target_modules=["q_proj", "o_proj"]))
    assert merge(base, adapter, tmp_path / "out") == 0
    model = AutoModelForCausalLM.from_pretrained(base)
    before = load_file(base / "model.safetensors")
    expected = PeftModel.from_pretrained(model, adapter).merge_and_unload().state_dict()
    merged = load_file(tmp_path / "out" / "model.safetensors")
    name = "model.layers.1.self_attn.q_proj.bias"
    assert not torch.equal(merged[name], before[name])
    assert all(torch.equal(value, expected[name]) for name, value in merged.items())


def test_an_infinite_value_in_any_part_is_reported(pair, tmp_path, small_parts, capsys):
    base, adapter = pair(llama(), lora())
    model = LlamaForCausalLM.from_pretrained(base)
    model.model.layers[1].mlp.up_proj.weight.data[-1, -1] = 1e5
    model.save_pretrained(base)
    assert merge(base, adapter, tmp_path / "out", "--dtype", "fp16") == 2
    said = capsys.readouterr().err
    assert "model.layers.1.mlp.up_proj.weight: holds values that are NaN or infinite in float16: try" in said
    assert not list(tmp_path.glob(".out*"))


def test_a_disk_that_takes_no_more_is_reported_in_one_line(pair, tmp_path, capsys):
    base, adapter = pair(llama(), lora())
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    # Python ignores the signal, and the write fails as it would on a full disk.
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        capsys.readouterr()
        assert merge(base, adapter, tmp_path / "out") == 2
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    said = capsys.readouterr().err
    assert f"{tmp_path / 'out'}: cannot be written: File too large: name another folder" in said
    assert said.count("\n") == 1, said
    assert not list(tmp_path.glob("*out*"))
