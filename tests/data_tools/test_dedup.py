"""Leaving out duplicates: the first of rows that are alike stays as it was, and what went is said."""

import json
import random

import pytest

from data_tools.__main__ import main
from data_tools.dedup import NearDuplicates, shingles

STORY = "从前有座山，山里有座庙，庙里有个老和尚在给小和尚讲故事。" * 4


def openai(question, answer) -> dict:
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


@pytest.fixture
def dedup(tmp_path, capsys):
    def run(lines: list[str], *options) -> tuple[list[str], str]:
        (tmp_path / "in.jsonl").write_text("\n".join(lines), encoding="utf-8")
        assert main(["dedup", str(tmp_path / "in.jsonl"), str(tmp_path / "out.jsonl"), "--force", *options]) == 0
        return (tmp_path / "out.jsonl").read_text(encoding="utf-8").splitlines(), capsys.readouterr().out

    return run


def test_the_same_conversation_in_another_format_or_spelling_is_a_duplicate(dedup):
    first = json.dumps(openai("q", "é"))
    lines = [first, json.dumps({"conversation": [{"output": "é", "input": "q"}]}, ensure_ascii=False), first + " "]
    kept, said = dedup([*lines, json.dumps(openai("q", "b"))])
    assert kept == [first, json.dumps(openai("q", "b"))]
    assert "4 rows in" in said
    assert "2 rows out" in said
    assert "2  dropped: the same as an earlier row" in said
    assert "line 3: the same as line 1" in said


def test_near_duplicates_go_only_when_asked(dedup):
    lines = [
        json.dumps(openai("讲故事", text)) for text in (STORY, STORY + "完", "另一个完全不同的故事，说的是海。" * 4)
    ]
    assert dedup(lines)[0] == lines
    kept, said = dedup(lines, "--near", "0.9")
    assert kept == [lines[0], lines[2]]
    assert "line 2: nearly the same as line 1" in said


def test_what_is_less_alike_than_asked_stays():
    dice = random.Random(0)
    letters = [chr(0x4E00 + place) for place in range(3000)]
    near, found = NearDuplicates(0.9), {"more": 0, "less": 0}
    for number in range(100):
        text = [dice.choice(letters) for _ in range(300)]
        for kind, changes in (("none", 0), ("more", 2), ("less", 15)):
            changed = text.copy()
            for place in dice.sample(range(300), changes):
                changed[place] = dice.choice(letters)
            like = near.first_like(number, [{"role": "user", "content": "".join(changed)}])
            if kind in found:
                found[kind] += like == number
    assert found["more"] >= 97
    assert found["less"] == 0


def test_a_common_system_message_makes_no_rows_alike(dedup):
    rows = [
        {"conversation": [{"system": STORY * 5, "input": question, "output": answer}]}
        for question, answer in (("几点了", "三点"), ("你饿吗", "不饿"))
    ]
    lines = [json.dumps(row) for row in rows]
    assert dedup(lines, "--near", "0.7")[0] == lines


def test_rows_that_differ_in_tools_calls_or_marks_are_not_the_same(dedup):
    def called(city: str, **keys) -> dict:
        call = {"name": "weather", "arguments": {"city": city}}
        return {"messages": [openai("q", "")["messages"][0], {"role": "assistant", "tool_calls": [call], **keys}]}

    rows = [called("a"), called("b"), called("a") | {"tools": [{"name": "weather"}]}, called("a", loss=True)]
    lines = [json.dumps(row) for row in [*rows, *rows]]
    assert dedup(lines)[0] == lines[:4]


def test_calls_are_compared_for_near_duplicates_and_what_tools_there_are_is_not(dedup):
    def called(text: str) -> str:
        call = {"name": "tell", "arguments": {"what": text}}
        turns = [openai("讲", "")["messages"][0], {"role": "assistant", "tool_calls": [call]}]
        return json.dumps({"messages": turns, "tools": [{"name": "tell", "description": STORY * 5}]})

    lines = [called(STORY), called(STORY + "完"), called("另一个完全不同的故事，说的是海。" * 4)]
    assert dedup(lines, "--near", "0.9")[0] == [lines[0], lines[2]]


def test_short_texts_have_shingles():
    assert shingles("ab") == ["ab"]
    assert shingles("abcd") == ["abc", "bcd"]


@pytest.mark.parametrize("near", ["0.3", "1.5", "nan"])
def test_an_impossible_similarity_is_refused(tmp_path, capsys, near):
    assert main(["dedup", str(tmp_path / "in"), str(tmp_path / "out"), "--near", near]) == 2
    assert "--near: must lie between" in capsys.readouterr().err
