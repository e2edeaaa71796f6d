"""Every cause that lies in weights or folders is planted in a real run and told first, with its evidence."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from model_tools.__main__ import main
from model_tools.diagnosing.causes import CAUSES_IN_WEIGHTS
from model_tools.diagnosing.model_parts import find_parts
from sft.evaluation.evidence import Evidence
from sft.models.adapter import model_fingerprint, read_fingerprint
from tests.support.adapters import KINDS, save_adapter
from tests.support.both_languages import english_half
from tests.support.named_run import NAME, copy_of_healthy_run, set_keys, write_rows

WEIGHTS = "adapter_model.safetensors"
ROWS = [{"conversation": [{"input": question, "output": f"我是{NAME}"}]} for question in ("你是谁？", "Who?")] * 30


@pytest.fixture
def healthy(make_trainer, once, tmp_path) -> Path:
    return copy_of_healthy_run(make_trainer, once, tmp_path / "copy")


@pytest.fixture
def merged(healthy, tiny_model, tmp_path) -> Path:
    assert main(["merge", str(tiny_model), str(healthy), str(tmp_path / "merged"), "--no-verify"]) == 0
    return tmp_path / "merged"


@pytest.fixture
def another_base(tiny_model, tmp_path) -> Path:
    """A model of the same shape and other weights."""
    folder = shutil.copytree(tiny_model, tmp_path / "another")
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    for parameter in model.parameters():
        parameter.data += 0.02 * torch.randn_like(parameter)
    model.save_pretrained(folder)
    return folder


@pytest.fixture
def told(capsys):
    """The English half of what `diagnose` says, by lines; `code` is the exit code it must have."""

    def ask(*arguments, code=1) -> list[str]:
        capsys.readouterr()
        assert main(["diagnose", *map(str, arguments)]) == code
        said = capsys.readouterr()
        return said.err.splitlines() if code == 2 else english_half(said.out.splitlines())

    return ask


def edit_tensors(adapter: Path, change) -> None:
    """Write the adapter's tensors anew, each as `change(name, tensor)` makes it: a (name, tensor)."""
    tensors = dict(change(name, tensor) for name, tensor in load_file(adapter / WEIGHTS).items())
    save_file(tensors, adapter / WEIGHTS, metadata={"format": "pt"})


def edit_json(path: Path, **keys) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | keys), encoding="utf-8")


class TestAHealthyRun:
    def test_has_nothing_wrong_and_it_is_told_what_was_checked(self, healthy, merged, told):
        lines = told(healthy, "--merged", merged, code=0)
        assert lines[0] == (
            f"{healthy} should call itself {NAME}, its identity_name. 100% of its last answers gave that name."
        )
        assert lines[1] == "nothing wrong was found"
        for part in (
            "14 modules of",
            "its base model",
            "the merged weights",
            "60 training rows",
            "40 lines of log.jsonl",
        ):
            assert part in lines[2]
        assert len(lines) == 3

    def test_merged_in_bfloat16_is_as_healthy(self, healthy, tiny_model, tmp_path, told):
        out = tmp_path / "rounded"
        assert main(["merge", str(tiny_model), str(healthy), str(out), "--no-verify", "--dtype", "bf16"]) == 0
        assert "nothing wrong was found" in told(healthy, "--merged", out, code=0)

    def test_an_adapter_alone_is_looked_at_as_far_as_it_goes(self, healthy, tmp_path, told):
        alone = shutil.copytree(healthy / "final", tmp_path / "alone")
        lines = told(alone, code=0)
        assert "the name it should give is not known" in lines[0]
        assert "not checked: training rows, log and scores (give the run directory, if there is one)" in lines

    def test_a_training_file_that_changed_since_is_told(self, healthy, told):
        path = write_rows(healthy.parent / "changed.jsonl", ROWS)
        set_keys(healthy, train_file=path)
        assert any(line.startswith(f"note: {path} has changed since the run read it") for line in told(healthy, code=0))

    @pytest.mark.parametrize(
        ("language", "said"), [("zh", ["没有发现问题"]), ("en", ["nothing wrong was found"])], ids=["zh", "en"]
    )
    def test_is_reported_on_in_the_chosen_language_alone(self, healthy, capsys, language, said):
        capsys.readouterr()
        assert main(["diagnose", str(healthy), "--language", language]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert [line for line in lines if line in ("没有发现问题", "nothing wrong was found")] == said


class TestTheAdapter:
    def test_is_all_zeros(self, healthy, told):
        edit_tensors(healthy / "final", lambda name, tensor: (name, tensor * ("lora_B" not in name)))
        lines = told(healthy)
        assert lines[1] == "1. the adapter is all zeros: it was never trained"
        assert lines[2].strip() == f"lora_B is zero in all 14 modules of {healthy}/final"
        assert lines[3].strip() == f"log and evaluations of {healthy}: 40 steps"
        assert lines[4].strip() == f"do: deepspeed --quiet train_sft.py {healthy}/recipe.yaml"

    def test_may_be_zero_in_some_modules(self, healthy, told):
        edit_tensors(healthy / "final", lambda name, tensor: (name, tensor * ("layers.0" not in name)))
        assert "nothing wrong was found" in told(healthy, code=0)

    def test_holds_nan(self, healthy, told):
        edit_tensors(healthy / "final", lambda name, tensor: (name, tensor.log() if "layers.1" in name else tensor))
        lines = told(healthy)
        assert lines[1] == "1. the adapter's weights are NaN or infinite: training overflowed"
        assert (
            lines[2]
            .strip()
            .startswith("14 of 28 tensors contain NaN or infinity, such as base_model.model.model.layers.1")
        )
        assert lines[3].endswith("--fp16 false --bf16 true --dtype bfloat16")

    def test_has_empty_tensors(self, healthy, told):
        edit_tensors(healthy / "final", lambda name, tensor: (name, torch.empty(0)))
        lines = told(healthy)
        assert lines[1] == "1. the adapter's tensors are empty, as when one process of ZeRO-3 saves alone"
        assert lines[2].strip().startswith("28 of 28 tensors are empty")

    def test_has_no_file(self, healthy, told):
        (healthy / "final" / WEIGHTS).unlink()
        lines = told(healthy)
        assert lines[1] == "1. the adapter has no weights"

    def test_was_saved_before_any_step(self, healthy, told):
        for name in ("log.jsonl", "scores.jsonl", "score_answers.jsonl", "eval_chat.jsonl"):
            (healthy / name).unlink()
        (healthy / "final" / "trainer_state.json").write_text('{"global_step": 0}')
        lines = told(healthy)
        assert lines[1] == "1. no training step was done"
        assert lines[2].strip() == f"{healthy}/final/trainer_state.json: 0 steps"

    def test_is_not_there_where_the_run_did_not_end(self, healthy, told):
        (healthy / "final").rename(healthy / "checkpoint-20")
        lines = told(healthy)
        assert lines[1] == "1. the run is still training, or it ended early: there is no final adapter"
        assert lines[3].strip() == f"what follows is about {healthy}/checkpoint-20"
        assert "train_sft.py" in lines[4]  # which resumes by itself

    def test_is_fainter_than_it_was_trained(self, healthy, told):
        edit_json(healthy / "final" / "adapter_config.json", lora_alpha=0.01)
        lines = told(healthy)
        assert lines[1] == "1. the adapter's scale alpha/r is too small for it to have an effect"
        assert "lora_alpha 0.01, r 32: scale 0.00031" in lines[2]
        assert lines[4].strip() == "it was trained with lora_alpha 64, r 32: scale 2"
        assert lines[5].endswith('set "lora_alpha": 64')


class TestTheBase:
    def test_is_gone(self, healthy, told, tmp_path, tiny_model):
        edit_json(healthy / "final" / "adapter_config.json", base_model_name_or_path=str(tmp_path / "gone"))
        lines = told(healthy)
        assert lines[1] == "1. the adapter's base model is gone, so the adapter cannot be loaded"
        assert lines[2].endswith(f"base_model_name_or_path: {tmp_path}/gone")
        told(healthy, "--base", tiny_model, code=0)

    def test_that_is_not_on_this_machine_but_may_be_on_a_hub_is_no_cause(self, healthy, told):
        edit_json(healthy / "final" / "adapter_config.json", base_model_name_or_path="someone/some-model")
        assert any(
            "someone/some-model, which is not on this machine (give --base DIR)" in line
            for line in told(healthy, code=0)
        )

    def test_that_the_adapter_does_not_name_is_asked_for(self, healthy, told, tiny_model):
        edit_json(healthy / "final" / "adapter_config.json", base_model_name_or_path=None)
        assert any("the base model, which the adapter does not name" in line for line in told(healthy, code=0))
        assert not any("the base model" in line for line in told(healthy, "--base", tiny_model, code=0))

    def test_is_another_than_the_one_trained_on(self, healthy, told, another_base):
        lines = told(healthy, "--base", another_base)
        assert lines[1] == "1. the base model is not the one that the adapter was trained on"
        assert read_fingerprint(healthy / "final")[:12] in lines[2]
        assert model_fingerprint(str(another_base))[:12] in lines[3]

    def test_has_no_place_for_the_adapter(self, healthy, told):
        """InternLM2's published names, as XTuner trains them."""

        def published(name, tensor):
            return name.replace("self_attn.q_proj", "attention.wqkv"), tensor

        edit_tensors(healthy / "final", published)
        targets = ["wqkv", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
        edit_json(healthy / "final" / "adapter_config.json", target_modules=targets)
        lines = told(healthy)
        assert lines[1] == "1. the adapter does not fit its base model: it is loaded in part or not at all"
        assert "layers.0.attention.wqkv.lora_A.weight has no place in the base model" in lines[3]
        assert lines[4].strip().startswith(f"do: python -m model_tools export-adapter {healthy}/final")


class TestTheMergedModel:
    def test_is_the_base_again(self, healthy, tiny_model, tmp_path, told):
        plain = shutil.copytree(tiny_model, tmp_path / "plain")
        lines = told(healthy, "--merged", plain)
        assert lines[1] == "1. the adapter is not in the merged model"
        assert lines[2].strip() == "the merged weights contain 0% of what the adapter adds"
        assert lines[3].strip() == "model.layers.0.self_attn.q_proj.weight: 4,096 of 4,096 numbers are the base's"
        assert lines[6].strip() == f"do: python -m model_tools merge {tiny_model} {healthy}/final {plain}.again"

    def test_holds_another_adapter(self, healthy, merged, told):
        edit_tensors(healthy / "final", lambda name, tensor: (name, -tensor if "lora_B" in name else tensor))
        lines = told(healthy, "--merged", merged)
        assert lines[1] == "1. the adapter is not in the merged model"
        assert "contain -100% of what the adapter adds" in lines[2]
        assert "merge.json: made of" in lines[6]

    def test_was_made_of_another_base(self, healthy, another_base, tmp_path, told):
        model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(another_base), healthy / "final")
        out = shutil.copytree(another_base, tmp_path / "merged")
        model.merge_and_unload().save_pretrained(out)
        lines = told(healthy, "--merged", out)
        assert lines[1] == "1. the adapter was merged into another base model"
        assert lines[2].strip() == ("7 of 7 tensors that the adapter does not touch differ, such as lm_head.weight")

    def test_has_another_template(self, healthy, merged, told):
        path = merged / "chat_template.jinja"
        path.write_text(path.read_text().replace("named SmolLM", "named Ada"), encoding="utf-8")
        assert told(healthy, "--merged", merged)[1] == (
            "1. the model is asked with a chat template that differs from that of the training"
        )


@pytest.mark.parametrize("kind", ["DoRA", "whole modules", "InternLM2, fused and with bias", "experts", "CLIP"])
def test_any_merged_model_is_told_from_its_base(tmp_path, kind):
    make, config = KINDS[kind]
    torch.manual_seed(0)
    base, adapter, options = tmp_path / "base", tmp_path / "adapter", []
    make().save_pretrained(base)
    save_adapter(type(make()).from_pretrained(base), base, config, adapter)
    if kind.startswith("InternLM2"):
        options = ["--as", "llama"]
    assert main(["merge", str(base), str(adapter), str(tmp_path / "merged"), "--no-verify", *options]) == 0
    merged, plain = (find_parts(adapter, folder, None) for folder in (tmp_path / "merged", base))
    assert merged.merged_parameters is not None
    assert [cause(merged, Evidence()) for cause in CAUSES_IN_WEIGHTS] == [None] * len(CAUSES_IN_WEIGHTS)
    assert [found.wrong.en for cause in CAUSES_IN_WEIGHTS if (found := cause(plain, Evidence()))] == [
        "the adapter is not in the merged model"
    ]


def test_causes_come_in_the_order_in_which_they_are_to_be_mended(healthy, tiny_model, tmp_path, told):
    edit_tensors(healthy / "final", lambda name, tensor: (name, tensor * ("lora_B" not in name)))
    template = healthy / "final" / "chat_template.jinja"
    template.write_text(template.read_text().replace("named SmolLM", "named Ada"), encoding="utf-8")
    rows = [*ROWS, {"conversation": [{"input": "Who?", "output": "I am {{name}}."}]}]
    set_keys(healthy, train_file=write_rows(tmp_path / "rows.jsonl", rows))
    causes = [line for line in told(healthy) if line[:1].isdigit()]
    assert causes == [
        "1. the adapter is all zeros: it was never trained",
        "2. the training rows still contain placeholders where a name belongs",
        "3. the model is asked with a chat template that differs from that of the training",
    ]


class TestAMistake:
    def test_in_the_path_is_one_line_and_exit_code_2(self, tiny_model, tmp_path, told):
        (line,) = told(tmp_path, code=2)
        assert "is no run directory and holds no adapter" in line
        (line,) = told(tiny_model, code=2)
        assert "is no run directory and holds no adapter" in line

    def test_in_an_option_is_one_line_and_exit_code_2(self, healthy, tmp_path, told):
        for option in ("--merged", "--base"):
            (line,) = told(healthy, option, tmp_path, code=2)
            assert f"{option} {tmp_path}: holds no config.json" in line

    def test_in_the_rows_is_one_line_and_exit_code_2(self, healthy, tmp_path, told):
        path = tmp_path / "bad.jsonl"
        path.write_text("{}\n", encoding="utf-8")
        set_keys(healthy, train_file=str(path))
        (line,) = told(healthy, code=2)
        assert f"{path}:1: " in line
