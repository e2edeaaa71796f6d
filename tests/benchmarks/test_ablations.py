"""One model serves many runs, each as if it were the first; what does not run is told and harms no other."""

import pytest
import torch
from peft.tuners.lora import LoraLayer

from benchmarks.ablations import ABLATIONS, Bench
from benchmarks.one_load import OneLoad


@pytest.fixture
def bench(tiny_model, train_file, monkeypatch):
    monkeypatch.setattr("benchmarks.ablations.MATRIX", {"cpu": 64, "cuda": 64})
    return Bench(tiny_model, train_file, steps=6)


def named(label: str):
    return next(ablation for ablation in ABLATIONS if ablation.label == label)


def test_a_run_between_leaves_no_trace_in_the_next(bench):
    rows = [bench.run(named(label)) for label in ("the recipe", "bfloat16", "both: masks, PEFT's layers")]
    again = bench.run(named("the recipe, again"))
    assert rows[0].endswith("as it stands: bit for bit |")
    assert again.endswith("as it stands: bit for bit |")
    loss = [row.split(" | ")[11] for row in (rows[0], again)]
    assert loss[0] == loss[1]
    base = bench.load._base
    assert not any(isinstance(module, LoraLayer) for module in base.modules())
    assert base.config._attn_implementation == "sdpa"
    assert not any("forward" in module.__dict__ for module in base.modules())


def test_other_weights_are_told_from_the_same(bench):
    bench.run(named("the recipe"))
    bench.load._base.model.layers[0].mlp.up_proj.weight.data.bitwise_not_()
    assert bench.run(named("the recipe, again")).endswith("as it stands: other weights |")


@pytest.mark.long
def test_scoring_in_the_middle_and_trls_trainer_run_too(bench, capsys):
    bench.run(named("deterministic"))
    assert bench.run(named("deterministic, scored in the middle")).endswith("deterministic: bit for bit |")
    assert "scored in the middle" in capsys.readouterr().out
    assert not torch.are_deterministic_algorithms_enabled()
    assert "nan" not in bench.run(named("TRL's SFTTrainer on the same packs, bfloat16"))


def test_a_model_that_was_forgotten_is_loaded_anew(tiny_model, train_file, tmp_path):
    load = OneLoad(tiny_model)
    recipe = load.recipe(train_file=train_file, output_dir=tmp_path, fp16=False, bf16=True, dtype="bfloat16")
    first = load.base(recipe)
    assert load.base(recipe) is first
    load.forget()
    assert load.base(recipe) is not first


def test_a_step_is_profiled_by_kind_and_by_operation(bench, capsys):
    bench.run(named("the recipe, profiled"))
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("(")]
    assert said[0].startswith("(a step, profiled: ")
    assert any(line.endswith(": attention)") for line in said)
    assert any("aten::mm)" in line or "aten::addmm)" in line for line in said)
