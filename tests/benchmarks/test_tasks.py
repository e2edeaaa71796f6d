"""What every program is asked to train is the same, in its own words; what a machine cannot train is refused."""

import argparse
from pathlib import Path

import pytest
import torch
import yaml
from trl import ModelConfig, ScriptArguments, SFTConfig, TrlParser

from benchmarks.peers import Here, Job, Trl
from benchmarks.train import add_task, task_of

ROWS = [[{"role": "user", "content": "你是谁？"}, {"role": "assistant", "content": "我是黄大力。"}]]


@pytest.fixture
def job(write_recipe, tmp_path):
    recipe = yaml.safe_load(write_recipe(truncation="drop", identity_name="黄大力", eval_prompts=["你好"]).read_text())
    return Job(recipe, ROWS, "cpu", steps=3, folder=tmp_path)


def test_trl_is_told_every_key_that_it_has(job):
    *_, config = Trl("trl sft", every_key=True).command(job)
    parser = TrlParser((ScriptArguments, SFTConfig, ModelConfig))
    script, training, model = parser.parse_args_and_config(["--config", config])
    assert (training.max_steps, training.max_length, training.packing, training.use_cpu) == (3, 256, True, True)
    assert (model.lora_r, model.dtype) == (job.recipe["lora_r"], "float32")
    assert (job.folder / "trl" / "train.jsonl").parent == Path(script.dataset_name)


def test_what_is_left_to_trl_is_not_said(job):
    *_, config = Trl("trl sft", every_key=False).command(job)
    said = yaml.safe_load(Path(config).read_text(encoding="utf-8"))
    assert {"lora_r", "max_length"} < said.keys()
    assert not {"dtype", "bf16", "activation_checkpointing", "truncation", "identity_name"} & said.keys()


def test_a_change_is_a_key_of_the_recipe_or_in_capitals_a_variable(job):
    changed = Here("changed", lora_r=4, OMP_NUM_THREADS="1")
    *_, recipe = changed.command(job)
    said = yaml.safe_load(Path(recipe).read_text(encoding="utf-8"))
    assert (said["lora_r"], said["max_steps"], changed.variables) == (4, 3, {"OMP_NUM_THREADS": "1"})
    assert not {"identity_name", "eval_prompts", "OMP_NUM_THREADS"} & said.keys()


@pytest.mark.parametrize(
    ("words", "said"),
    [(["--device", "cuda"], "finds no GPU here"), (["--device", "cpu", "--model", "internlm2_5_7b"], "--device cuda")],
)
def test_what_this_machine_cannot_train_is_refused(monkeypatch, capsys, words, said):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    parser = argparse.ArgumentParser()
    add_task(parser)
    with pytest.raises(SystemExit) as end:
        task_of(parser, parser.parse_args(words))
    assert end.value.code == 2
    assert said in capsys.readouterr().err
