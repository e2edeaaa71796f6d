"""Damaged adapters, weights on the command line, and whose base it is: each in one line, before anything is written."""

import json
import math
import os

import pytest
import torch
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import LlamaForCausalLM

from model_tools.merge import _plain
from sft.models.adapter import model_fingerprint, write_fingerprint
from tests.support.adapters import gpt2, llama, lora, merge, save_adapter
from tests.support.malicious_pickle import Call

MISSING = object()


@pytest.fixture
def folders(pair):
    return pair(llama(), lora(target_modules=["q_proj", "down_proj"]))


def edit(adapter, **keys) -> None:
    """Change what stands in an adapter's config."""
    path = adapter / "adapter_config.json"
    content = json.loads(path.read_text()) | keys
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not MISSING}))


DAMAGED = {
    "no kind": ({"peft_type": MISSING}, "names no peft_type"),
    "kind null": ({"peft_type": None}, "names no peft_type"),
    "unknown kind": ({"peft_type": "WARP", "peft_version": "9.0"}, "peft_type WARP is none that PEFT 0."),
    "a list as kind": ({"peft_type": ["LORA"]}, "peft_type ['LORA'] is none"),
    "r as text": ({"r": "4"}, "r: '4' is not a finite number"),
    "r null": ({"r": None}, "r: None is not a finite number"),
    "r 0": ({"r": 0}, "`r` should be a positive integer"),
    "r a fraction": ({"r": 2.5}, "does not fit the base model"),
    "another r": ({"r": 8}, "size mismatch"),
    "alpha NaN": ({"lora_alpha": math.nan}, "lora_alpha: nan is not a finite number"),
    "a switch as text": ({"use_rslora": "yes"}, "use_rslora: 'yes' is neither true nor false"),
    "modules as a number": ({"target_modules": 3}, "adapter"),
    "no such module": ({"target_modules": ["nothing"]}, "does not fit the base model"),
    "a task that is none": ({"task_type": "SING"}, "Invalid task type"),
    "an import that fails": ({"megatron_config": {"a": 1}}, "does not fit the base model (No module named 'megatron')"),
    "tokens that are none": ({"trainable_token_indices": 2.5}, "does not fit the base model (only integers"),
    "a new setting that is on": ({"use_warp": True}, "use_warp is a setting of LORA that is none PEFT 0."),
}


class TestConfig:
    @pytest.mark.parametrize("text", ["", "{", "[]", "[1, 2]", '"LORA"', "null", "\udcff"], ids=range(7))
    def test_what_is_no_object_of_json(self, folders, refused, text):
        base, adapter = folders
        (adapter / "adapter_config.json").write_text(text, encoding="utf-8", errors="surrogateescape")
        assert "adapter_config.json: " in refused(base, adapter)

    @pytest.mark.parametrize("damage", DAMAGED)
    def test_damage(self, folders, refused, damage):
        base, adapter = folders
        keys, reason = DAMAGED[damage]
        edit(adapter, **keys)
        assert reason in refused(base, adapter)

    def test_a_new_setting_that_is_off_does_no_harm(self, folders, tmp_path):
        base, adapter = folders
        edit(adapter, use_warp=False, warp_config=None, warps=[])
        assert merge(base, adapter, tmp_path / "out") == 0


class TestWeights:
    def test_no_file(self, folders, refused):
        base, adapter = folders
        (adapter / "adapter_model.safetensors").unlink()
        assert "holds no weights (looked for adapter_model.safetensors, adapter_model.bin)" in refused(base, adapter)

    @pytest.mark.parametrize("left", [0, 5, 100, -8])
    def test_a_file_cut_short(self, folders, refused, left):
        base, adapter = folders
        file = adapter / "adapter_model.safetensors"
        os.truncate(file, left % file.stat().st_size)
        assert "is damaged" in refused(base, adapter)

    def test_a_pickle_that_would_run_code(self, folders, refused, tmp_path):
        base, adapter = folders
        (adapter / "adapter_model.safetensors").unlink()

        torch.save({"x": Call(os.system, f"touch {tmp_path / 'was_run'}")}, adapter / "adapter_model.bin")
        assert "asks for posix.system" in refused(base, adapter)
        assert not (tmp_path / "was_run").exists()

    def test_a_pickled_adapter_is_merged_as_the_other(self, folders, tmp_path):
        base, adapter = folders
        assert merge(base, adapter, tmp_path / "out") == 0
        file = adapter / "adapter_model.safetensors"
        torch.save(load_file(file), adapter / "adapter_model.bin")
        file.unlink()
        assert merge(base, adapter, tmp_path / "again") == 0
        first, second = (load_file(tmp_path / name / "model.safetensors") for name in ("out", "again"))
        assert all(torch.equal(value, second[name]) for name, value in first.items())

    def test_a_vocabulary_that_was_resized(self, tmp_path, refused):
        llama().save_pretrained(tmp_path / "base")
        model = LlamaForCausalLM.from_pretrained(tmp_path / "base")
        model.resize_token_embeddings(103)
        config = lora(target_modules=["q_proj"], modules_to_save=["embed_tokens", "lm_head"])
        adapter = save_adapter(model, tmp_path / "base", config, tmp_path / "adapter")
        said = refused(tmp_path / "base", adapter)
        assert "was trained on a base of 103 tokens, and this one has 100" in said
        assert "resize_token_embeddings(103)" in said
        model = LlamaForCausalLM.from_pretrained(tmp_path / "base")
        model.resize_token_embeddings(103)
        model.save_pretrained(tmp_path / "resized" / "base")
        assert merge(tmp_path / "resized" / "base", adapter, tmp_path / "out") == 0


class TestStrength:
    @pytest.mark.parametrize("weight", ["nan", "inf", "-inf", "1e999", "half", ""])
    def test_what_is_no_weight(self, folders, refused, weight):
        base, adapter = folders
        assert f"{adapter}:{weight}: {weight or 'nothing'} is no weight" in refused(base, f"{adapter}:{weight}")

    @pytest.mark.parametrize("weight", ["0", "-0.0", "0e5"])
    def test_a_weight_of_nothing(self, folders, refused, weight):
        base, adapter = folders
        assert "a weight of 0 adds nothing" in refused(base, f"{adapter}:{weight}")

    def test_a_negative_weight_takes_away(self, folders, tmp_path):
        base, adapter = folders
        assert merge(base, adapter, tmp_path / "plus") == 0
        assert merge(base, f"{adapter}:-1", tmp_path / "minus") == 0
        before, plus, minus = (
            load_file(each / "model.safetensors") for each in (base, *map(tmp_path.joinpath, ("plus", "minus")))
        )
        assert all(torch.allclose(plus[name] + minus[name], 2 * value, atol=1e-5) for name, value in before.items())

    @pytest.mark.parametrize("bias", ["lora_only", "all"])
    def test_biases_cannot_be_weighted_or_added(self, tmp_path, refused, bias):
        torch.manual_seed(0)
        config = {"target_modules": ["c_attn"], "fan_in_fan_out": True}
        gpt2().save_pretrained(tmp_path / "base")
        first, second = (
            save_adapter(gpt2(), tmp_path / "base", lora(bias=kind, **config), tmp_path / kind)
            for kind in (bias, "none")
        )
        for named in ([f"{first}:0.5"], [first, second], [second, f"{first}:1"]):
            assert "brings biases of its own" in refused(tmp_path / "base", *named)

    def test_a_weight_is_of_the_bias_in_lora_too(self, tmp_path):
        torch.manual_seed(0)
        base = llama(attention_bias=True)
        base.save_pretrained(tmp_path / "base")
        adapter = save_adapter(
            base, tmp_path / "base", lora(target_modules=["q_proj"], lora_bias=True), tmp_path / "adapter"
        )
        assert merge(tmp_path / "base", f"{adapter}:0.5", tmp_path / "out") == 0
        name = "model.layers.1.self_attn.q_proj"
        before, after = (
            load_file(each / "model.safetensors")[f"{name}.bias"] for each in (tmp_path / "base", tmp_path / "out")
        )
        part = load_file(adapter / "adapter_model.safetensors")[f"base_model.model.{name}.lora_B.bias"]
        torch.testing.assert_close(after, before + 0.5 * 3 * part)

    def test_a_weight_is_of_rank_stabilised_lora_with_ranks_that_differ(self, pair, tmp_path):
        config = lora(target_modules=["q_proj", "k_proj"], use_rslora=True, rank_pattern={"k_proj": 9})
        base, adapter = pair(llama(), config)
        assert merge(base, f"{adapter}:2", tmp_path / "out") == 0
        tensors = load_file(adapter / "adapter_model.safetensors")
        before, after = (load_file(each / "model.safetensors") for each in (base, tmp_path / "out"))
        for leaf, scale in (("q_proj", 12 / 2), ("k_proj", 12 / 3)):
            name = f"model.layers.0.self_attn.{leaf}"
            a, b = (tensors[f"base_model.model.{name}.lora_{part}.weight"] for part in "AB")
            torch.testing.assert_close(after[f"{name}.weight"], before[f"{name}.weight"] + 2 * scale * b @ a)

    @pytest.mark.parametrize(
        "keys", [{"use_dora": True}, {"modules_to_save": ["lm_head"]}, {"trainable_token_indices": [3]}], ids=str
    )
    def test_only_plain_lora_can_be_weighted(self, pair, refused, keys):
        base, adapter = pair(llama(), lora(target_modules=["q_proj"], **keys))
        assert "only plain LoRA can be weighted" in refused(base, f"{adapter}:0.5")

    def test_an_adapter_that_is_given_twice(self, folders, refused):
        base, adapter = folders
        assert "is given twice: give it once, with a weight" in refused(
            base, adapter, f"{adapter.parent}/./adapter:0.5"
        )


class TestBase:
    def test_no_name(self, folders, refused):
        base, adapter = folders
        for name in (None, "", MISSING, 3):
            edit(adapter, base_model_name_or_path=name)
            assert f"does not say what its base is: if it is {base}, put this name" in refused(base, adapter)

    def test_a_folder_that_has_moved_is_known_by_its_name(self, folders, tmp_path):
        base, adapter = folders
        edit(adapter, base_model_name_or_path="/data/gone/Base")
        assert merge(base, adapter, tmp_path / "out") == 0

    def test_a_folder_that_has_moved_and_been_renamed(self, folders, refused):
        base, adapter = folders
        edit(adapter, base_model_name_or_path="/data/gone/qwen")
        assert f"its base is /data/gone/qwen, which is no folder here any more, not {base}" in refused(base, adapter)

    def test_other_weights_and_a_base_without_a_name(self, folders, refused):
        base, adapter = folders
        write_fingerprint(adapter, str(base), "another")
        edit(adapter, base_model_name_or_path=None)
        assert f"was trained on other weights than those of {base}: give its own base" in refused(base, adapter)

    def test_the_same_weights_and_a_base_without_a_name(self, folders, tmp_path):
        base, adapter = folders
        write_fingerprint(adapter, str(base), model_fingerprint(str(base)))
        edit(adapter, base_model_name_or_path=None)
        assert merge(base, adapter, tmp_path / "out") == 0

    @pytest.mark.parametrize(
        "name",
        [
            "internlm/internlm2_5-7b-chat",
            "Shanghai_AI_Laboratory/internlm2_5-7b-chat",
            "models/internlm2_5-7b-chat",
            "models/internlm2_5-7b-chat/",
            "/root/.cache/modelscope/hub/models/Shanghai_AI_Laboratory/internlm2_5-7b-chat",
            "/root/.cache/modelscope/hub/Shanghai_AI_Laboratory/internlm2___5-7b-chat",
            "/root/.cache/huggingface/hub/models--internlm--internlm2_5-7b-chat/snapshots/0a1b",
            "/data/InternLM2.5-7B-Chat",
        ],
    )
    def test_one_model_under_the_names_that_hubs_and_people_give_it(self, name):
        assert _plain(name) == _plain("internlm/internlm2_5-7b-chat")

    def test_names_with_a_dot(self):
        assert _plain("/cache/hub/models/Qwen/Qwen2___5-7B-Instruct") == _plain("Qwen/Qwen2.5-7B-Instruct")

    def test_other_models_have_other_names(self):
        assert _plain("Qwen/Qwen2.5-7B") != _plain("Qwen/Qwen2.5-7B-Instruct")
        assert _plain("work_dirs/one/final") != _plain("work_dirs/two/final")


def test_an_adapter_of_adalora_after_its_ranks_were_allotted_is_merged(tmp_path):
    """It keeps fewer rows than it began with, and says which."""
    from peft import AdaLoraConfig

    torch.manual_seed(0)
    base = llama()
    base.save_pretrained(tmp_path / "base")
    base.name_or_path = str(tmp_path / "base")
    config = AdaLoraConfig(
        target_modules=["q_proj"], init_r=4, target_r=2, total_step=3, tinit=0, tfinal=1, task_type="CAUSAL_LM"
    )
    tuned = get_peft_model(base, config)
    for step in range(3):
        tuned(torch.arange(1, 20)[None], labels=torch.arange(1, 20)[None]).loss.backward()
        for weight in tuned.parameters():
            weight.data += 0.05 * torch.randn_like(weight) if weight.requires_grad else 0
        tuned.base_model.update_and_allocate(step)
    tuned.save_pretrained(tmp_path / "adapter")
    assert merge(tmp_path / "base", tmp_path / "adapter", tmp_path / "out") == 0
    model = PeftModel.from_pretrained(LlamaForCausalLM.from_pretrained(tmp_path / "base"), tmp_path / "adapter")
    expected = model.merge_and_unload().state_dict()
    merged = load_file(tmp_path / "out" / "model.safetensors")
    assert [name for name, value in merged.items() if not torch.equal(value, expected[name])] == []


def test_an_adapter_of_nan_is_refused_and_nothing_stays(folders, refused):
    base, adapter = folders
    tensors = load_file(adapter / "adapter_model.safetensors")
    tensors[min(tensors)][0, 0] = math.nan
    save_file(tensors, adapter / "adapter_model.safetensors")
    assert "NaN or infinite" in refused(base, adapter)
