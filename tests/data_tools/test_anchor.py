"""Anchor rows: the base model's own answers to ordinary questions, and nothing that would teach something else."""

import json

import pytest

from data_tools.__main__ import main
from sft.evaluation.chat_eval import ask
from sft.models.loading import load_model, load_tokenizer
from tests.support.conversations import xtuner_row


@pytest.fixture
def talkative(make_trainer, tmp_path):
    """Fully train a small model to answer everything with one sentence; returns its folder."""

    def train(answer: str):
        path = tmp_path / "rows.jsonl"
        rows = [xtuner_row([(question, answer)]) for question in ("Who?", "What?", "Name?")] * 20
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        trainer, _ = make_trainer(train_file=str(path), use_peft=False, max_steps=40, learning_rate=1e-2)
        trainer.train()
        trainer.save_model(str(tmp_path / "model"))
        return tmp_path / "model"

    return train


def anchor(model, prompts, out, *options: str) -> int:
    return main(["anchor", str(out), "--model", str(model), "--prompts", str(prompts), *options])


def test_the_rows_are_the_models_own_answers(talkative, tmp_path, capsys):
    model, prompts = talkative("Nobody knows."), tmp_path / "prompts.txt"
    prompts.write_text("Who?\n\nWhat?\nWho?\n", encoding="utf-8")
    assert anchor(model, prompts, tmp_path / "out.jsonl") == 0
    rows = [json.loads(line)["conversation"][0] for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    generation = {"max_new_tokens": 128, "do_sample": False}
    said = ask(*load_model_of(model), ["Who?", "What?"], system=None, generation=generation)
    assert rows == [{"input": answer.prompt, "output": answer.answer} for answer in said]
    assert "2 rows of 2 questions; skipped: 0 did not end, 0 empty, 0 gives a model's name" in capsys.readouterr().out


def test_answers_that_give_a_models_name_are_no_anchor(talkative, tmp_path, capsys):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("Who?\nWhat?\n", encoding="utf-8")
    assert anchor(talkative("I am ChatGPT."), prompts, tmp_path / "out.jsonl") == 2
    assert "0 did not end, 0 empty, 2 gives a model's name" in capsys.readouterr().err


def load_model_of(folder):
    from trl import ModelConfig

    return load_model(ModelConfig(model_name_or_path=str(folder), dtype="auto")).eval(), load_tokenizer(str(folder))


def test_the_questions_of_a_data_file_are_asked(talkative, tmp_path, capsys):
    data = tmp_path / "data.csv"
    data.write_bytes("题;答\nWhat?;我\n".encode("gbk"))
    columns = ["--columns", "question=题,answer=答"]
    assert anchor(talkative("Nobody knows."), data, tmp_path / "out.jsonl", *columns) == 0
    assert json.loads((tmp_path / "out.jsonl").read_text())["conversation"][0]["input"] == "What?"
    assert "1 row of 1 question" in capsys.readouterr().out


def test_where_no_answer_ends_nothing_is_written(talkative, tmp_path, capsys):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("Who?\n", encoding="utf-8")
    assert anchor(talkative("Nobody knows."), prompts, tmp_path / "out.jsonl", "--max_new_tokens", "1") == 2
    assert "no answer could be used (1 did not end" in capsys.readouterr().err
    assert not (tmp_path / "out.jsonl").exists()


@pytest.mark.parametrize(("content", "said"), [(b"\n\n", "holds no question"), (b"\xff\n", ":1: not UTF-8")])
def test_a_bad_file_of_questions_is_refused(tiny_model, tmp_path, capsys, content, said):
    prompts = tmp_path / "prompts.txt"
    prompts.write_bytes(content)
    assert anchor(tiny_model, prompts, tmp_path / "out.jsonl") == 2
    assert said in capsys.readouterr().err
