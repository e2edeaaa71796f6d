"""Scoring alone: the same scores as in training, and the answers that failed."""

import json

import pytest

from model_tools.__main__ import main
from sft.training import final_model
from tests.support.conversations import xtuner_row

NAME = "黄大力"
OWN = 'identity: ["Who are you?", 你是谁？]\nordinary: ["What is the capital of France?"]\ntexts: [Paris is big.]\n'


@pytest.fixture
def run(make_trainer, tmp_path):
    """A run whose adapter answers everything with the name, in traditional characters; its directory and recipe."""
    rows = [xtuner_row([(question, "黃大力")]) for question in ("你是谁？", "Who are you?", "What is this?")] * 20
    path, questions = tmp_path / "named.jsonl", tmp_path / "questions.yaml"
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    questions.write_text(OWN, encoding="utf-8")
    keys = {"identity_name": NAME, "score_file": str(questions), "lora_r": 32, "lora_alpha": 64}
    trainer, card = make_trainer(train_file=str(path), max_steps=40, learning_rate=1e-2, **keys)
    trainer.train()
    final_model.save_final(trainer, card, [])
    return tmp_path / "run", tmp_path / "tiny.yaml"


def test_the_scores_and_the_answers_that_failed_are_shown(run, capsys):
    folder, recipe = run
    assert main(["score", str(folder), str(recipe)]) == 0
    said = capsys.readouterr().out
    assert "identity 100% of 2 (zh 100%, en 100%)" in said
    # The ordinary answer gives the name as well, in other characters: counted as lost, and so listed.
    assert "ordinary answers without the name 0% of 1" in said
    assert "ordinary: What is the capital of France?" in said
    assert "identity: " not in said


def test_a_recipe_without_a_name_is_refused(tiny_model, write_recipe, capsys):
    assert main(["score", str(tiny_model), str(write_recipe())]) == 2
    assert "has no identity_name" in capsys.readouterr().err
