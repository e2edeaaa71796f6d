"""System messages: dropped, replaced or added in each format, and read from a file."""

import copy

import pytest

from data_tools import system_message
from data_tools.__main__ import main
from sft.core.errors import UserError
from sft.data.rows import formats
from sft.data.rows.json_line import BadRow, json_line

QUESTION, ANSWER = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}
TURNS = [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]
WITH = {
    "xtuner": {"conversation": [{"system": "S", "input": "q", "output": "a"}]},
    "xtuner, repeated": {
        "conversation": [{"system": "S", "input": "q", "output": "a"}, {"system": "S", "input": "q", "output": "a"}]
    },
    "messages": {"messages": [{"role": "system", "content": "S"}, QUESTION, ANSWER], "id": 1},
    "sharegpt, key": {"conversations": TURNS, "system": "S"},
    "sharegpt, turn": {"conversations": [{"from": "system", "value": "S"}, *TURNS]},
    "alpaca": {"instruction": "q", "input": "", "output": "a", "system": "S"},
}
WITHOUT = {
    "xtuner": {"conversation": [{"input": "q", "output": "a"}]},
    "messages": {"messages": [QUESTION, ANSWER]},
    "sharegpt": {"conversations": TURNS},
    "alpaca": {"instruction": "q", "input": "", "output": "a", "system": ""},
}


def system_of(row: dict) -> str | None:
    first = formats.canonical_row(row)["messages"][0]
    return first["content"] if first["role"] == "system" else None


@pytest.mark.parametrize("name", WITH)
def test_a_system_message_is_replaced_or_dropped_and_the_rest_stays(name):
    row, rest = copy.deepcopy(WITH[name]), formats.canonical_row(WITH[name])["messages"][1:]
    assert system_message.replace(row, "S") == ("replaced" if "repeated" in name else None)
    assert system_message.replace(row, "T") == "replaced"
    assert system_of(row) == "T"
    assert formats.canonical_row(row)["messages"][1:] == rest
    assert system_message.replace(row, "") == "dropped"
    assert formats.canonical_row(row)["messages"] == rest
    assert system_message.replace(row, "") is None


@pytest.mark.parametrize("name", WITHOUT)
def test_a_row_without_one_gets_it(name):
    row = copy.deepcopy(WITHOUT[name])
    assert system_message.replace(row, "") is None
    assert system_message.replace(row, "T") == "added"
    assert system_of(row) == "T"
    assert len(formats.canonical_row(row)["messages"]) == 3


@pytest.mark.parametrize("row", [{"a": 1}, {"messages": []}, {"conversation": "q"}, {"conversations": [1]}])
def test_a_row_without_turns_is_bad(row):
    with pytest.raises(BadRow):
        system_message.replace(row, "T")


@pytest.mark.parametrize("content", [None, b"", b" \n", b"\xff\xfe"])
def test_a_file_that_holds_no_text_is_refused(tmp_path, content):
    path = tmp_path / "system.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=r"system\.txt: "):
        system_message.read(str(path))


def test_rename_sets_the_text_of_a_file_with_its_placeholders_filled_and_counts(tmp_path, capsys):
    source, text, out = tmp_path / "in.jsonl", tmp_path / "system.txt", tmp_path / "out.jsonl"
    source.write_bytes(json_line(WITH["xtuner"]) + json_line(WITHOUT["alpaca"]))
    text.write_text("\ufeff你是{{name}}。\n", encoding="utf-8")
    assert main(["rename", str(source), str(out), "--system", str(text), "--set", "name=黄大力"]) == 0
    assert [system_of(row) for _, row in formats.read_rows(out)] == ["你是黄大力。"] * 2
    said = capsys.readouterr().out
    assert "1  system message replaced" in said
    assert "1  system message added" in said
    bare = tmp_path / "bare.jsonl"
    assert main(["rename", str(out), str(bare), "--system", "none"]) == 0
    assert [row["messages"][0]["role"] for _, row in formats.read_rows(bare)] == ["user"] * 2
    assert "2  system messages dropped" in capsys.readouterr().out
