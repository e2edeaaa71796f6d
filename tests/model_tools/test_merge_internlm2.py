"""Merging InternLM2: by default a plain Llama that any program loads, with the very answers of base and adapter."""

import json
import subprocess
import sys

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from sentencepiece import SentencePieceProcessor
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

from model_tools.__main__ import main
from sft.models.loading import load_tokenizer
from tests.support.adapters import lora, save_adapter
from tests.support.documents import PROSE
from tests.support.published_internlm2 import random_weights, train_pieces, write_folder

SHAPE = (128, 4, 2)
QUESTION = [{"role": "user", "content": "你是谁？"}]
# Knows Transformers alone: what it prints is what any program would get.
CLEAN_PROCESS = """
import importlib.util, json, sys
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
out, question, *folders = sys.argv[1:]
got = []
for folder in folders:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    text = tokenizer.apply_chat_template(json.loads(question), tokenize=False, add_generation_prompt=True)
    ids = tokenizer(text, add_special_tokens=False, return_tensors="pt").input_ids
    got.append({
        "knows": [name for name in ("sft", "model_tools") if importlib.util.find_spec(name)],
        "class": type(model).__name__,
        "ids": ids,
        "logits": model(ids).logits.detach(),
        "ends": model.generation_config.eos_token_id,
    })
torch.save(got, out)
"""


@pytest.fixture
def base(tmp_path):
    """InternLM2 as its makers publish it: their names, their code, a tokenizer.model and no tokenizer.json."""
    folder = tmp_path / "published"
    folder.mkdir()
    train_pieces(folder, PROSE)
    size = SentencePieceProcessor(model_file=str(folder / "tokenizer.model")).get_piece_size()
    weights = random_weights(*SHAPE, vocabulary=size, bias=True)
    write_folder(folder, {name: value.half() for name, value in weights.items()}, *SHAPE, bias=True, shards=2)
    (folder / "modeling_internlm2.py").write_text("raise SystemExit('their code was run')\n")
    (folder / "tokenization_internlm2.py").write_text("raise SystemExit('their code was run')\n")
    (folder / "LICENSE").write_text("Apache License\n")
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": 2, "top_p": 0.8}))
    own = {"tokenizer_class": "InternLM2Tokenizer", "auto_map": {"AutoTokenizer": ["tokenization_internlm2.X", None]}}
    (folder / "tokenizer_config.json").write_text(json.dumps(own))
    (folder / "special_tokens_map.json").write_text(json.dumps({"additional_special_tokens": ["<|im_end|>"]}))
    return folder


@pytest.fixture
def adapter(base, tmp_path):
    """An adapter trained here: on the native model, and with its tokenizer beside it."""
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    folder = save_adapter(model, base, lora(), tmp_path / "adapter")
    load_tokenizer(str(base)).save_pretrained(folder)
    return folder


def merge(*arguments) -> int:
    return main(["merge", *map(str, arguments), "--no-verify"])


@torch.no_grad
def logits(model, ids: torch.Tensor) -> torch.Tensor:
    return model(ids).logits


def with_adapter(base, adapter) -> PeftModel:
    return PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), adapter).eval()


def test_a_process_that_knows_transformers_alone_gets_the_logits_of_base_and_adapter(base, adapter, tmp_path):
    """With the tokenizer that the adapter brings, and with the one that is built where it brings none."""
    outs = [tmp_path / "its own", tmp_path / "built"]
    assert merge(base, adapter, outs[0], "--dtype", "fp32", "--max-shard-size", "500KB") == 0
    for file in (*adapter.glob("token*"), *adapter.glob("chat*")):
        file.unlink()
    assert merge(base, adapter, outs[1], "--dtype", "fp32") == 0
    command = [sys.executable, "-I", "-c", CLEAN_PROCESS, tmp_path / "got", json.dumps(QUESTION), *outs]
    subprocess.run(list(map(str, command)), cwd=tmp_path, check=True)
    tokenizer = load_tokenizer(str(base))
    text = tokenizer.apply_chat_template(QUESTION, tokenize=False, add_generation_prompt=True)
    for got in torch.load(tmp_path / "got"):
        assert got["knows"] == []
        assert got["class"] == "LlamaForCausalLM"
        assert got["ids"][0].tolist() == tokenizer(text, add_special_tokens=False).input_ids
        expected = logits(with_adapter(base, adapter), got["ids"])
        torch.testing.assert_close(got["logits"], expected, rtol=1e-5, atol=1e-5)
        assert got["ends"] == [2, tokenizer.convert_tokens_to_ids("<|im_end|>")]


def test_the_folder_is_a_plain_llamas_also_to_transformers_4_and_llama_cpp(base, adapter, tmp_path):
    assert merge(base, adapter, tmp_path / "out", "--dtype", "bf16") == 0
    out = tmp_path / "out"
    config = json.loads((out / "config.json").read_text())
    assert (config["model_type"], config["architectures"]) == ("llama", ["LlamaForCausalLM"])
    assert config["dtype"] == config["torch_dtype"] == "bfloat16"
    assert config["rope_theta"] == 1_000_000
    assert config["rope_scaling"] == {"type": "dynamic", "factor": 2.0}
    assert config["attention_bias"]
    assert not {"auto_map", "bias", "attn_implementation"} & config.keys()
    assert not list(out.glob("*.py"))
    assert (out / "LICENSE").is_file()
    assert "model.layers.1.self_attn.q_proj.bias" in load_file(out / "model.safetensors")
    tokenizer, own = AutoTokenizer.from_pretrained(out), json.loads((out / "tokenizer_config.json").read_text())
    assert own["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert "<|im_end|>" in own["additional_special_tokens"]
    assert not {"auto_map", "extra_special_tokens"} & own.keys()
    assert (own["add_prefix_space"], own["add_bos_token"]) == (False, False)
    pieces = SentencePieceProcessor(model_file=str(out / "tokenizer.model"))
    for name in tokenizer.all_special_tokens:
        assert pieces.piece_to_id(name) == tokenizer.convert_tokens_to_ids(name)
    settings = json.loads((out / "generation_config.json").read_text())
    assert settings == {
        "eos_token_id": [2, tokenizer.convert_tokens_to_ids("<|im_end|>")],
        "top_p": 0.8,
        "pad_token_id": 2,
    }


def test_the_precision_stands_under_both_names_where_none_was_chosen(base, adapter, tmp_path):
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(config | {"torch_dtype": "float16"}))
    assert merge(base, adapter, tmp_path / "out") == 0
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    assert written["dtype"] == written["torch_dtype"] == "float16"


def test_as_internlm2_it_keeps_its_names_its_config_and_its_code(base, adapter, tmp_path):
    assert merge(base, adapter, tmp_path / "out", "--as", "internlm2", "--max-shard-size", "500KB") == 0
    out = tmp_path / "out"
    assert json.loads((out / "config.json").read_text()) == json.loads((base / "config.json").read_text())
    assert (out / "modeling_internlm2.py").read_text() == (base / "modeling_internlm2.py").read_text()
    assert "model.layers.1.attention.wqkv.bias" in {
        name for file in out.glob("*.safetensors") for name in load_file(file)
    }


@pytest.mark.parametrize("length", [20, 100], ids=["within the trained length", "beyond it"])
def test_both_layouts_say_the_same_to_the_last_bit(base, adapter, tmp_path, length):
    for layout in ("internlm2", "llama"):
        assert merge(base, adapter, tmp_path / layout, "--as", layout) == 0
    own, plain = (
        AutoModelForCausalLM.from_pretrained(tmp_path / name, dtype=torch.float32) for name in ("internlm2", "llama")
    )
    assert type(plain) is LlamaForCausalLM
    ids = torch.randint(300, (1, length))
    assert torch.equal(logits(own, ids), logits(plain, ids))


def test_an_adapter_that_names_no_task_merges_as_one_that_does(base, adapter, tmp_path):
    path = adapter / "adapter_config.json"
    config = json.loads(path.read_text())
    assert merge(base, adapter, tmp_path / "named") == 0
    of = {"parent_library": "sft.models.internlm2", "base_model_class": "InternLM2ForCausalLM"}
    path.write_text(json.dumps(config | {"task_type": None, "auto_mapping": of}))
    assert merge(base, adapter, tmp_path / "unnamed") == 0
    named, unnamed = (load_file(tmp_path / name / "model.safetensors") for name in ("named", "unnamed"))
    assert named.keys() == unnamed.keys()
    assert all(torch.equal(value, unnamed[name]) for name, value in named.items())


def test_export_llama_makes_a_llama_of_the_base_itself(base, tmp_path, capsys):
    assert main(["export-llama", str(base), str(tmp_path / "out"), "--verify"]) == 0
    said = capsys.readouterr().out
    assert "under Llama's names" in said
    assert "largest logit difference 0," in said
    assert "answers the same: 2 of 2" in said
    assert json.loads((tmp_path / "out" / "merge.json").read_text())["adapters"] == []
    assert type(AutoModelForCausalLM.from_pretrained(tmp_path / "out")) is LlamaForCausalLM


def test_stored_tensors_that_no_parameter_is_made_of_do_not_stop_it(base, adapter, tmp_path):
    """Older checkpoints store the frequencies of positions."""
    shard = base / "model-00001-of-00002.safetensors"
    name = "model.layers.0.attention.rotary_emb.inv_freq"
    save_file(load_file(shard) | {name: torch.ones(16)}, shard, metadata={"format": "pt"})
    index = json.loads((base / "model.safetensors.index.json").read_text())
    index["weight_map"][name] = shard.name
    (base / "model.safetensors.index.json").write_text(json.dumps(index))
    assert merge(base, adapter, tmp_path / "out") == 0
    ids = torch.arange(1, 20)[None]
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    torch.testing.assert_close(logits(merged, ids), logits(with_adapter(base, adapter), ids), rtol=5e-3, atol=5e-3)


def test_export_llama_of_another_architecture_is_refused(tiny_model, tmp_path, capsys):
    assert main(["export-llama", str(tiny_model), str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert f"{tiny_model}: is a llama, and only internlm2 has another layout, Llama's: use it as it is\n" in said
    assert not (tmp_path / "out").exists()
