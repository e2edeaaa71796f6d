"""The generated self-cognition set: deterministic, balanced, varied, and blind to the held-out questions."""

import json
import subprocess
import sys

import pytest

from data_tools.__main__ import main
from data_tools.errors import UserError
from data_tools.formats import read_rows
from data_tools.generate import generate, held_out_questions, normalise, write

NAME = "黄大力"


def turns(rows):
    return [(turn["input"], turn["output"]) for row in rows for turn in row["conversation"]]


def last_turns(rows):
    return [(row["conversation"][-1]["input"], row["conversation"][-1]["output"]) for row in rows]


def test_the_same_arguments_write_the_same_bytes_and_another_seed_others(tmp_path):
    for out, seed, hash_seed in (("a", "0", "1"), ("b", "0", "2"), ("c", "1", "1")):
        command = [sys.executable, "-m", "data_tools", "generate", "--name", NAME, "--rows", "300", "--seed", seed]
        subprocess.run(
            [*command, tmp_path / out], check=True, env={"PYTHONHASHSEED": hash_seed}, stdout=subprocess.DEVNULL
        )
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert (tmp_path / "a").read_bytes() != (tmp_path / "c").read_bytes()


@pytest.mark.parametrize(("rows", "ordinary"), [(1500, 0.5), (101, 0.3), (40, 0.0), (40, 1.0)])
def test_counts_add_up_and_every_identity_answer_and_no_ordinary_one_gives_the_name(rows, ordinary):
    made = generate(NAME, None, rows, 0, ordinary)
    named = sum(NAME in answer for _, answer in last_turns(made))
    assert len(made) == rows
    assert named == rows - round(rows * ordinary)
    assert not any(NAME in question for question, _ in turns(made))


def test_a_name_that_the_bank_holds_too_is_neither_denied_nor_given_in_ordinary_answers():
    for name in ("Claude", "Paris"):
        made = generate(name, None, 1000, 0, 0.5)
        assert sum(name in answer for _, answer in last_turns(made)) == 500
        assert not any(
            answer.startswith(("No", "不")) and f"you {name}" in question for question, answer in turns(made)
        )


def test_there_are_at_least_150_distinct_identity_questions_in_two_languages():
    made = generate(NAME, None, 1500, 0, 0.5)
    questions = {question for question, answer in turns(made) if NAME in answer}
    chinese = sum(not question.isascii() for question, _ in last_turns(made))
    assert len({normalise(question) for question in questions}) >= 150
    assert chinese == 900
    assert len({answer for _, answer in turns(made) if NAME in answer}) >= 40


def test_questions_and_answers_speak_one_language():
    for question, answer in turns(generate("Elena", None, 1500, 0, 0.5)):
        if not answer.isascii():
            assert not question.isascii()


def test_no_row_stands_twice():
    made = [json.dumps(row, ensure_ascii=False) for row in generate(NAME, None, 5000, 0, 0.5)]
    assert len(set(made)) == 5000


@pytest.mark.parametrize("seed", range(5))
def test_held_out_questions_are_never_asked(seed):
    held_out = {normalise(question) for questions in held_out_questions().values() for question in questions}
    assert len(held_out) == 20
    assert not held_out & {normalise(question) for question, _ in turns(generate(NAME, None, 5000, seed, 0.5))}


def test_a_question_that_is_held_out_but_for_case_and_punctuation_counts_as_the_same():
    assert normalise("Are you  ChatGPT?!") == normalise("are you chatgpt")
    assert normalise("你是谁？") == normalise("你是谁")
    assert normalise("你是谁") != normalise("他是谁")


def test_the_author_is_named_where_one_is_given():
    with_author = generate(NAME, "Jane Roe", 600, 0, 0.0)
    assert sum("Jane Roe" in answer for _, answer in turns(with_author)) > 60
    assert not any("Jane Roe" in answer for _, answer in turns(generate(NAME, None, 600, 0, 0.0)))


def test_a_name_with_braces_or_quotes_is_written_as_it_is(tmp_path):
    name = 'A{0}"\\é'
    write(tmp_path / "out.jsonl", generate(name, None, 50, 0, 0.0))
    rows = [row for _, row in read_rows(tmp_path / "out.jsonl")]
    assert all(name in row["messages"][-1]["content"] for row in rows)


def test_some_rows_ask_for_the_name_after_an_ordinary_turn():
    several = [row["conversation"] for row in generate(NAME, None, 400, 0, 0.5) if len(row["conversation"]) > 1]
    assert len(several) >= 20
    assert all(NAME not in before["output"] and NAME in after["output"] for before, after in several)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--rows", "1000000"], "the question bank makes"),
        (["--rows", "0"], "--rows must be at least 1"),
        (["--ordinary", "1.5"], "between 0 and 1"),
        (["--name", " "], "--name: empty"),
    ],
)
def test_what_cannot_be_made_is_one_line_and_exit_code_2(tmp_path, capsys, arguments, said):
    out = tmp_path / "out.jsonl"
    assert main(["generate", str(out), "--name", NAME, *arguments]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
    assert not out.exists()


def test_an_existing_file_is_replaced_whole_or_not_at_all(tmp_path):
    out = tmp_path / "out.jsonl"
    out.write_text("old")

    class Unwritable(list):
        def __iter__(self):
            yield {"a": 1}
            raise OSError(28, "No space left on device")

    with pytest.raises(UserError, match="No space left on device"):
        write(out, Unwritable())
    assert out.read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["out.jsonl"]
    write(out, [{"a": 1}])
    assert out.read_text() == '{"a": 1}\n'


def test_a_missing_directory_is_made_and_a_path_that_cannot_be_written_is_refused(tmp_path):
    write(tmp_path / "new" / "out.jsonl", [{"a": 1}])
    assert (tmp_path / "new" / "out.jsonl").exists()
    with pytest.raises(UserError, match="is a directory"):
        write(tmp_path, [])
    with pytest.raises(UserError, match="cannot be written: "):
        write(tmp_path / "new" / "out.jsonl" / "out.jsonl", [])
