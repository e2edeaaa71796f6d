"""What a model is asked in its other forms: what its own run asked, wherever that is found."""

import json

import pytest

from model_tools.checkpoints.asked import QUESTIONS, Asked, asked_of
from model_tools.gguf import _made_of
from sft.core.errors import UserError

RECIPE = "eval_prompts: [a, b]\neval_prompts_system: Be brief.\nidentity_name: 黄大力\n"


@pytest.fixture
def final(tmp_path):
    """The last folder of a run."""
    (tmp_path / "run" / "final").mkdir(parents=True)
    (tmp_path / "run" / "recipe.yaml").write_text(RECIPE, encoding="utf-8")
    return tmp_path / "run" / "final"


def test_what_comes_from_no_run_is_asked_the_tutorials_questions_under_its_own_system_message(tmp_path):
    assert asked_of([tmp_path]) == Asked(list(QUESTIONS))
    (tmp_path / "system_message.txt").write_text("Be kind.")
    assert asked_of([tmp_path]) == Asked(list(QUESTIONS), "Be kind.")
    assert asked_of([tmp_path]).conversations[0] == [
        {"role": "system", "content": "Be kind."}, {"role": "user", "content": QUESTIONS[0]},
    ]  # fmt: skip


def test_a_run_says_what_it_asked_and_which_name_it_taught(final, monkeypatch):
    assert asked_of([final]) == asked_of([final.parent]) == Asked(["a", "b"], "Be brief.", "黄大力")
    monkeypatch.chdir(final)
    assert asked_of([final.relative_to(final)]).questions == ["a", "b"]


def test_the_first_run_that_asked_anything_is_taken(final, tmp_path):
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "recipe.yaml").write_text("learning_rate: 1.0e-4\n")
    assert asked_of([tmp_path / "other", final]).questions == ["a", "b"]


def test_a_merged_model_leads_to_the_runs_of_its_adapters(final, tmp_path):
    assert _made_of(tmp_path) == [tmp_path]
    (tmp_path / "merge.json").write_text(json.dumps({"base": "x", "adapters": [{"path": str(final), "weight": 1.0}]}))
    assert asked_of(_made_of(tmp_path)).name == "黄大力"


def test_a_damaged_recipe_is_named(final):
    (final.parent / "recipe.yaml").write_text("eval_prompts: [")
    with pytest.raises(UserError, match=r"recipe.yaml: cannot be read"):
        asked_of([final])
