"""The plan of a sweep: every point is read as a recipe, and what decides how it comes out is known."""

import os
import shutil

import pytest

from sft.core.errors import UserError
from sft.sweeps import planning
from sft.sweeps.grid import SweepPlan, read_grid


@pytest.fixture
def plan(write_recipe):
    """Plan a sweep of the tiny recipe, in this process."""

    def make(*words: str, seeds: int = 1, **keys) -> SweepPlan:
        return planning.plan_here(str(write_recipe(**keys)), read_grid(list(words)), seeds)

    return make


def inputs(plan: SweepPlan) -> dict:
    (point,) = plan.points
    return point.inputs


def test_a_plan_made_in_a_process_of_its_own_is_the_plan_made_here(write_recipe):
    recipe, grid = str(write_recipe(deepspeed="ds_configs/zero2.json")), read_grid(["lora_r=4,8", "lora_alpha=0.5x"])
    apart = planning.plan_sweep(recipe, grid, 2)
    assert [point.name for point in apart.points] == [
        "lora_r=4,lora_alpha=2",
        "lora_r=4,lora_alpha=2,seed=43",
        "lora_r=8,lora_alpha=4",
        "lora_r=8,lora_alpha=4,seed=43",
    ]
    assert {point.group for point in apart.points} == {"lora_r=4,lora_alpha=2", "lora_r=8,lora_alpha=4"}
    assert [point.rank for point in apart.points] == [4, 4, 8, 8]
    before = dict(os.environ)
    assert apart.points == planning.plan_here(recipe, grid, 2).points
    assert dict(os.environ) == before


def test_comments_and_the_way_a_setting_is_given_change_nothing(plan, tmp_path):
    by_grid = inputs(plan("lora_r=4"))
    by_recipe = inputs(plan("lora_r=4", lora_r=4, output_dir=str(tmp_path / "elsewhere")))
    assert by_grid == by_recipe


def test_data_are_known_by_what_is_in_them_and_not_by_their_name(plan, train_file, tmp_path):
    copy = tmp_path / "copy.jsonl"
    shutil.copy(train_file, copy)
    before = inputs(plan("lora_r=4"))
    assert inputs(plan("lora_r=4", train_file=str(copy))) == before
    copy.write_text(copy.read_text(encoding="utf-8") * 2, encoding="utf-8")
    after = inputs(plan("lora_r=4", train_file=str(copy)))
    assert {key for key in before if before[key] != after[key]} == {"train_file"}


def test_a_model_is_known_by_its_weights_and_its_texts(plan, tiny_model, tmp_path):
    copy = tmp_path / "model"
    shutil.copytree(tiny_model, copy)
    before = inputs(plan("lora_r=4"))
    assert inputs(plan("lora_r=4", model_name_or_path=str(copy))) == before
    (copy / "chat_template.jinja").write_text("changed")
    after = inputs(plan("lora_r=4", model_name_or_path=str(copy)))
    assert {key for key in before if before[key] != after[key]} == {"model_name_or_path"}


def test_the_questions_of_the_score_belong_to_what_decides(plan):
    assert "score_file" not in inputs(plan("lora_r=4"))
    assert len(inputs(plan("lora_r=4", identity_name="黄大力"))["score_file"]) == 64


def test_no_secret_is_written_down(plan):
    assert "hub_token" not in inputs(plan("lora_r=4", push_to_hub=True, hub_token="secret"))


def test_questions_that_cannot_be_read_are_told_before_any_point_runs(plan, tmp_path):
    (tmp_path / "questions.yaml").write_text("identity: [Who?, Which?")
    with pytest.raises(UserError, match=r"questions.yaml:1: not YAML"):
        plan("lora_r=4", identity_name="黄大力", score_file=str(tmp_path / "questions.yaml"))


@pytest.mark.parametrize(
    ("words", "keys", "told"),
    [
        (["lora_rr=8,16"], {}, "lora_rr: no such setting; did you mean lora_r?"),
        (["learning_rate=1e-4,high"], {}, "learning_rate: invalid float value: 'high'"),
        (["lora_r=8,0"], {}, "lora_r: 0 is not a whole number of at least 1"),
        (["lora_r=8"], {"use_peft": False}, "lora_r: the recipe trains no adapter"),
        (["train_file=none.jsonl"], {}, "none.jsonl: no such file"),
        (["score_file=none.yaml"], {"identity_name": "黄大力"}, "none.yaml: no such file"),
    ],
)
def test_a_mistake_in_any_point_is_told_before_any_runs(plan, words, keys, told):
    with pytest.raises(UserError, match=r"^[^\n]+$") as problem:
        plan(*words, **keys)
    assert told in str(problem.value)
