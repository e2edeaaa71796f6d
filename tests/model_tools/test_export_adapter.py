"""Whatever wrote a checkpoint, the adapter that is exported is the one that was trained, and PEFT loads all of it."""

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM
from trl import ModelConfig

from model_tools.__main__ import main
from sft.core.paths import REPOSITORY
from sft.models.loading import load_model
from tests.support.adapters import gpt2, lora, save_adapter
from tests.support.malicious_pickle import Call
from tests.support.published_internlm2 import PublishedInternLM2, random_weights, write_folder
from tests.support.recipes import ADAPTER_FOLDER, STAGES
from tests.support.xtuner_files import mmengine, mmengine_state, write_xtuner, xtuner_config

SHAPE = (128, 4, 2)
SHAPES = {"two queries a key": SHAPE, "one query a key": (128, 4, 4), "one key": (64, 8, 1)}
ALL_LINEAR = ["wqkv", "wo", "w1", "w2", "w3", "output"]
IDS = torch.arange(3, 43)


@pytest.fixture
def export(tmp_path, capsys):
    """Export into `out` and return the folder and what was said; `code` is the exit code it must have."""

    def run(checkpoint, *options, code=0, out="out") -> tuple[Path, str]:
        assert main(["export-adapter", str(checkpoint), str(tmp_path / out), *map(str, options)]) == code
        said = capsys.readouterr()
        return tmp_path / out, said.out + said.err

    return run


def tensors_of(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "adapter_model.safetensors")


def loaded(base: torch.nn.Module, folder: Path) -> PeftModel:
    """The base with the adapter on it, every tensor of which has found its place."""
    model = PeftModel.from_pretrained(base, folder)
    held, stored = get_peft_model_state_dict(model, save_embedding_layers=False), tensors_of(folder)
    assert held.keys() == stored.keys()
    assert all(torch.equal(held[name], stored[name].to(held[name].dtype)) for name in stored)
    return model.eval()


def is_same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    """The same names, types and bits."""
    return left.keys() == right.keys() and all(
        left[name].dtype == right[name].dtype and torch.equal(left[name], right[name]) for name in left
    )


# Our own checkpoints, and DeepSpeed's.


@pytest.mark.parametrize("stage", STAGES)
def test_without_fp32_a_checkpoint_gives_the_runs_own_adapter_with_or_without_its_adapter_file(
    zero_run, export, tmp_path, stage
):
    checkpoint = zero_run(stage) / "checkpoint-2"
    own = tensors_of(checkpoint)
    assert is_same(tensors_of(export(checkpoint)[0]), own)
    bare = shutil.copytree(checkpoint, tmp_path / "bare")
    (bare / "adapter_model.safetensors").unlink()
    for number, path in enumerate((bare, bare / "global_step2")):
        folder, said = export(path, out=f"bare{number}")
        assert is_same(tensors_of(folder), own)
        assert f"global_step2, weights of ZeRO-{stage[-1]}, 2 processes" in said


@pytest.mark.parametrize("stage", STAGES)
def test_fp32_gives_the_optimizers_masters_which_round_to_the_runs_own_adapter(
    zero_run, export, tiny_model, monkeypatch, stage
):
    monkeypatch.delenv("TORCH_FORCE_WEIGHTS_ONLY_LOAD", raising=False)
    checkpoint = zero_run(stage) / "checkpoint-2"
    masters = get_fp32_state_dict_from_zero_checkpoint(str(checkpoint), exclude_frozen_parameters=True)
    folder, said = export(checkpoint, "--fp32")
    exported, own = tensors_of(folder), tensors_of(checkpoint)
    assert is_same(exported, {name.replace(".default", ""): value for name, value in masters.items()})
    assert is_same({name: value.to(own[name].dtype) for name, value in exported.items()}, own)
    if STAGES[stage]:
        assert not all(torch.equal(value, own[name].float()) for name, value in exported.items())
    assert f"float32 masters of ZeRO-{stage[-1]}, 2 processes" in said
    loaded(AutoModelForCausalLM.from_pretrained(tiny_model), folder)


def test_tokenizer_card_config_and_memory_of_the_base_come_along(zero_run, export):
    checkpoint = zero_run("zero2") / "checkpoint-2"
    folder, said = export(checkpoint)
    assert sorted(file.name for file in folder.iterdir()) == ADAPTER_FOLDER
    before, after = (json.loads((path / "adapter_config.json").read_text()) for path in (checkpoint, folder))
    assert before == after
    assert AutoTokenizer.from_pretrained(folder).chat_template
    assert "28 tensors, r 8, alpha 32, down_proj gate_proj k_proj o_proj q_proj up_proj v_proj, " in said
    assert "MiB, bfloat16\n" in said


def test_a_run_directory_means_its_final_adapter_and_fp32_then_only_casts(zero_run, export):
    run = zero_run("zero2")
    folder, said = export(run, "--fp32")
    own = tensors_of(run / "final")
    assert is_same(tensors_of(folder), {name: value.float() for name, value in own.items()})
    assert "float32 (from bfloat16)" in said


def test_a_pickled_adapter_becomes_safetensors_and_a_given_base_is_written_down(zero_run, export, tmp_path, tiny_model):
    folder = shutil.copytree(zero_run("zero1") / "final", tmp_path / "pickled")
    own = tensors_of(folder)
    torch.save(own, folder / "adapter_model.bin")
    (folder / "adapter_model.safetensors").unlink()
    out, _ = export(folder, "--base", tiny_model)
    assert is_same(tensors_of(out), own)
    assert json.loads((out / "adapter_config.json").read_text())["base_model_name_or_path"] == str(tiny_model)


def test_a_checkpoint_with_an_optimizer_file_missing_is_refused(zero_run, export, tmp_path):
    checkpoint = shutil.copytree(zero_run("zero3") / "checkpoint-2", tmp_path / "cut")
    next(checkpoint.glob("global_step2/*rank_1*optim_states.pt")).unlink()
    _, said = export(checkpoint, "--fp32", code=2)
    assert "holds 1 of 2 optimizer files" in said


# InternLM2's fused modules.


@pytest.fixture
def published(tmp_path):
    """Build an InternLM2 of a shape, as its folder and as its own code with a PEFT adapter on it."""

    def build(shape, **config) -> tuple[Path, PeftModel]:
        weights = random_weights(*shape, inner=96, vocabulary=80)
        folder = write_folder(tmp_path / "internlm2", weights, *shape)
        config = {"r": 4, "lora_alpha": 12, "target_modules": ALL_LINEAR} | config
        base = PublishedInternLM2(weights, *shape)
        base.name_or_path = str(folder)
        model = get_peft_model(base, LoraConfig(**config))
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter += torch.randn_like(parameter) / 16
        return folder, model.eval()

    return build


@torch.no_grad
def assert_says_the_same(native: PeftModel, own: PeftModel) -> None:
    expected = own(IDS)
    with own.disable_adapter():
        assert not torch.allclose(own(IDS), expected, atol=1e-2)
    torch.testing.assert_close(native(input_ids=IDS[None]).logits[0], expected, rtol=1e-4, atol=1e-4)


KINDS = {
    "plain": {},
    "rank-stabilised": {"use_rslora": True},
    "DoRA": {"use_dora": True},
    "own ranks and alphas": {"rank_pattern": {"wqkv": 8, "layers.1.feed_forward.w2": 2}, "alpha_pattern": {"wqkv": 5}},
    "some layers": {"target_modules": ["wqkv", "w1"], "layers_to_transform": [1]},
    "a pattern of modules": {"target_modules": r".*\.attention\.wqkv"},
    "embedding": {"target_modules": ["wqkv", "tok_embeddings"]},
    "whole modules": {"target_modules": ["wqkv"], "modules_to_save": ["output", "ffn_norm"]},
}


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_a_fused_adapter_says_on_the_native_model_what_it_said_on_its_own(published, export, tmp_path, shape):
    folder, own = published(shape)
    own.save_pretrained(tmp_path / "fused")
    out, said = export(tmp_path / "fused")
    assert "wqkv split into q_proj, k_proj, v_proj" in said
    assert_says_the_same(loaded(load_model(ModelConfig(str(folder), dtype="float32")), out), own)


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_every_kind_of_lora_is_carried_over_from_fused_modules(published, export, tmp_path, kind):
    folder, own = published(SHAPE, **kind)
    own.save_pretrained(tmp_path / "fused")
    out, _ = export(tmp_path / "fused")
    assert_says_the_same(loaded(load_model(ModelConfig(str(folder), dtype="float32")), out), own)


def test_the_dealt_out_product_is_that_of_the_fused_one(published, export, tmp_path):
    """x @ (W + s B A)^T of `wqkv`, its rows grouped by key head, is what the three projections give together."""
    hidden, heads, kv = SHAPE
    size, group = hidden // heads, heads // kv
    folder, own = published(SHAPE, target_modules=["wqkv"])
    own.save_pretrained(tmp_path / "fused")
    fused, out = tensors_of(tmp_path / "fused"), tensors_of(export(tmp_path / "fused")[0])
    weight = load_file(folder / "model.safetensors")["model.layers.1.attention.wqkv.weight"]
    at = "base_model.model.model.layers.1.attention.wqkv.lora_"
    x = torch.randn(5, hidden)
    expected = (x @ (weight + 12 / 4 * fused[f"{at}B.weight"] @ fused[f"{at}A.weight"]).T).view(5, kv, group + 2, size)
    places = {"q": slice(0, group), "k": slice(group, group + 1), "v": slice(group + 1, None)}
    for name, place in places.items():
        at = f"base_model.model.model.layers.1.self_attn.{name}_proj.lora_"
        rows = weight.view(kv, group + 2, size, hidden)[:, place].reshape(-1, hidden)
        actual = x @ (rows + 12 / 4 * out[f"{at}B.weight"] @ out[f"{at}A.weight"]).T
        torch.testing.assert_close(actual, expected[:, :, place].reshape(5, -1))


def test_fused_modules_need_their_base_and_the_right_one(published, export, tmp_path):
    folder, own = published(SHAPE)
    own.save_pretrained(tmp_path / "fused")
    other = write_folder(tmp_path / "other", random_weights(128, 4, 4), 128, 4, 4)
    shutil.move(folder, tmp_path / "moved")
    _, said = export(tmp_path / "fused", code=2)
    assert said.endswith("is no folder here): add --base DIR\n")
    _, said = export(tmp_path / "fused", "--base", other, code=2)
    assert "wqkv.lora_B.weight has 256 rows, and a base with 4 heads and 4 key heads of 32 has 384" in said
    export(tmp_path / "fused", "--base", tmp_path / "moved")


def test_what_cannot_be_dealt_out_is_refused(published, export, tmp_path):
    _, own = published(SHAPE, target_modules=["wqkv"], init_lora_weights="pissa")
    own.save_pretrained(tmp_path / "fused")
    _, said = export(tmp_path / "fused", code=2)
    assert "init_lora_weights pissa on InternLM2's fused modules cannot be split" in said


# For engines that load an adapter beside a Llama.


@pytest.fixture
def llama_base(tmp_path):
    """Write an InternLM2's folder as a Llama."""

    def write(folder: Path) -> Path:
        assert main(["export-llama", str(folder), str(tmp_path / "llama"), "--no-verify"]) == 0
        return tmp_path / "llama"

    return write


@pytest.mark.parametrize("source", ["fused", "XTuner's", "native"])
def test_as_llama_it_says_beside_the_llama_what_it_said_on_its_own(published, export, tmp_path, llama_base, source):
    folder, own = published(SHAPE)
    fused, base = tmp_path / "fused", llama_base(folder)
    if source == "XTuner's":
        fused = write_xtuner(tmp_path / "iter_500.pth", xtuner_state(own), xtuner_config(folder, rank=4, alpha=12))
    else:
        own.save_pretrained(fused)
    named = fused
    if source == "native":
        named, _ = export(fused, out="native")
    out, _ = export(named, "--as", "llama", "--base", base)
    config = json.loads((out / "adapter_config.json").read_text())
    names = ["down_proj", "gate_proj", "k_proj", "lm_head", "o_proj", "q_proj", "up_proj", "v_proj"]
    assert config["target_modules"] == names
    assert config["base_model_name_or_path"] == str(base)
    assert (config["rank_pattern"], config["alpha_pattern"]) == ({}, {})
    assert not (out / "base_model.json").exists()
    native = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    assert type(native) is LlamaForCausalLM
    assert_says_the_same(loaded(native, out), own)


def test_as_llama_an_adapter_of_some_layers_names_them(published, export, tmp_path, llama_base):
    folder, own = published(SHAPE, target_modules=["wqkv"], layers_to_transform=[1])
    own.save_pretrained(tmp_path / "fused")
    out, _ = export(tmp_path / "fused", "--as", "llama", "--base", llama_base(folder))
    config = json.loads((out / "adapter_config.json").read_text())
    assert config["target_modules"] == [f"model.layers.1.self_attn.{part}_proj" for part in "kqv"]


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ({"use_dora": True}, "has use_dora, which engines refuse or pass over"),
        ({"rank_pattern": {"wo": 8}}, "has rank_pattern, which engines refuse or pass over"),
        ({"alpha_pattern": {"wo": 5}}, "has alpha_pattern, which engines refuse or pass over"),
        ({"modules_to_save": ["ffn_norm"]}, "has modules_to_save, which engines refuse or pass over"),
    ],
)
def test_as_llama_what_engines_would_not_apply_is_refused(published, export, tmp_path, kind, said):
    _, own = published(SHAPE, target_modules=["wqkv", "wo"], **kind)
    own.save_pretrained(tmp_path / "fused")
    out, heard = export(tmp_path / "fused", "--as", "llama", code=2)
    assert said in heard
    assert heard.count("\n") == 1
    assert not out.exists()


def test_as_llama_an_adapter_of_another_architecture_is_refused(export, tmp_path):
    model = gpt2()
    model.save_pretrained(tmp_path / "gpt2")
    save_adapter(model, tmp_path / "gpt2", lora(target_modules=["c_attn"], fan_in_fan_out=True), tmp_path / "adapter")
    _, said = export(tmp_path / "adapter", "--as", "llama", code=2)
    assert "its base is a gpt2, which is no Llama under any name: omit --as" in said


# XTuner's checkpoints.


def xtuner_state(own: PeftModel) -> dict[str, torch.Tensor]:
    """What XTuner's `SupervisedFinetune.state_dict` keeps of its `llm`."""
    state = own.state_dict()
    return {f"llm.{name}": value for name, value in state.items() if "lora_" in name or "modules_to_save" in name}


@pytest.mark.parametrize("older_format", [False, True], ids=["zip", "older format"])
def test_an_xtuner_file_says_on_the_native_model_what_it_said_in_xtuner(published, export, tmp_path, older_format):
    folder, own = published(SHAPE)
    config = xtuner_config(folder, rank=4, alpha=12)
    path = write_xtuner(tmp_path / "iter_500.pth", xtuner_state(own), config, older_format)
    out, said = export(path)
    assert "30 tensors, r 4, alpha 12, down_proj gate_proj k_proj lm_head o_proj q_proj up_proj v_proj" in said
    written = json.loads((out / "adapter_config.json").read_text())
    assert (written["lora_dropout"], written["base_model_name_or_path"]) == (0.1, str(folder))
    assert "export-adapter" in (out / "README.md").read_text()
    assert_says_the_same(loaded(load_model(ModelConfig(str(folder), dtype="float32")), out), own)


def test_an_xtuner_file_of_halves_can_be_cast_up(published, export, tmp_path):
    folder, own = published(SHAPE)
    halves = {name: value.half() for name, value in xtuner_state(own).items()}
    path = write_xtuner(tmp_path / "iter_500.pth", halves, xtuner_config(folder, 4))
    kept, cast = (tensors_of(export(path, *options, out=str(len(options)))[0]) for options in ([], ["--fp32"]))
    assert {value.dtype for value in kept.values()} == {torch.float16}
    assert is_same({name: value.float() for name, value in kept.items()}, cast)


@pytest.mark.parametrize("stage", ["zero2", "zero3"])
def test_an_xtuner_folder_of_deepspeed_gives_weights_and_masters(zero_run, export, tmp_path, tiny_model, stage):
    run = zero_run(stage)
    folder = shutil.copytree(run / "checkpoint-2" / "global_step2", tmp_path / "iter_500.pth")
    for file in folder.glob("*model_states.pt"):
        state = torch.load(file, weights_only=False)
        state["module"] = {f"llm.{name}": value for name, value in state["module"].items() if "lora_" in name}
        state["param_shapes"] = [
            {f"llm.{name}": shape for name, shape in group.items()} for group in state["param_shapes"]
        ]
        with mmengine():
            torch.save(state | mmengine_state(xtuner_config(tiny_model, 8, 32)), file)
    out, said = export(folder)
    assert f"iter_500.pth, weights of ZeRO-{stage[-1]}, 2 processes" in said
    assert is_same(tensors_of(out), tensors_of(run / "checkpoint-2"))
    loaded(AutoModelForCausalLM.from_pretrained(tiny_model), out)
    masters, _ = export(folder, "--fp32", out="masters")
    assert is_same(tensors_of(masters), tensors_of(export(run / "checkpoint-2", "--fp32", out="own")[0]))


def test_an_xtuner_folder_without_an_optimizer_gives_its_weights(published, export, tmp_path):
    folder, own = published(SHAPE)
    path = tmp_path / "iter_500.pth"
    path.mkdir()
    state = {name: value.half() for name, value in xtuner_state(own).items()}
    with mmengine():
        torch.save(
            {"state_dict": state, **mmengine_state(xtuner_config(folder, 4))}, path / "mp_rank_00_model_states.pt"
        )
    out, said = export(path)
    assert "iter_500.pth, weights of DeepSpeed without ZeRO, 1 process" in said
    at, native = "llm.base_model.model.model.layers.0.", "base_model.model.model.layers.0."
    for old, new in (("attention.wo", "self_attn.o_proj"), ("feed_forward.w3", "mlp.up_proj")):
        stored = tensors_of(out)[f"{native}{new}.lora_B.weight"]
        assert torch.equal(stored, state[f"{at}{old}.lora_B.default.weight"])


def test_the_config_is_taken_from_the_checkpoint_or_beside_it_or_from_the_one_named(published, export, tmp_path):
    folder, own = published(SHAPE)
    path = write_xtuner(tmp_path / "iter_500.pth", xtuner_state(own), None)
    (tmp_path / "zero_to_fp32.py").write_text("raise SystemExit('DeepSpeed lays this here')")
    assert "0 *.py lie beside it; lora_alpha is not known: add --config" in export(path, code=2)[1]
    (tmp_path / "mine.py").write_text(xtuner_config(folder, 4, 12))
    assert "alpha 12" in export(path, out="beside")[1]
    (tmp_path / "other.py").write_text(xtuner_config(folder, 4, 24))
    assert "2 *.py lie beside it" in export(path, code=2)[1]
    assert "alpha 24" in export(path, "--config", tmp_path / "other.py", out="named")[1]
    with mmengine():
        logged = mmengine_state(None)
        logged["message_hub"]["runtime_info"]["cfg"] = xtuner_config(folder, 4, 36)
        torch.save({"state_dict": xtuner_state(own), **logged}, path)
    assert "alpha 36" in export(path, out="logged")[1]


def test_settings_that_do_not_fit_the_tensors_are_refused(published, export, tmp_path):
    folder, own = published(SHAPE)
    path = write_xtuner(tmp_path / "iter_500.pth", xtuner_state(own), xtuner_config(folder, 64))
    assert "says r 64, and the tensors have r 4" in export(path, code=2)[1]
    for text, said in (
        (xtuner_config(folder, 4).replace("lora_alpha=16", "lora_alpha=mine()"), "does not say lora_alpha"),
        ("model = dict(llm=dict())", "sets no lora in its model"),
        ("model = (", "mine.py:1: not Python"),
    ):
        (tmp_path / "mine.py").write_text(text)
        assert said in export(path, "--config", tmp_path / "mine.py", code=2)[1]


def test_an_xtuner_file_of_a_llama_keeps_its_names_and_each_modules_own_rank(export, tmp_path, tiny_model):
    config = LoraConfig(r=4, target_modules=["q_proj", "up_proj"], rank_pattern={"layers.1.mlp.up_proj": 2})
    own = get_peft_model(AutoModelForCausalLM.from_pretrained(tiny_model), config)
    path = write_xtuner(tmp_path / "iter_500.pth", xtuner_state(own), xtuner_config(tiny_model, 4, 12))
    out, said = export(path)
    assert "8 tensors, r 4, alpha 12, q_proj up_proj, " in said
    own.save_pretrained(tmp_path / "own")
    assert is_same(tensors_of(out), tensors_of(tmp_path / "own"))
    loaded(AutoModelForCausalLM.from_pretrained(tiny_model), out)


def test_a_whole_module_that_xtuner_trained_is_carried_over_if_its_config_says_so(published, export, tmp_path):
    folder, own = published(SHAPE, target_modules=["wqkv"], modules_to_save=["output"])
    path = write_xtuner(tmp_path / "iter_500.pth", xtuner_state(own), xtuner_config(folder, 4, 12))
    assert (
        "base_model.model.output.weight was trained, and neither bias nor modules_to_save asks"
        in export(path, code=2)[1]
    )
    config = xtuner_config(folder, 4, 12).replace("bias='none',", "bias='none', modules_to_save=['output'],")
    (tmp_path / "mine.py").write_text(config)
    out, _ = export(path, "--config", tmp_path / "mine.py")
    assert_says_the_same(loaded(load_model(ModelConfig(str(folder), dtype="float32")), out), own)


def test_a_trained_tensor_without_a_place_in_an_adapter_is_named_and_nothing_is_written(published, export, tmp_path):
    folder, own = published(SHAPE)
    for name in ("projector.model.0.weight", "llm.base_model.model.model.norm.weight"):
        state = xtuner_state(own) | {name: torch.zeros(2)}
        path = write_xtuner(tmp_path / "iter_500.pth", state, xtuner_config(folder, 4))
        out, said = export(path, code=2)
        assert f"{name} was trained and has no place in a LoRA adapter" in said
        assert not out.exists()


# Files made to do harm.


def plant(file: Path, payload: Call, *keys: str) -> None:
    """Put the payload into a file of torch.save, or into the dict in it that the keys lead to."""
    with mmengine():
        content = torch.load(file, weights_only=False) if file.exists() else {}
        inner = content
        for key in keys:
            inner = inner[key]
        inner["planted"] = payload
        torch.save(content, file)


@pytest.fixture
def harmful(zero_run, tmp_path):
    """Checkpoints, each with a payload in one of its files: the path to export, the file, the options."""

    def make(kind: str, payload: Call) -> tuple[Path, Path, list[str]]:
        if kind == "an XTuner file":
            path = write_xtuner(tmp_path / "iter_500.pth", {}, None)
            plant(path, payload)
            return path, path, []
        if kind == "a pickled adapter":
            folder = shutil.copytree(zero_run("zero1") / "final", tmp_path / "adapter")
            (folder / "adapter_model.safetensors").unlink()
            plant(folder / "adapter_model.bin", payload)
            return folder, folder / "adapter_model.bin", []
        checkpoint = shutil.copytree(zero_run("zero2") / "checkpoint-2", tmp_path / "checkpoint")
        pattern, keys = (
            ("mp_rank_00_model_states.pt", []) if "weights" in kind else ("*rank_1*optim*", ["optimizer_state_dict"])
        )
        (file,) = checkpoint.glob(f"global_step2/{pattern}")
        plant(file, payload, *keys)
        return checkpoint, file, ["--fp32"]

    return make


@pytest.mark.parametrize("kind", ["an XTuner file", "a pickled adapter", "weights of ZeRO", "an optimizer of ZeRO"])
def test_a_planted_command_is_refused_named_and_not_run(harmful, export, tmp_path, kind):
    mark = tmp_path / "was_run"
    path, file, options = harmful(kind, Call(os.system, f"touch {mark}"))
    out, said = export(path, *options, code=2)
    assert f"{file}: asks for posix.system, which is no data; nothing of it was run" in said
    assert not mark.exists()
    assert not out.exists()
    with mmengine():
        torch.load(file, weights_only=False)
    assert mark.exists(), "the payload does nothing, so that this test proves nothing"


# The folder that is written.


def test_a_folder_with_something_in_it_is_left_alone(zero_run, export, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("kept")
    _, said = export(zero_run("zero1"), code=2)
    assert "is there already and not empty" in said
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["mine"]


@pytest.mark.long
def test_a_killed_export_leaves_nothing_of_its_name_and_the_next_one_works(zero_run, export, tmp_path):
    """Killed when all files are written and the first is brought to the disk, the last moment before it has a name."""
    script = (
        "import os, signal, sys; from model_tools.__main__ import main; "
        "os.fsync = lambda _: os.kill(os.getpid(), signal.SIGKILL); main(sys.argv[1:])"
    )
    out = tmp_path / "out"
    command = [sys.executable, "-c", script, "export-adapter", str(zero_run("zero1")), str(out)]
    assert subprocess.run(command, cwd=REPOSITORY, capture_output=True).returncode == -9
    assert [path.name[:13] for path in tmp_path.iterdir()] == [".out.partial."]
    export(zero_run("zero1"))


def test_a_full_disk_is_told_in_one_line_and_leaves_nothing(zero_run, export, tmp_path):
    """A file may grow to 8 KiB here, which stands for a disk with as much room."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8 << 10, before[1]))
    try:
        _, said = export(zero_run("zero1"), code=2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert said.startswith(f"model_tools export-adapter: {tmp_path / 'out'}: cannot be written: ")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("nowhere", "no such file or folder"),
        ("empty", "holds no adapter: give a checkpoint"),
        ("unfinished", "holds no final adapter: give a checkpoint of it, such as"),
        ("model", "is a whole model and no adapter"),
        ("text.pth", "is damaged, or no file of weights"),
        ("tensor.pth", "holds no state_dict of tensors"),
        ("whole.pth", "has no place in a LoRA adapter"),
    ],
)
def test_what_holds_no_adapter_is_told_in_one_line(export, tmp_path, tiny_model, path, said):
    (tmp_path / "empty").mkdir()
    (tmp_path / "unfinished" / "checkpoint-2").mkdir(parents=True)
    (tmp_path / "model").symlink_to(tiny_model)
    (tmp_path / "text.pth").write_text("not a checkpoint")
    torch.save(torch.zeros(2), tmp_path / "tensor.pth")
    torch.save({"state_dict": {"llm.model.norm.weight": torch.zeros(2)}}, tmp_path / "whole.pth")
    _, heard = export(tmp_path / path, code=2)
    assert said in heard
    assert heard.count("\n") == 1


def test_a_config_that_would_be_passed_over_is_refused(zero_run, export, tmp_path):
    (tmp_path / "mine.py").write_text(xtuner_config(tmp_path, 8))
    _, said = export(zero_run("zero1"), "--config", tmp_path / "mine.py", code=2)
    assert "has its own adapter_config.json: omit it" in said
