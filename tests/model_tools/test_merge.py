"""Merging: PEFT's own result to the last bit for every kind of adapter and model, and nothing half done."""

import json
import math
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    CLIPModel,
    LlamaForCausalLM,
)

from model_tools.__main__ import main
from model_tools.checkpoints.asked import Asked, asked_of
from sft.core.paths import REPOSITORY
from sft.models import internlm2
from sft.models.adapter import model_fingerprint, write_fingerprint
from tests.support.adapters import KINDS, clip_config, gpt2, llama, lora, merge, save_adapter
from tests.support.malicious_pickle import Call

internlm2.register_with_transformers()

IDS = torch.arange(1, 20)[None]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shard", ["1GB", "60KB"], ids=["one file", "shards"])
def test_every_weight_is_pefts_to_the_last_bit(pair, tmp_path, kind, shard):
    make, config = KINDS[kind]
    base, adapter = pair(make(), config, shard=shard)
    layout = ("--as", "internlm2") if kind.startswith("InternLM2") else ()
    assert merge(base, adapter, tmp_path / "out", "--max-shard-size", shard, *layout) == 0
    model_class = type(make())
    expected = PeftModel.from_pretrained(model_class.from_pretrained(base), adapter).merge_and_unload().state_dict()
    merged, report = model_class.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert merged.state_dict().keys() == expected.keys()
    assert [name for name, value in merged.state_dict().items() if not torch.equal(value, expected[name])] == []
    stored, written = (
        {name for file in folder.glob("*.safetensors") for name in load_file(file)}
        for folder in (base, tmp_path / "out")
    )
    assert written == stored
    assert (len(list((tmp_path / "out").glob("*.safetensors"))) > 1) == (shard == "60KB")


@pytest.mark.parametrize("target", ["embed_tokens", "lm_head"])
@pytest.mark.parametrize("kind", ["LoRA", "whole"])
def test_tied_embeddings_part_where_an_adapter_changes_one_of_them(pair, tmp_path, target, kind):
    """PEFT's merge would change both; base with adapter does not, and it is what was trained."""
    config = lora(target_modules=[target, "q_proj"]) if kind == "LoRA" else lora(modules_to_save=[target])
    base, adapter = pair(llama(tie_word_embeddings=True), config)
    assert merge(base, adapter, tmp_path / "out") == 0
    assert not json.loads((tmp_path / "out" / "config.json").read_text())["tie_word_embeddings"]
    expected = PeftModel.from_pretrained(LlamaForCausalLM.from_pretrained(base), adapter)(IDS).logits
    merged = LlamaForCausalLM.from_pretrained(tmp_path / "out")(IDS).logits
    torch.testing.assert_close(merged, expected, rtol=1e-5, atol=1e-5)


def test_tied_embeddings_stay_tied_where_no_adapter_touches_them(pair, tmp_path):
    base, adapter = pair(llama(tie_word_embeddings=True), lora())
    assert merge(base, adapter, tmp_path / "out") == 0
    assert "lm_head.weight" not in load_file(tmp_path / "out" / "model.safetensors")


def test_several_adapters_add_up_as_their_weights_say(pair, tmp_path):
    base, first = pair(llama(), lora())
    second = save_adapter(LlamaForCausalLM.from_pretrained(base), base, lora(r=2, lora_alpha=2), tmp_path / "second")
    adapters = [f"{first}:0.5", f"{second}:-0.25"]
    assert main(["merge", str(base), *adapters, str(tmp_path / "out"), "--no-verify"]) == 0
    weights = load_file(base / "model.safetensors")
    parts = [load_file(folder / "adapter_model.safetensors") for folder in (first, second)]
    name = "model.layers.1.mlp.down_proj"
    deltas = [
        part[f"base_model.model.{name}.lora_B.weight"] @ part[f"base_model.model.{name}.lora_A.weight"]
        for part in parts
    ]
    expected = weights[f"{name}.weight"] + 0.5 * 3 * deltas[0] - 0.25 * 1 * deltas[1]
    merged = load_file(tmp_path / "out" / "model.safetensors")[f"{name}.weight"]
    torch.testing.assert_close(merged, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", ["bf16", "fp16", "auto"])
def test_arithmetic_is_in_float32_and_rounded_once(pair, tmp_path, dtype):
    base, adapter = pair(llama(), lora(), dtype=torch.bfloat16)
    assert merge(base, adapter, tmp_path / "out", "--dtype", dtype) == 0
    wide = LlamaForCausalLM.from_pretrained(base, dtype=torch.float32)
    expected = PeftModel.from_pretrained(wide, adapter).merge_and_unload().state_dict()
    kind = {"bf16": torch.bfloat16, "fp16": torch.float16, "auto": torch.bfloat16}[dtype]
    merged = load_file(tmp_path / "out" / "model.safetensors")
    assert all(torch.equal(value, expected[name].to(kind)) for name, value in merged.items())
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype="auto")
    assert model.dtype == kind


@pytest.mark.parametrize("layout", ["llama", "internlm2"])
def test_another_architecture_has_one_layout(tmp_path, capsys, layout):
    for number, model in enumerate((llama(), gpt2())):
        base, adapter = tmp_path / str(number), tmp_path / f"{number}-adapter"
        model.save_pretrained(base)
        keys = {} if number == 0 else {"target_modules": ["c_attn"], "fan_in_fan_out": True}
        save_adapter(model, base, lora(**keys), adapter)
        assert merge(base, adapter, tmp_path / "out", "--as", layout) == 2
        said = capsys.readouterr().err
        kind = model.config.model_type
        assert f"{base}: is a {kind}, and only internlm2 has another layout, Llama's: use it as it is" in said
        assert said.count("\n") == 1
        assert not (tmp_path / "out").exists()


def test_the_tokenizer_is_the_adapters_and_the_card_says_what_it_was_made_of(pair, tmp_path, tokenizer):
    base, adapter = pair(llama(vocab_size=len(tokenizer)), lora())
    tokenizer.save_pretrained(adapter)
    assert merge(base, f"{adapter}:0.5", tmp_path / "out") == 0
    out = tmp_path / "out"
    assert AutoTokenizer.from_pretrained(out).encode("你是谁？") == tokenizer.encode("你是谁？")
    assert json.loads((out / "tokenizer_config.json").read_text())["tokenizer_class"] == "PreTrainedTokenizerFast"
    made = json.loads((out / "merge.json").read_text())
    assert made["adapters"] == [{"path": str(adapter), "weight": 0.5}]
    assert "weight 0.5: LORA r 4, alpha 12" in (out / "README.md").read_text()


class TestVerify:
    @pytest.fixture
    def folders(self, pair, tokenizer):
        base, adapter = pair(llama(vocab_size=len(tokenizer)), lora())
        tokenizer.save_pretrained(adapter)
        return base, adapter

    def test_it_says_how_far_apart_base_with_adapter_and_merged_model_are(self, folders, tmp_path, capsys):
        base, adapter = folders
        assert main(["merge", str(base), str(adapter), str(tmp_path / "out"), "--verify"]) == 0
        said = capsys.readouterr().out
        assert "verified on 2 prompts and " in said
        assert "answers the same: 2 of 2" in said

    def test_a_merged_model_that_says_something_else_is_told_of(self, folders, tmp_path, capsys):
        from model_tools.merging import verify
        from model_tools.merging.adapter import Adapter

        base, adapter = folders
        assert merge(base, adapter, tmp_path / "out") == 0
        weights = load_file(base / "model.safetensors")
        weights["model.layers.0.mlp.down_proj.weight"] *= 40
        save_file(weights, tmp_path / "out" / "model.safetensors", metadata={"format": "pt"})
        assert verify.report_difference(base, [Adapter(adapter)], tmp_path / "out") == 1
        assert "does NOT say what base and adapter say" in capsys.readouterr().out

    def test_the_prompts_are_those_of_the_run(self, folders, tmp_path):
        (tmp_path / "recipe.yaml").write_text("eval_prompts: [a, b, c]\neval_prompts_system: Be brief.\n")
        assert asked_of([folders[1]]) == Asked(["a", "b", "c"], "Be brief.")

    def test_what_writes_no_text_is_not_verified(self, pair, tmp_path, capsys):
        base, adapter = pair(CLIPModel(clip_config()), lora(target_modules=["q_proj"], task_type=None))
        assert main(["merge", str(base), str(adapter), str(tmp_path / "out")]) == 0
        assert "not verified: only a model that writes text" in capsys.readouterr().out


class TestRefusals:
    @pytest.fixture
    def folders(self, pair):
        return pair(llama(), lora())

    def test_an_adapter_of_another_shape(self, folders, tmp_path, refused):
        llama(hidden_size=32).save_pretrained(tmp_path / "small" / "base")
        assert "does not fit the base model" in refused(tmp_path / "small" / "base", folders[1])

    def test_an_adapter_with_a_module_the_base_lacks(self, folders, tmp_path, refused):
        llama(num_hidden_layers=1).save_pretrained(tmp_path / "short" / "base")
        said = refused(tmp_path / "short" / "base", folders[1])
        assert "layers.1." in said
        assert "has no place in the base model" in said

    def test_an_adapter_with_fused_internlm2_names(self, folders, tmp_path, refused):
        base, adapter = folders
        weights = load_file(adapter / "adapter_model.safetensors")
        fused = {name.replace("self_attn.q_proj", "attention.wqkv"): value for name, value in weights.items()}
        save_file(fused, adapter / "adapter_model.safetensors")
        assert "export-adapter splits them" in refused(base, adapter)

    def test_an_adapter_that_lacks_a_tensor(self, folders, tmp_path, refused):
        base, adapter = folders
        weights = load_file(adapter / "adapter_model.safetensors")
        weights.pop(min(weights))
        save_file(weights, adapter / "adapter_model.safetensors")
        assert "which its config asks for" in refused(base, adapter)

    def test_a_base_of_another_name(self, folders, tmp_path, refused):
        base, adapter = folders
        base.rename(tmp_path / "other")
        said = refused(tmp_path / "other", adapter)
        assert f"says that its base is {base}, which is no folder here any more, not {tmp_path / 'other'}" in said

    def test_other_weights_under_the_same_name_where_the_adapter_remembers_its_own(self, folders, tmp_path, refused):
        base, adapter = folders
        write_fingerprint(adapter, str(base), model_fingerprint(str(base)))
        weights = load_file(base / "model.safetensors")
        weights["model.norm.weight"][0] += 1
        save_file(weights, base / "model.safetensors", metadata={"format": "pt"})
        assert "was trained on other weights than those of" in refused(base, adapter)

    def test_the_same_weights_under_another_name_are_taken_where_the_adapter_remembers_them(self, folders, tmp_path):
        base, adapter = folders
        write_fingerprint(adapter, str(base), model_fingerprint(str(base)))
        base.rename(tmp_path / "other")
        assert merge(tmp_path / "other", adapter, tmp_path / "out") == 0

    def test_a_quantised_base(self, folders, tmp_path, refused):
        base, adapter = folders
        config = json.loads((base / "config.json").read_text())
        config["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_4bit": True}
        (base / "config.json").write_text(json.dumps(config))
        assert "is quantised" in refused(base, adapter)

    def test_a_model_that_transformers_does_not_know(self, folders, tmp_path, refused):
        base, adapter = folders
        (base / "config.json").write_text(json.dumps({"model_type": "unheard_of", "auto_map": {"AutoConfig": "x.Y"}}))
        assert "Transformers does not know this model" in refused(base, adapter)

    @pytest.mark.parametrize("text", ["", "{", "null", "[]", '{"hidden_size": 64}', '{"model_type": ["llama"]}'])
    def test_a_config_that_is_none(self, folders, refused, text):
        base, adapter = folders
        (base / "config.json").write_text(text)
        assert f"{base}/config.json: " in refused(base, adapter)

    @pytest.mark.parametrize(
        "keys",
        [
            {"hidden_size": None},
            {"hidden_size": 3},
            {"num_hidden_layers": "x"},
            {"architectures": 3},
            {"vocab_size": -1},
            {"rope_parameters": []},
            {"quantization_config": ["x"]},
        ],
        ids=str,
    )
    def test_a_config_of_which_no_model_can_be_built(self, folders, refused, keys):
        base, adapter = folders
        path = base / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | keys))
        said = refused(base, adapter)
        assert f"model_tools merge: {base}" in said
        assert "merge it with PEFT" not in said

    @pytest.mark.parametrize("cut", ["shard gone", "shard short", "no weights"])
    def test_a_base_that_is_not_whole(self, pair, tmp_path, refused, cut):
        base, adapter = pair(llama(), lora(), shard="60KB")
        shard = sorted(base.glob("*.safetensors"))[1]
        if cut == "shard gone":
            shard.unlink()
        elif cut == "shard short":
            os.truncate(shard, shard.stat().st_size - 8)
        else:
            for file in base.glob("model*"):
                file.unlink()
        said = refused(base, adapter)
        assert ("holds no weights" if cut == "no weights" else shard.name) in said

    def test_a_pickle_that_would_run_code(self, folders, tmp_path, refused):
        base, adapter = folders
        (base / "model.safetensors").unlink()

        torch.save({"model.norm.weight": Call(os.system, f"touch {tmp_path / 'was_run'}")}, base / "pytorch_model.bin")
        assert "pytorch_model.bin: asks for posix.system" in refused(base, adapter)
        assert not (tmp_path / "was_run").exists()

    def test_too_little_disk(self, folders, tmp_path, refused):
        """The base says that it is 8 TB; nearly all of that is a hole in its file."""
        base, adapter = folders
        file = base / "model.safetensors"
        weights = {name: value.numpy() for name, value in load_file(file).items()}
        start = sum(value.nbytes for value in weights.values())
        size = 1 << 43
        header, offset = {}, 0
        for name, value in weights.items():
            header[name] = {"dtype": "F32", "shape": value.shape, "data_offsets": [offset, offset + value.nbytes]}
            offset += value.nbytes
        header["hole"] = {"dtype": "U8", "shape": [size], "data_offsets": [start, start + size]}
        text = json.dumps(header).encode()
        file.write_bytes(
            len(text).to_bytes(8, "little") + text + b"".join(value.tobytes() for value in weights.values())
        )
        os.truncate(file, 8 + len(text) + start + size)
        assert "needs 8192.1 GiB while it is written, and the disk has" in refused(base, adapter)

    def test_values_that_the_type_cannot_hold(self, folders, tmp_path, refused):
        base, adapter = folders
        weights = load_file(base / "model.safetensors")
        weights["model.layers.0.mlp.up_proj.weight"][0, 0] = 1e6
        save_file(weights, base / "model.safetensors", metadata={"format": "pt"})
        said = refused(base, adapter, "--dtype", "fp16")
        assert "model.layers.0.mlp.up_proj.weight: holds values that are NaN or infinite in float16" in said

    def test_an_adapter_of_a_training_that_diverged(self, folders, tmp_path, refused):
        file = folders[1] / "adapter_model.safetensors"
        weights = load_file(file)
        weights[min(weights)].fill_(math.nan)
        save_file(weights, file)
        said = refused(*folders)
        assert "is NaN or infinite in adapter or base: take an earlier checkpoint" in said

    def test_a_folder_that_is_not_empty_is_left_as_it_is(self, folders, tmp_path, capsys):
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "mine").write_text("x")
        assert merge(*folders, tmp_path / "out") == 2
        assert "not empty" in capsys.readouterr().err
        assert [file.name for file in (tmp_path / "out").iterdir()] == ["mine"]

    def test_what_is_no_adapter_no_base_and_no_weight(self, folders, tmp_path, refused):
        base, adapter = folders
        assert "holds no adapter" in refused(base, base)
        assert "no such folder, and no id of a model on a hub" in refused(tmp_path / "none", adapter)
        assert "half is no weight" in refused(base, f"{adapter}:half")

    @pytest.mark.parametrize("size", ["zero", "-1", "0", "0GB", "-2GB", "nanGB", "infGB", "2", ""])
    def test_a_size_of_shards_that_is_none(self, folders, tmp_path, refused, size):
        assert f"--max-shard-size: {size} is no size" in refused(*folders, f"--max-shard-size={size}")

    @pytest.mark.parametrize(
        ("settings", "said"),
        [
            ({"target_modules": "(("}, "does not fit the base"),
            ({"auto_mapping": "x"}, "auto_mapping: 'x' is no object"),
        ],
        ids=["no pattern", "no object"],
    )
    def test_settings_that_are_none(self, folders, tmp_path, refused, settings, said):
        file = folders[1] / "adapter_config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | settings))
        assert said in refused(*folders)

    def test_a_system_message_that_is_not_utf8(self, folders, tmp_path, refused, monkeypatch):
        monkeypatch.setattr("model_tools.merging.merged_weights.MergedWeights.write", lambda *_: pytest.fail("written"))
        (folders[1] / "system_message.txt").write_bytes(b"\xff")
        assert f"{folders[1] / 'system_message.txt'}: cannot be read" in refused(*folders)

    @pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
    def test_a_gpu_where_there_is_none(self, folders, tmp_path, refused):
        assert "--device: PyTorch finds no GPU here" in refused(*folders, "--device", "cuda")

    def test_weights_on_what_is_no_plain_lora(self, pair, tmp_path, refused):
        base, adapter = pair(llama(), lora(use_dora=True))
        assert "only plain LoRA can be weighted" in refused(base, f"{adapter}:0.5")


@pytest.mark.long
def test_a_killed_merge_leaves_nothing_that_loads(pair, tmp_path):
    base, adapter = pair(llama(hidden_size=256, intermediate_size=2048, num_hidden_layers=48), lora())
    command = [sys.executable, "-m", "model_tools", "merge", base, adapter, tmp_path / "out", "--no-verify"]
    process = subprocess.Popen(list(map(str, command)), cwd=REPOSITORY, stderr=subprocess.DEVNULL)
    while process.poll() is None and not list(tmp_path.glob(".out.partial.*/*.safetensors")):
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not (tmp_path / "out").exists()
    (aside,) = tmp_path.glob(".out.partial.*")
    assert not (aside / "config.json").exists()
    with pytest.raises((OSError, ValueError)):
        AutoModelForCausalLM.from_pretrained(aside)
    assert merge(base, adapter, tmp_path / "out") == 0
