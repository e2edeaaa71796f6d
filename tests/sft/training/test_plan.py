"""The plan says what the run then does: when it evaluates and saves, what it trains, how much it writes."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from transformers import MixtralConfig
from transformers.integrations.deepspeed import HfTrainerDeepSpeedConfig

from sft.config.load import load_recipe
from sft.core.errors import UserError
from sft.data.dataset import load_dataset
from sft.evaluation.chat_eval import ChatEval
from sft.models.loading import load_tokenizer
from sft.runs.run_files import ANSWERS
from sft.training.cpu import check_speed
from sft.training.gpu import suggest_changes
from sft.training.memory import GIB, predict_memory
from sft.training.plan import check_memory, check_output, make_plan
from tests.support.both_languages import english
from tests.support.shapes import SMOLLM2


@pytest.fixture
def plan_of(write_recipe):
    def plan_of(**keys):
        recipe = load_recipe([str(write_recipe(**keys))])
        _, card = load_dataset(recipe, load_tokenizer(recipe.model.model_name_or_path))
        return recipe, card, make_plan(recipe, card)

    return plan_of


QUANTISED = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "use_bnb_nested_quant": True}
SCHEDULES = [
    {"max_steps": 7, "save_strategy": "steps", "save_steps": 3, "eval_prompts_steps": 2},
    {"max_steps": 7, "save_strategy": "steps", "save_steps": 0.3, "eval_prompts_steps": 0},
    {"max_steps": 6, "save_strategy": "steps", "save_steps": 3, "eval_prompts_steps": 6},
    {"max_steps": -1, "num_train_epochs": 1.5, "save_strategy": "epoch", "eval_prompts_steps": 3},
    {"max_steps": 3, "save_strategy": "no", "eval_prompts_steps": 10},
]


@pytest.mark.parametrize("keys", SCHEDULES)
def test_a_run_evaluates_and_saves_when_the_plan_says(make_trainer, keys):
    keys |= {"eval_prompts": ["Who are you?"], "eval_prompts_generation": {"max_new_tokens": 2}}
    trainer, card = make_trainer(**keys)
    plan = make_plan(trainer.recipe, card)
    trainer.add_callback(ChatEval(trainer))
    trainer.train()
    folder = Path(trainer.args.output_dir)
    answers = [json.loads(line)["step"] for line in (folder / ANSWERS).read_text().splitlines()]
    assert plan.evaluations == answers
    assert plan.saves == sorted(int(path.name.split("-")[1]) for path in folder.glob("checkpoint-*"))
    assert plan.total_steps == trainer.state.global_step


def test_the_held_out_loss_is_planned_as_it_is_logged(make_trainer, train_file):
    keys = {"eval_file": str(train_file), "eval_strategy": "steps", "eval_steps": 0.4, "max_steps": 6}
    trainer, card = make_trainer(**keys)
    plan = make_plan(trainer.recipe, card)
    trainer.train()
    assert plan.held_out == [entry["step"] for entry in trainer.state.log_history if "eval_loss" in entry]
    assert plan.held_out == [3, 6]
    assert "held-out loss  2, at step 3, 6" in plan.lines()


@pytest.mark.parametrize(
    "keys",
    [{"lora_r": 64}, {"lora_r": 64, "save_only_model": True}, {"lora_r": 64, "optim": "sgd"}, {"use_peft": False}],
)
def test_a_checkpoint_takes_what_the_plan_says(make_trainer, keys):
    trainer, card = make_trainer(save_strategy="steps", save_steps=1, max_steps=1, **keys)
    plan = make_plan(trainer.recipe, card)
    trainer.train()
    folder = Path(trainer.args.output_dir) / "checkpoint-1"
    written = sum(
        path.stat().st_size for path in folder.iterdir() if path.name.endswith(("model.safetensors", "er.pt"))
    )
    # Names, shapes and a pickle's frame come on top.
    assert plan.disk.checkpoint <= written <= plan.disk.checkpoint + 50_000
    assert plan.disk.checkpoint > 100_000
    weights = next(folder.glob("*model.safetensors")).stat().st_size
    assert plan.disk.final <= weights <= plan.disk.final + 10_000


def test_a_checkpoint_of_deepspeed_has_masters_and_states(plan_of, tmp_path):
    """Of recipes/demo.yaml in float32, 2026-11-28: adapter_model.safetensors, model states, optimizer states."""
    (tmp_path / "config.json").write_text(json.dumps(SMOLLM2))
    recipe, card, _ = plan_of(**QUANTISED, lora_r=64, save_strategy="steps")
    recipe.model.model_name_or_path, recipe.training.deepspeed = str(tmp_path), "ds_configs/zero2.json"
    # As parsing the recipe would, which would open a process group as well.
    recipe.training.hf_deepspeed_config = HfTrainerDeepSpeedConfig(recipe.training.deepspeed)
    recipe.training.hf_deepspeed_config.trainer_config_process(recipe.training)
    plan = make_plan(recipe, card)
    assert (plan.trainable, plan.parameters) == (19_537_920, 154_052_928)
    assert plan.disk.checkpoint == pytest.approx(78_207_176 + 194_039_259 + 234_505_555, rel=0.005)
    assert plan.disk.final == pytest.approx(78_207_176, rel=0.005)


@pytest.mark.parametrize(
    ("limit", "best", "said"),
    [
        (1, None, "20; the newest stays"),
        (2, None, "20; the newest 2 stay"),
        (None, None, "20"),
        (-1, None, "20"),
        (1, "identity", "20; each best by identity besides; the newest and the best stay"),
        (3, "balance", "20; each best by balance besides; 3 stay, the newest and the best among them"),
        (None, "identity", "20; each best by identity besides"),
    ],
)
def test_the_plan_says_which_checkpoints_stay(plan_of, limit, best, said):
    keys = {"save_strategy": "steps", "save_steps": 10, "max_steps": 20, "save_total_limit": limit}
    _, _, plan = plan_of(**keys, eval_prompts_steps=2, identity_name="Dali", keep_best=best)
    assert plan.lines()[1] == f"checkpoints    2, at step 10, {said}"


def test_what_rotation_keeps_and_the_one_being_written_are_on_the_disk_at_once(plan_of):
    keys = {"save_strategy": "steps", "save_steps": 1, "max_steps": 6}
    at_once = {limit: plan_of(**keys, save_total_limit=limit)[2].disk.at_once for limit in (1, 2, 5, 6, None)}
    assert at_once == {1: 2, 2: 3, 5: 6, 6: 6, None: 6}
    best = {"keep_best": "identity", "identity_name": "Dali", "eval_prompts_steps": 3}
    at_once = {limit: plan_of(**keys, **best, save_total_limit=limit)[2].disk.at_once for limit in (1, 2, None)}
    assert at_once == {1: 3, 2: 3, None: 6}
    disk = plan_of(**keys, save_total_limit=2)[2].disk
    assert disk.peak == 3 * disk.checkpoint + disk.final
    assert disk.least == disk.checkpoint + disk.final
    assert plan_of(save_strategy="no")[2].disk.least == disk.final


def test_what_it_says(plan_of):
    keys = {"save_strategy": "steps", "save_steps": 2, "save_total_limit": 2, "eval_prompts": ["Hi?"]}
    _, card, plan = plan_of(**keys, max_steps=20)
    lines = plan.lines()
    assert lines[:2] == [
        "evaluation     2, at step 0, 20",
        "checkpoints    10, at step 2, 4, 6, ..., 20; the newest 2 stay",
    ]
    assert lines[2].startswith(f"to train       {plan.trainable:,} of {plan.parameters:,} parameters (")
    assert lines[3] == "precision      float32"
    assert lines[4].startswith("memory         ")
    assert lines[5].startswith("disk           ")
    assert "at most (3 checkpoints of" in lines[5]
    said = plan.to_dict()
    assert json.loads(json.dumps(said)) == said
    assert (said["samples"], said["packs"], said["total_steps"]) == (card.samples, card.packs, 20)
    quiet = plan_of(save_strategy="no")[2].lines()
    assert quiet[:2] == ["evaluation     none", "checkpoints    none"]


def test_a_disk_too_full_is_refused_and_a_tight_one_is_told(plan_of):
    recipe, _, plan = plan_of(save_strategy="steps", save_steps=1, save_total_limit=2, output_dir="work_dirs/none")
    assert check_output(recipe, plan) == []
    at = {free: replace(plan, disk=replace(plan.disk, free=free)) for free in (plan.disk.least - 1, plan.disk.least)}
    with pytest.raises(UserError, match=r"output_dir: work_dirs/none: .* are free, and one checkpoint .* make room"):
        check_output(recipe, at[plan.disk.least - 1])
    [tight] = english(check_output(recipe, at[plan.disk.least]))
    assert tight.wrong.startswith("work_dirs/none: the run writes up to ")
    assert "save_total_limit" in tight.do
    assert check_output(recipe, replace(plan, disk=replace(plan.disk, free=plan.disk.peak))) == []


def test_an_output_folder_that_cannot_be_written_is_refused(plan_of, tmp_path):
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file" / "run", Path("/proc/run")):
        recipe, _, plan = plan_of(output_dir=str(folder))
        with pytest.raises(UserError, match=f"output_dir: {folder}: cannot be written"):
            check_output(recipe, plan)


def test_an_optimizer_that_is_slow_on_a_cpu_is_told(plan_of):
    assert check_speed(plan_of()[0]) == []
    [slow] = english(check_speed(plan_of(optim="paged_adamw_8bit")[0]))
    assert slow.wrong == "optim: paged_adamw_8bit takes about 0.1 s a step for every weight matrix on a CPU"
    assert slow.do == "set optim: adamw_torch_fused"


def test_nothing_is_made_where_the_run_will_write(plan_of, tmp_path):
    recipe, _, plan = plan_of(output_dir=str(tmp_path / "a" / "b"))
    check_output(recipe, plan)
    assert plan.disk.folder == str(tmp_path)
    assert not (tmp_path / "a").exists()


def test_too_little_memory_is_told_and_on_a_gpu_what_to_change(plan_of):
    recipe, card, plan = plan_of()
    assert check_memory(recipe, card, plan, plan.memory.peak) == []
    [short] = english(check_memory(recipe, card, plan, plan.memory.peak - 1))
    assert "of RAM, and" in short.wrong
    assert "max_length" in short.do
    on_gpu = replace(plan, memory=predict_memory(recipe, card, on_gpu=True))
    [short] = english(check_memory(recipe, card, on_gpu, GIB // 2))
    assert "of GPU memory" in short.wrong
    assert short.evidence[0].startswith("--activation_checkpointing true: ")
    assert short.evidence[-1].endswith("not enough yet")
    assert short.do == "use a GPU with more memory, or a smaller model"
    least = suggest_changes(recipe, card, GIB // 2)[0].peak
    [short] = english(check_memory(recipe, card, on_gpu, round(least / 0.9) + 1))
    assert short.do == "apply these changes one after the other until it fits"
    assert not short.evidence[-1].endswith("not enough yet")
    # What fits to the byte does not fit: an allocator keeps some of it in pieces.
    [short] = english(check_memory(recipe, card, on_gpu, round(on_gpu.memory.peak * 1.05)))
    assert "a tenth of which may lie in pieces" in short.wrong
    assert check_memory(recipe, card, on_gpu, round(on_gpu.memory.peak * 1.12)) == []


def test_an_architecture_that_cannot_be_counted_still_has_a_plan(plan_of, tiny_model, tmp_path):
    for file in tiny_model.glob("token*"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "chat_template.jinja").write_text((tiny_model / "chat_template.jinja").read_text())
    MixtralConfig(
        vocab_size=400, hidden_size=64, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, num_local_experts=2,
    ).save_pretrained(tmp_path)  # fmt: skip
    keys = {"lora_dropout": 0, "lora_target_modules": ["q_proj", "v_proj"], "output_dir": str(tmp_path / "run")}
    recipe, card, plan = plan_of(model_name_or_path=str(tmp_path), **keys)
    assert plan.memory is None
    assert "memory         not predicted for this architecture" in plan.lines()
    assert check_memory(recipe, card, plan, 0) == []
