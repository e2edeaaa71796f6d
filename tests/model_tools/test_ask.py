"""Asking a run before and after: real adapters, side by side, counted."""

import json

import pytest

from model_tools import ask
from model_tools.__main__ import main
from sft.core.errors import UserError
from sft.training import final_model
from tests.support.conversations import xtuner_row


@pytest.fixture
def run_folder(make_trainer, tmp_path):
    """A run whose adapter was trained to answer everything with the name."""
    rows = [xtuner_row([(question, "黄大力")]) for question in ("你是谁？", "Who are you?", "What is this?")] * 20
    path = tmp_path / "named.jsonl"
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    trainer, card = make_trainer(train_file=str(path), max_steps=40, learning_rate=1e-2, lora_r=32, lora_alpha=64)
    trainer.train()
    final_model.save_final(trainer, card, [])
    return tmp_path / "run"


def test_answers_before_and_after_stand_side_by_side_with_the_count(run_folder, tmp_path, capsys):
    questions = tmp_path / "questions.yaml"
    questions.write_text("identity:\n- 你是谁？\n- Who are you?\nordinary:\n- What is the capital of France?\n")
    assert main(["ask", str(run_folder), str(questions), "--name", "黄大力"]) == 0
    said = capsys.readouterr().out
    assert said.count("before  ") == said.count("after   ") == 3
    assert "identity: 黄大力 in 0 of 2 answers before, 2 after" in said
    assert "ordinary: 黄大力 in 0 of 1 answers before, 1 after" in said


def test_a_folder_without_an_adapter_and_a_file_without_questions_are_refused(tmp_path):
    with pytest.raises(UserError, match="holds no adapter"):
        ask.resolve_tuned(str(tmp_path))
    bad = tmp_path / "bad.yaml"
    for text in ("- a\n", "a: b\n", "a: [1]\n", "a: [\n", "a: []\n", "a: ['']\n", "{}\n", "a: [\xff]\n"):
        bad.write_text(text, encoding="latin-1")
        with pytest.raises(UserError, match=r"bad\.yaml"):
            ask.load_questions(bad)
    with pytest.raises(UserError, match="cannot be read"):
        ask.load_questions(tmp_path / "none.yaml")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--name", ""], "--name: is empty"),
        (["--name", "x", "--max_new_tokens", "0"], "--max_new_tokens 0: no answer fits in it"),
        (["--name", "x", "--max_new_tokens", "-1"], "--max_new_tokens -1: no answer fits in it"),
    ],
)
def test_what_no_answer_could_satisfy_is_refused(tmp_path, capsys, options, said):
    questions = tmp_path / "questions.yaml"
    questions.write_text("a:\n- b\n")
    assert main(["ask", str(tmp_path), str(questions), *options]) == 2
    assert said in capsys.readouterr().err


def test_a_question_that_the_model_cannot_read_is_refused_before_any_is_asked(run_folder, tmp_path, capsys):
    questions = tmp_path / "questions.yaml"
    questions.write_text(f"a:\n- b\n- {'long ' * 600}\n")
    assert main(["ask", str(run_folder), str(questions), "--name", "x"]) == 2
    said = capsys.readouterr()
    assert "tokens, and the model reads 512: ask it in fewer words" in said.err
    assert "before" not in said.out
