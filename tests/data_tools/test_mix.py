"""Mixing: weights are shares of each file's rows, and lines come through as they were."""

import json
from collections import Counter

import pytest

from data_tools.__main__ import main
from sft.data.rows import formats
from sft.data.rows.formats import canonical_row


@pytest.fixture
def parts(tmp_path):
    """Two files of ten rows; the second begins with a byte order mark, has a blank line and no newline at its end."""
    for name in "ab":
        rows = [json.dumps({"messages": [{"role": "user", "content": f"{name}{number}"},
                                         {"role": "assistant", "content": "x"}]}) for number in range(10)]  # fmt: skip
        text = "\n".join(rows) + "\n" if name == "a" else "\ufeff" + "\n\n".join(rows)
        (tmp_path / f"{name}.jsonl").write_text(text, encoding="utf-8")
    return tmp_path


def mixed(folder, *arguments) -> Counter:
    assert main(["mix", str(folder / "out.jsonl"), "--force", *arguments]) == 0
    rows = [json.loads(line) for line in (folder / "out.jsonl").read_text().splitlines()]
    return Counter(row["messages"][0]["content"] for row in rows)


def test_weights_say_how_often_each_files_rows_are_taken(parts, capsys):
    counts = mixed(parts, f"{parts}/a.jsonl:1.0", f"{parts}/b.jsonl:0.3")
    assert all(counts[f"a{number}"] == 1 for number in range(10))
    assert sum(counts[f"b{number}"] for number in range(10)) == 3
    assert "13 rows" in capsys.readouterr().out
    counts = mixed(parts, f"{parts}/b.jsonl:2.5")
    assert sorted(counts.values()) == [2] * 5 + [3] * 5


def test_marks_and_tool_calls_come_through_as_they_were(tmp_path):
    turns = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a", "weight": 0}]
    call = {"role": "assistant", "tool_calls": [{"name": "f", "arguments": "{}"}], "thinking": "t"}
    line = json.dumps({"messages": [*turns, turns[0], call], "tools": '[{"name": "f"}]'}) + "\n"
    (tmp_path / "in.jsonl").write_text(line)
    assert main(["mix", str(tmp_path / "out.jsonl"), f"{tmp_path}/in.jsonl:2"]) == 0
    assert (tmp_path / "out.jsonl").read_text() == line * 2


def test_the_same_seed_mixes_alike_and_the_order_is_random(parts):
    def order(seed):
        main(["mix", str(parts / "out.jsonl"), f"{parts}/a.jsonl:1", f"{parts}/b.jsonl:1", "--seed", seed, "--force"])
        return (parts / "out.jsonl").read_text()

    assert order("1") == order("1") != order("2")


@pytest.mark.parametrize("part", ["a.jsonl", "a.jsonl:", "a.jsonl:x", "a.jsonl:0", "a.jsonl:-1", ":1", "a.jsonl:inf"])
def test_a_part_without_a_proper_weight_is_refused(parts, part, capsys):
    assert main(["mix", str(parts / "out.jsonl"), part]) == 2
    assert "write it as FILE:WEIGHT" in capsys.readouterr().err


def test_a_bad_row_and_writing_over_an_input_are_refused(parts, capsys):
    (parts / "bad.jsonl").write_text("{}\n")
    for part, said in (
        ("bad.jsonl:1", "bad.jsonl:1: "),
        ("none.jsonl:1", "cannot be"),
    ):
        assert main(["mix", str(parts / "out.jsonl"), f"{parts}/{part}"]) == 2
        assert said in capsys.readouterr().err
        assert not (parts / "out.jsonl").exists()
    assert main(["mix", str(parts / "a.jsonl"), f"{parts}/a.jsonl:1", "--force"]) == 2
    assert "is an input as well" in capsys.readouterr().err


def test_a_file_that_changes_while_it_is_read_is_refused_and_nothing_is_written(tmp_path, capsys, monkeypatch):
    path, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    path.write_text('{"question": "q", "answer": "a"}\n' * 9)

    def read_and_change(row):
        with open(path, "a") as file:
            file.write("\n")
        return canonical_row(row)

    monkeypatch.setattr(formats, "canonical_row", read_and_change)
    assert main(["mix", str(out), f"{path}:1"]) == 2
    assert "in.jsonl: changed while it was read: start again once it stays as it is" in capsys.readouterr().err
    assert sorted(tmp_path.iterdir()) == [path]
