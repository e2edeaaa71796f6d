"""Every kind of adapter that PEFT can make: merged as PEFT merges it, or refused before a byte is written."""

import json

import pytest
import torch
from peft import PeftModel, PeftType
from peft.tuners.lora.config import MontecloraConfig
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification, LlamaForCausalLM, MixtralForCausalLM

from model_tools.merging.adapter import Adapter
from model_tools.merging.mergeable import MERGED_KINDS
from model_tools.merging.tuned_modules import TunedModules, without_weights
from sft.core.errors import UserError
from tests.support.adapters import llama, lora, merge, mixtral, save_adapter, save_kind

TWO = ["q_proj", "down_proj"]


def llama_with_biases() -> LlamaForCausalLM:
    """Kinds that change biases find some; one takes nothing else."""
    return llama(attention_bias=True)


def pefts_own(base, adapter, model_class=LlamaForCausalLM) -> dict[str, torch.Tensor]:
    return PeftModel.from_pretrained(model_class.from_pretrained(base), adapter).merge_and_unload().state_dict()


@pytest.mark.parametrize("kind", PeftType, ids=lambda kind: kind.value)
def test_every_kind_is_merged_as_peft_merges_it_or_refused_in_one_line(kind, tmp_path, refused):
    torch.manual_seed(0)
    base = llama_with_biases()
    base.save_pretrained(tmp_path / "base")
    adapter = save_kind(kind, base, tmp_path / "base", tmp_path / "adapter")
    if kind.value not in MERGED_KINDS:
        assert f"is {kind.value}, which" in refused(tmp_path / "base", adapter)
        return
    assert merge(tmp_path / "base", adapter, tmp_path / "out") == 0
    expected, before = pefts_own(tmp_path / "base", adapter), load_file(tmp_path / "base" / "model.safetensors")
    merged = load_file(tmp_path / "out" / "model.safetensors")
    assert any(not torch.equal(value, before[name]) for name, value in merged.items())
    assert [name for name, value in merged.items() if not torch.equal(value, expected[name])] == []


def test_some_kinds_are_merged_and_some_are_not():
    """Else the test above could pass for the wrong reason."""
    assert set(PeftType.__members__) > MERGED_KINDS
    assert len(MERGED_KINDS) > 25


@pytest.mark.parametrize("kind", ["VERA", "RANDLORA", "TINYLORA"])
def test_projections_that_are_not_saved_are_drawn_again(kind, pair, tmp_path, monkeypatch):
    from tests.support import adapters

    monkeypatch.setitem(adapters.SETTINGS, kind, adapters.SETTINGS[kind] | {"save_projection": False})
    base = llama()
    base.save_pretrained(tmp_path / "base")
    adapter = save_kind(PeftType(kind), base, tmp_path / "base", tmp_path / "adapter")
    assert merge(tmp_path / "base", adapter, tmp_path / "out") == 0
    expected = pefts_own(tmp_path / "base", adapter)
    merged = load_file(tmp_path / "out" / "model.safetensors")
    assert [name for name, value in merged.items() if not torch.equal(value, expected[name])] == []


REFUSED_SETTINGS = {
    "aLoRA": ({"alora_invocation_tokens": [1, 2]}, "works only from its invocation tokens on (aLoRA)"),
    "MonteCLoRA": ({"monteclora_config": MontecloraConfig()}, "draws its weights at random"),
    "more layers": ({"layer_replication": [[0, 2], [1, 2]]}, "repeats layers of the base"),
    "PiSSA": ({"init_lora_weights": "pissa"}, "began as PiSSA, which changes the base's weights"),
    "PiSSA by iterations": ({"init_lora_weights": "pissa_niter_2"}, "path_initial_model_for_weight_conversion"),
    "OLoRA": ({"init_lora_weights": "olora"}, "began as OLoRA"),
    "biases where the base has none": ({"lora_bias": True}, "the base layer has no bias"),
}


@pytest.mark.parametrize("setting", REFUSED_SETTINGS)
def test_what_lora_can_do_and_weights_cannot(setting, pair, refused):
    keys, reason = REFUSED_SETTINGS[setting]
    said = refused(*pair(llama(), lora(target_modules=TWO, **keys)))
    assert reason in said


def test_what_peft_refuses_only_when_it_merges_is_known_before_anything_is_written(pair):
    base, adapter = pair(llama(), lora(target_modules=TWO, lora_bias=True))
    adapters = [Adapter(adapter)]
    model = without_weights(AutoConfig.from_pretrained(base), adapters)
    with pytest.raises(UserError, match="the base layer has no bias"):
        TunedModules(model, adapters)


@pytest.mark.parametrize(("start", "name"), [("corda", "CorDA"), ("loftq", "LoftQ"), ("lora_ga", "LoRA-GA")])
def test_starts_that_peft_makes_only_with_data_or_libraries(start, name, pair, refused):
    base, adapter = pair(llama(), lora())
    edit(adapter, init_lora_weights=start)
    assert f"began as {name}" in refused(base, adapter)


def test_a_pissa_adapter_that_was_converted_is_a_plain_one(tmp_path):
    from peft import get_peft_model

    torch.manual_seed(0)
    base = llama()
    base.save_pretrained(tmp_path / "base")
    base.name_or_path = str(tmp_path / "base")
    tuned = get_peft_model(base, lora(target_modules=TWO, init_lora_weights="pissa"))
    tuned.peft_config["default"].init_lora_weights = True
    tuned.save_pretrained(tmp_path / "start")
    tuned.peft_config["default"].init_lora_weights = "pissa"
    for name, weight in tuned.named_parameters():
        weight.data += torch.randn_like(weight) * 0.05 if "lora_" in name else 0
    tuned.save_pretrained(tmp_path / "adapter", path_initial_model_for_weight_conversion=str(tmp_path / "start"))
    ids = torch.arange(1, 20)[None]
    expected = tuned.eval()(ids).logits
    assert merge(tmp_path / "base", tmp_path / "adapter", tmp_path / "out") == 0
    merged = LlamaForCausalLM.from_pretrained(tmp_path / "out")(ids).logits
    torch.testing.assert_close(merged, expected, rtol=1e-3, atol=1e-3)


class TestExperts:
    """Transformers 4 had a module for each expert, and 5 has one tensor for all of a layer."""

    @pytest.fixture
    def folders(self, tmp_path):
        """A Mixtral, and an adapter as PEFT wrote it with Transformers 4, on every expert of the second layer."""
        torch.manual_seed(0)
        base = mixtral()
        base.save_pretrained(tmp_path / "base")
        sizes = {"w1": (64, 96), "w2": (96, 64), "w3": (64, 96)}
        tensors = {}
        for expert in range(4):
            for leaf, (into, out) in sizes.items():
                module = f"base_model.model.model.layers.1.block_sparse_moe.experts.{expert}.{leaf}"
                tensors[f"{module}.lora_A.weight"] = torch.randn(2, into) * 0.1
                tensors[f"{module}.lora_B.weight"] = torch.randn(out, 2) * 0.1
        config = lora(r=2, lora_alpha=6, target_modules=list(sizes), layers_to_transform=[1])
        config.base_model_name_or_path = str(tmp_path / "base")
        config.save_pretrained(str(tmp_path / "adapter"))
        save_file(tensors, tmp_path / "adapter" / "adapter_model.safetensors")
        return tmp_path / "base", tmp_path / "adapter"

    def test_an_adapter_of_transformers_4_on_all_of_them_is_merged(self, folders, tmp_path):
        base, adapter = folders
        edit(adapter, layers_to_transform=None)
        tensors = load_file(adapter / "adapter_model.safetensors")
        tensors |= {name.replace("layers.1", "layers.0"): value.flip(0) for name, value in tensors.items()}
        save_file(tensors, adapter / "adapter_model.safetensors")
        assert merge(base, adapter, tmp_path / "out") == 0
        before, after = (load_file(folder / "model.safetensors") for folder in (base, tmp_path / "out"))
        for leaf in ("w1", "w2", "w3"):
            module = f"model.layers.1.block_sparse_moe.experts.2.{leaf}"
            a, b = (tensors[f"base_model.model.{module}.lora_{part}.weight"] for part in "AB")
            torch.testing.assert_close(after[f"{module}.weight"], before[f"{module}.weight"] + 3 * b @ a)

    def test_an_adapter_on_a_part_of_what_is_one_tensor_is_refused_with_the_reason(self, folders, refused):
        base, adapter = folders
        tensors = load_file(adapter / "adapter_model.safetensors")
        save_file({n: v for n, v in tensors.items() if ".w1." in n}, adapter / "adapter_model.safetensors")
        edit(adapter, target_modules=["w1"], layers_to_transform=None)
        said = refused(base, adapter)
        assert "Transformers 5 keeps the experts of a layer in one tensor" in said
        assert "merge it with the Transformers 4" in said

    def test_two_adapters_on_the_tensor_of_experts_add_up(self, tmp_path):
        torch.manual_seed(0)
        base = mixtral()
        base.save_pretrained(tmp_path / "base")
        config = {"target_modules": ["q_proj"], "target_parameters": ["mlp.experts.down_proj"]}
        first = save_adapter(base, tmp_path / "base", lora(**config), tmp_path / "first")
        merged = {}
        for weight in (0.5, 1, 2):
            assert merge(tmp_path / "base", f"{first}:{weight}", tmp_path / f"out{weight}") == 0
            model = MixtralForCausalLM.from_pretrained(tmp_path / f"out{weight}")
            merged[weight] = model.model.layers[0].mlp.experts.down_proj.data
        before = MixtralForCausalLM.from_pretrained(tmp_path / "base").model.layers[0].mlp.experts.down_proj.data
        torch.testing.assert_close(merged[2] - before, 4 * (merged[0.5] - before), rtol=1e-4, atol=1e-5)


class TestTasks:
    def test_an_adapter_for_the_model_without_a_head_leaves_the_head_as_it_is(self, tmp_path):
        llama().save_pretrained(tmp_path / "base")
        body = AutoModel.from_pretrained(tmp_path / "base")
        config = lora(target_modules=TWO, task_type="FEATURE_EXTRACTION")
        adapter = save_adapter(body, tmp_path / "base", config, tmp_path / "adapter")
        assert merge(tmp_path / "base", adapter, tmp_path / "out") == 0
        expected = pefts_own(tmp_path / "base", adapter, AutoModel)
        before, merged = (load_file(folder / "model.safetensors") for folder in (tmp_path / "base", tmp_path / "out"))
        assert torch.equal(merged["lm_head.weight"], before["lm_head.weight"])
        assert all(torch.equal(merged[f"model.{name}"], value) for name, value in expected.items())

    def test_an_adapter_with_a_head_of_its_own_wants_a_base_with_that_head(self, tmp_path, refused):
        llama().save_pretrained(tmp_path / "base")
        model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "base")
        config = lora(target_modules=TWO, task_type="SEQ_CLS")
        adapter = save_adapter(model, tmp_path / "base", config, tmp_path / "adapter")
        assert "it is for the task SEQ_CLS" in refused(tmp_path / "base", adapter)


def edit(adapter, **keys) -> None:
    """Change what stands in an adapter's config."""
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | keys))
