"""The trainer's promises: XTuner's schedule, a rate that rises on tiny data, an adapter in full precision."""

import copy
import json
import math

import pytest
import torch
from safetensors.torch import load_file
from transformers import TrainerCallback

from sft.training.trainer import whole_warmup_steps

PEAK = 2e-4


def xtuner_rate(step: int, epoch_steps: int) -> float:
    """XTuner's LinearLR from 1e-5 of the peak, then CosineAnnealingLR to 0, both counted in steps from 0."""
    warmup, total = int(0.09 * epoch_steps), 3 * epoch_steps
    if step < warmup:
        return PEAK * (1e-5 + (1 - 1e-5) * step / (warmup - 1))
    return PEAK * (1 + math.cos(math.pi * (step - warmup) / (total - warmup))) / 2


def trainers_rates(trainer, total: int) -> list[float]:
    """The learning rate of every step, from the trainer's own optimizer and scheduler."""
    trainer.create_optimizer_and_scheduler(num_training_steps=total)
    rates = []
    for _ in range(total):
        rates.append(trainer.optimizer.param_groups[0]["lr"])
        trainer.optimizer.step()
        trainer.lr_scheduler.step()
    return rates


@pytest.mark.parametrize("epoch_steps", [37, 100, 539, 700])
def test_the_rate_of_every_step_is_xtuners_within_one_step(make_trainer, epoch_steps):
    trainer, _ = make_trainer(learning_rate=PEAK)
    total = 3 * epoch_steps
    ours = trainers_rates(trainer, total)
    theirs = [xtuner_rate(step, epoch_steps) for step in range(total)]
    for step, rate in enumerate(ours):
        nearby = theirs[max(step - 1, 0) : step + 2]
        tolerance = 1e-5 * PEAK  # XTuner starts at 1e-5 of the peak, Transformers at 0
        assert min(nearby) - tolerance <= rate <= max(nearby) + tolerance, f"step {step}"
    assert max(ours) == PEAK


class RateRecorder(TrainerCallback):
    def __init__(self):
        self.rates = []

    def on_pre_optimizer_step(self, args, state, control, optimizer=None, **_):
        self.rates.append(optimizer.param_groups[0]["lr"])


@pytest.mark.parametrize("steps", [1, 2, 20, 29])
def test_a_run_of_fewer_than_thirty_steps_reaches_the_full_rate(make_trainer, steps):
    trainer, _ = make_trainer(learning_rate=PEAK, max_steps=steps)
    recorder = RateRecorder()
    trainer.add_callback(recorder)
    trainer.train()
    assert len(recorder.rates) == steps
    assert recorder.rates[0] == max(recorder.rates) == PEAK


@pytest.mark.parametrize(("ratio", "total", "steps"), [(0.03, 100, 3), (0.03, 1617, 48), (0.03, 29, 0), (0.1, 30, 3)])
def test_a_warmup_ratio_becomes_whole_steps_rounded_down(ratio, total, steps):
    assert whole_warmup_steps(ratio, total) == steps


def test_the_adapter_of_a_quantised_model_is_trained_in_float32(make_trainer):
    trainer, _ = make_trainer(load_in_4bit=True, dtype="bfloat16", bf16=True, max_steps=2)
    trainable = {name: value for name, value in trainer.model.named_parameters() if value.requires_grad}
    before = {name: value.detach().clone() for name, value in trainable.items()}
    trainer.train()
    assert {value.dtype for value in trainable.values()} == {torch.float32}
    assert any(not torch.equal(before[name], trainable[name]) for name in trainable)


def test_full_fine_tuning_and_8bit_lora_train_by_recipe(make_trainer):
    for keys in ({"use_peft": False}, {"load_in_8bit": True}):
        trainer, _ = make_trainer(max_steps=2, **keys)
        before = [value.detach().clone() for value in trainer.model.parameters() if value.requires_grad]
        trainer.train()
        after = [value for value in trainer.model.parameters() if value.requires_grad]
        assert any(not torch.equal(old, new) for old, new in zip(before, after, strict=True))


@pytest.mark.parametrize("engine", [{}, {"deepspeed": "ds_configs/zero2.json"}], ids=["alone", "deepspeed"])
def test_frozen_weights_are_what_was_loaded_and_are_not_copied_to_save_an_adapter(runs, write_recipe, tmp_path, engine):
    keys = {"load_in_4bit": True, "use_bnb_nested_quant": True, "bf16": True, "dtype": "bfloat16", "max_steps": 2}
    recipe = write_recipe(**keys, **engine, lora_r=2, bnb_4bit_quant_storage="bfloat16")
    # In a process of its own: what DeepSpeed opens in one stays open.
    ended = runs.run([recipe], tmp_path / "run", main="tests.support.trained_and_saved")
    assert ended.codes == [0], ended.err[-3000:]
    frozen = json.loads(ended.out.splitlines()[-1])
    assert frozen["changed"] == frozen["not_saved"] == []
    assert frozen["allocated"] < frozen["bytes"] / 4


def test_under_deepspeed_all_that_was_trained_beside_lora_is_saved(runs, write_recipe, tmp_path):
    keys = {"deepspeed": "ds_configs/zero2.json", "lora_modules_to_save": ["lm_head"], "use_dora": True, "max_steps": 2}
    ended = runs.run([write_recipe(**keys)], tmp_path / "run", main="tests.support.trained_and_saved")
    assert ended.codes == [0], ended.err[-3000:]
    assert json.loads(ended.out.splitlines()[-1])["not_saved"] == []
    names = load_file(tmp_path / "run/saved/adapter_model.safetensors").keys()
    assert all(any(part in name for name in names) for part in ("lora_magnitude_vector", "lm_head", "lora_B"))


def test_training_leaves_the_recipe_as_it_was(make_trainer):
    keys = {"warmup_steps": 0.5, "save_total_limit": 1, "save_strategy": "steps", "save_steps": 2}
    checkpointing = {"activation_checkpointing": True, "activation_checkpointing_kwargs": {"use_reentrant": False}}
    trainer, _ = make_trainer(**keys, **checkpointing)
    assert trainer.args.dataset_kwargs == {"skip_prepare_dataset": True}
    assert trainer.recipe.training.dataset_kwargs is None
    groups = (trainer.recipe.run, trainer.recipe.model, trainer.recipe.training)
    before = [plain_values(group) for group in groups]
    trainer.train()
    assert trainer.args.warmup_steps == 2
    assert [plain_values(group) for group in groups] == before
    assert trainer.recipe.training.warmup_steps == 0.5


def plain_values(settings) -> dict:
    """A copy of every setting that is plain data."""
    kinds = (int, float, str, list, dict, type(None))
    return {key: copy.deepcopy(value) for key, value in vars(settings).items() if isinstance(value, kinds)}
