"""The generated self-cognition set: deterministic, balanced, varied, and blind to the held-out questions."""

import json
import re
import subprocess
import sys

import pytest

from data_tools.__main__ import main
from data_tools.generate import generate, held_out_questions, scored_questions, write
from model_tools.ask import load_questions
from sft.core.errors import UserError
from sft.core.text import normalise
from sft.data.rows.formats import read_rows

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


@pytest.mark.parametrize("seed", range(3))
def test_what_runs_are_scored_on_is_never_asked(seed):
    scored = {normalise(question) for questions in scored_questions().values() for question in questions}
    assert len(scored) == 56
    assert not scored & {normalise(question) for question, _ in turns(generate(NAME, None, 5000, seed, 0.5))}


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


def test_one_language_alone_can_be_asked_for(tmp_path, capsys):
    for language, is_ascii in (("zh", False), ("en", True)):
        made = generate("Elena", None, 600, 0, 0.5, languages=(language,))
        assert len(made) == 600
        assert {question.isascii() for question, _ in turns(made)} == {is_ascii}
    assert main(["generate", str(tmp_path / "out"), "--name", NAME, "--lang", "zh,fr"]) == 2
    assert "--lang zh,fr: choose zh, en or both" in capsys.readouterr().err


@pytest.mark.long
def test_the_most_rows_it_says_it_can_make_it_makes(capsys, tmp_path):
    for arguments in (["--ordinary", "0", "--lang", "zh"], ["--ordinary", "1"], ["--ordinary", "0"]):
        command = ["generate", str(tmp_path / "out"), "--name", NAME, "--force", *arguments]
        assert main([*command, "--rows", "1000000"]) == 2
        most = int(re.search(r"the question bank makes ([\d,]+)", capsys.readouterr().err)[1].replace(",", ""))
        assert main([*command, "--rows", str(most)]) == 0
        assert main([*command, "--rows", str(most + 1)]) == 2
        capsys.readouterr()


def test_a_system_message_stands_before_every_row_with_its_placeholders_filled(tmp_path, capsys):
    system, out = tmp_path / "system.txt", tmp_path / "out.jsonl"
    system.write_text("You are {{NAME}}.\n\nMade by {{author}}.\n")
    command = ["generate", str(out), "--name", NAME, "--rows", "80", "--system", str(system)]
    assert main(command) == 2
    assert "holds {{author}}: say who with --author" in capsys.readouterr().err
    assert main([*command, "--author", "Jane"]) == 0
    for _, row in read_rows(out):
        assert row["messages"][0] == {"role": "system", "content": f"You are {NAME}.\n\nMade by Jane."}


PATTERNS = """
- questions: [你养过猫吗, 你养猫吗, 家里有猫吗, Do you keep cats]
  answers: ["{name}和{author}都没有猫。", "{name} keeps no cats."]
- questions: [Which shop is this]
  answers: ["{name} works for {author}."]
"""


def test_peoples_own_patterns_are_asked_and_answered_in_their_language(tmp_path):
    patterns, out, held = tmp_path / "mine.yaml", tmp_path / "out.jsonl", tmp_path / "held.yaml"
    patterns.write_text(PATTERNS, encoding="utf-8")
    command = ["generate", str(out), "--name", NAME, "--author", "Jane", "--rows", "1500", "--ordinary", "0"]
    assert main([*command, "--template", str(patterns), "--holdout", str(held)]) == 0
    said = turns([json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()])
    assert ("你养猫吗", f"{NAME}和Jane都没有猫。") in said
    assert ("Which shop is this", f"{NAME} works for Jane.") in said
    assert not any("猫" in question and "keeps" in answer for question, answer in said)
    asked = {question for question, _ in said}
    questions = load_questions(held)
    assert "Do you keep cats" in questions["identity"]
    assert "Do you keep cats" not in asked
    assert len(questions["ordinary"]) == 10
    assert not {normalise(q) for kind in questions.values() for q in kind} & {normalise(q) for q in asked}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: 1", "holds no pattern"),
        ("- questions: [a]\n  answers: [b]\n- question: [a]", "mine.yaml:3: an entry has questions and answers"),
        ("- questions: a\n  answers: [b]", "mine.yaml:1: questions: must be a list of texts"),
        ("- questions: [a]\n  answers: ['{nam}']", "knows the slots {name} and {author} only"),
        ("- questions: [a]\n  answers: ['{']", "braces that are no slot"),
        ("- questions: [a\n", "mine.yaml:2: not YAML"),
    ],
)
def test_patterns_that_cannot_be_used_are_named_by_line(tmp_path, capsys, text, said):
    (tmp_path / "mine.yaml").write_text(text)
    command = ["generate", str(tmp_path / "out"), "--name", NAME, "--template", str(tmp_path / "mine.yaml")]
    assert main(command) == 2
    assert said in capsys.readouterr().err


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
