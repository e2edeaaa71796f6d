"""Splitting: every row goes to one part, and no question to both."""

import json

import pytest

from data_tools.__main__ import main
from data_tools.split import choose_groups
from sft.core.text import normalise
from sft.data.rows.formats import read_rows


def row(*questions: str) -> str:
    return json.dumps({"conversation": [{"input": question, "output": "a"} for question in questions]}) + "\n"


@pytest.fixture
def split(tmp_path, capsys):
    def run(lines: list[str], *arguments):
        source, train, held_out = (tmp_path / name for name in ("in.jsonl", "train.jsonl", "eval.jsonl"))
        source.write_text("".join(lines))
        code = main(["split", str(source), "--train", str(train), "--eval", str(held_out), "--force", *arguments])
        parts = [path.read_text().splitlines(keepends=True) if path.exists() else [] for path in (train, held_out)]
        captured = capsys.readouterr()
        return code, *parts, captured.out + captured.err

    return run


def questions(path) -> set[str]:
    rows = [canonical["messages"] for _, canonical in read_rows(path)]
    return {normalise(message["content"]) for messages in rows for message in messages if message["role"] == "user"}


@pytest.mark.parametrize("ratio", ["0.05", "0.3", "0.9"])
def test_every_row_goes_to_one_part_as_it_was_and_the_share_is_kept(split, ratio):
    lines = [row(f"question {number // 2}") for number in range(400)]
    code, train, held_out, said = split(lines, "--ratio", ratio)
    assert code == 0
    assert sorted(train + held_out) == sorted(lines)
    assert len(held_out) == pytest.approx(400 * float(ratio), abs=2)
    assert f"{len(held_out)} rows out" in said


def test_no_question_stands_in_both_parts_not_even_in_another_spelling_or_turn(split, tmp_path):
    lines = [row("Who are you?"), row("who are you"), row("A", "B"), row("B", "C"), row("c!"), *map(row, "DEFGHIJ")]
    for seed in range(20):
        split(lines, "--ratio", "0.4", "--seed", str(seed))
        assert not questions(tmp_path / "train.jsonl") & questions(tmp_path / "eval.jsonl")


def test_marks_and_tool_calls_come_through_and_what_a_tool_says_is_no_question(split):
    def called(question: str) -> str:
        call = {"role": "assistant", "tool_calls": [{"name": "f", "arguments": "{}"}], "loss": False}
        turns = [{"role": "user", "content": question}, call, {"role": "tool", "content": "the same to all"}]
        return json.dumps({"messages": [*turns, {"role": "assistant", "content": "a"}]}) + "\n"

    lines = [called(f"question {number}") for number in range(10)]
    code, train, held_out, said = split(lines, "--ratio", "0.3")
    assert code == 0
    assert sorted(train + held_out) == sorted(lines)
    assert "in 10 groups" in said


def test_the_same_seed_splits_alike_and_another_one_differently(split):
    lines = [row(f"question {number}") for number in range(50)]
    first, again, other = (split(lines, "--ratio", "0.2", "--seed", seed)[2] for seed in "001")
    assert first == again != other


@pytest.mark.parametrize(
    ("lines", "arguments", "said"),
    [
        ([row("q")] * 3, [], "every row shares its questions"),
        ([row("q")], ["--ratio", "1"], "--ratio: must lie between"),
        ([row("q"), "{}\n"], [], "in.jsonl:2: "),
    ],
)
def test_what_cannot_be_split_is_one_line_and_leaves_no_file(split, lines, arguments, said):
    code, train, held_out, heard = split(lines, *arguments)
    assert (code, train, held_out) == (2, [], [])
    assert said in heard
    assert heard.count("\n") == 1


def test_a_file_that_changes_between_the_two_readings_is_refused_and_nothing_is_written(tmp_path, capsys, monkeypatch):
    path = tmp_path / "in.jsonl"
    path.write_text("".join(json.dumps({"question": f"q{number}", "answer": "a"}) + "\n" for number in range(9)))

    def choose_after_a_change(*arguments):
        path.write_text("\n" + path.read_text())
        return choose_groups(*arguments)

    monkeypatch.setattr("data_tools.split.choose_groups", choose_after_a_change)
    assert main(["split", str(path), "--train", str(tmp_path / "train"), "--eval", str(tmp_path / "eval")]) == 2
    assert "in.jsonl: changed while it was read: start again once it stays as it is" in capsys.readouterr().err
    assert sorted(tmp_path.iterdir()) == [path]
