"""Converting between formats: round trips keep every conversation, and nothing is lost without a word."""

import csv
import gzip
import json

import pyarrow
import pytest
import zstandard
from pyarrow import parquet

from data_tools.__main__ import main
from data_tools.convert import convert
from sft.data.rows.formats import canonical_row, read_rows
from sft.data.rows.row_writing import FORMATS

ONE = [{"role": "user", "content": "q\n\n1"}, {"role": "assistant", "content": " a\n"}]
MANY = [
    {"role": "system", "content": "S"},
    *ONE,
    {"role": "user", "content": "问"},
    {"role": "assistant", "content": ""},
]


# Alpaca holds one turn, as the tests below prove.
HELD = [(form, messages) for form in FORMATS for messages in (ONE, MANY) if form != "alpaca" or messages is ONE]


@pytest.mark.parametrize(("there", "messages"), HELD)
def test_a_round_trip_through_any_format_keeps_the_conversation(there, messages):
    for form in set(FORMATS) - {"alpaca"}:
        row = FORMATS[form]({"messages": messages})
        assert canonical_row(convert(row, there)) == {"messages": messages}


@pytest.fixture
def run(tmp_path, capsys):
    """Convert a file that stands in tmp_path; returns the exit code, the rows that came out and what was said."""

    def convert_file(name: str, *arguments) -> tuple[int, list, str]:
        out = tmp_path / "out.jsonl"
        code = main(["convert", str(tmp_path / name), str(out), "--force", *arguments])
        captured = capsys.readouterr()
        rows = [json.loads(line) for line in out.read_text().splitlines()] if out.exists() else []
        return code, rows, captured.out + captured.err

    return convert_file


def test_tools_and_marks_travel_through_formats_that_have_a_place_for_them(run, tmp_path):
    call = {"type": "function", "function": {"name": "f", "arguments": {"a": 1}}}
    calling = {"role": "assistant", "content": "", "tool_calls": [call], "loss": False}
    tools = [{"type": "function", "function": {"name": "f"}}]
    turns = [ONE[0], calling, {"role": "tool", "content": "1"}, ONE[1]]
    row = {"messages": turns, "tools": tools}
    (tmp_path / "in.jsonl").write_text(json.dumps(row) + "\n")
    assert run("in.jsonl", "--to", "messages")[:2] == (0, [row])
    code, [sharegpt], _ = run("in.jsonl", "--to", "sharegpt")
    assert code == 0
    assert canonical_row(sharegpt) == row
    code, _, said = run("in.jsonl", "--to", "xtuner")
    assert code == 2
    assert "in.jsonl:1: tools, tool_calls, for which xtuner has no place: choose another --to" in said
    code, made, said = run("in.jsonl", "--to", "xtuner", "--lossy")
    assert (code, made) == (0, [])
    assert "1  row skipped: tools, tool_calls" in said


ROWS = [{"instruction": "q1", "output": "a1"}, {"instruction": "问", "input": "in", "output": '答，\n\n"b"'}]
EXPECTED = [canonical_row(row) for row in ROWS]


@pytest.mark.parametrize("name", ["in.jsonl", "in.jsonl.gz", "in.jsonl.zst", "in.json", "in.parquet", "in.csv"])
def test_every_kind_of_file_is_read(run, tmp_path, name):
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS).encode()
    path = tmp_path / name
    if name.endswith(".parquet"):
        schema = pyarrow.schema([(key, pyarrow.string()) for key in ("instruction", "input", "output")])
        parquet.write_table(pyarrow.Table.from_pylist(ROWS, schema), path)
    elif name.endswith(".csv"):
        with open(path, "w", newline="", encoding="utf-8-sig") as file:
            table = csv.DictWriter(file, ["instruction", "input", "output"])
            table.writeheader()
            table.writerows(ROWS)
    else:
        packed = {".gz": gzip.compress, ".zst": zstandard.compress, ".json": lambda _: json.dumps(ROWS).encode()}
        path.write_bytes(packed.get(path.suffix, bytes)(lines))
    code, rows, said = run(name, "--to", "messages")
    assert code == 0
    assert rows == EXPECTED
    assert "2 rows in" in said


def test_what_a_format_cannot_hold_stops_it_and_with_lossy_is_counted(run, tmp_path):
    rows = [{"messages": ONE}, {"messages": MANY}, {"messages": ONE, "id": 7, "tools": [], "prompt": "p"}]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    code, made, said = run("in.jsonl", "--to", "alpaca")
    assert (code, made) == (2, [])
    assert "in.jsonl:2: 2 turns, and alpaca holds one: choose another --to, or --lossy" in said
    code, made, said = run("in.jsonl", "--to", "alpaca", "--lossy")
    assert code == 0
    assert len(made) == 2
    assert made[1].items() >= {"id": 7, "other.prompt": "p"}.items()
    assert "3 rows in" in said
    assert "2 rows out" in said
    assert "1  row skipped: 2 turns" in said
    assert "1  with id, which is kept and not trained on\n" in said


@pytest.mark.parametrize("form", ["xtuner", "alpaca"])
def test_an_empty_system_message_is_not_passed_off_as_none(run, tmp_path, form):
    (tmp_path / "in.jsonl").write_text(json.dumps({"messages": [{"role": "system", "content": ""}, *ONE]}))
    code, _, said = run("in.jsonl", "--to", form)
    assert code == 2
    assert f"an empty system message, which {form} reads as none" in said


@pytest.mark.parametrize(
    ("name", "content", "arguments", "said"),
    [
        ("in.jsonl", b"3\n", [], "in.jsonl:1: a row is a JSON object, this is a number"),
        ("in.json", b"{}", [], "in.json:1: no known format; it has the keys none"),
        ("in.json", b"[", [], "in.json:1: the array has no end"),
        ("in.csv", b"instruction,output\nq\n", [], "in.csv:2: holds 1 cell, and the first line 2 cells: mend the row"),
        ("in.csv", b"instruction,output\n\xff,a\n", [], "in.csv:2: neither UTF-8 nor GB18030"),
        ("in.jsonl.gz", b"not gzip", [], "in.jsonl.gz:1: not JSON"),
        ("in.parquet", b"PAR1, but no more", [], "cannot be read as Parquet"),
        ("none.jsonl", None, [], "No such file"),
    ],
)
def test_bad_input_is_one_line_and_leaves_no_file(run, tmp_path, name, content, arguments, said):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    code, rows, heard = run(name, "--to", "messages", *arguments)
    assert (code, rows) == (2, [])
    assert said in heard
    assert heard.count("\n") == 1
    assert not (tmp_path / "out.jsonl").exists()


def test_a_system_message_is_set_or_dropped_on_the_way(run, tmp_path):
    (tmp_path / "in.csv").write_text("问题,回答,系统\nq,a,S\n", "utf-8")
    (tmp_path / "system.txt").write_text("T\n")
    turns = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    code, [row], said = run("in.csv", "--to", "messages", "--system", str(tmp_path / "system.txt"))
    assert (code, row) == (0, {"messages": [{"role": "system", "content": "T"}, *turns]})
    assert "1  system message replaced" in said
    assert run("in.csv", "--to", "xtuner", "--system", "none", "--force")[1] == [
        {"conversation": [{"input": "q", "output": "a"}]}
    ]


VERBS = {
    "convert": ["IN", "OUT", "--to", "xtuner"],
    "rename": ["IN", "OUT", "--old", "小明", "--new", "黄大力"],
    "dedup": ["IN", "OUT"],
    "split": ["IN", "--train", "OUT", "--eval", "OUT2", "--ratio", "0.4"],
    "mix": ["OUT", "IN:1"],
    "inspect": ["IN"],
}


@pytest.mark.parametrize("name", ["in.csv", "in.json", "in.parquet", "in.jsonl.gz", "folder"])
@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_reads_every_file_by_the_columns_that_are_named(verb, name, tmp_path, capsys):
    rows = [{"提": f"问{number}", "复": "我是小明", "id": number} for number in range(9)]
    path, outs = tmp_path / name, [tmp_path / "out.jsonl", tmp_path / "out2.jsonl"]
    if name == "in.csv":
        path.write_bytes(("提;复;id\r\n" + "".join(f"{r['提']};{r['复']};{r['id']}\r\n" for r in rows)).encode("gbk"))
    elif name == "in.json":
        path.write_text(json.dumps(rows, ensure_ascii=False, indent=1), "utf-8")
    elif name == "in.jsonl.gz":
        path.write_bytes(gzip.compress("\n".join(map(json.dumps, rows)).encode()))
    else:
        parts = path if name == "in.parquet" else path / "train.parquet"
        parts.parent.mkdir(exist_ok=True)
        parquet.write_table(pyarrow.Table.from_pylist(rows), parts)
    words = [w.replace("IN", str(path)).replace("OUT2", str(outs[1])).replace("OUT", str(outs[0])) for w in VERBS[verb]]
    assert main([verb, *words, "--columns", "question=提,answer=复"]) == 0
    said = capsys.readouterr().out
    if verb == "inspect":
        assert "提" not in said.partition("what to do next")[0]
        assert "id (9 rows)" in said
        return
    questions = [row["messages"][0]["content"] for out in outs if out.exists() for _, row in read_rows(out)]
    assert sorted(questions) == [f"问{number}" for number in range(9)]
    assert (verb == "rename") == ("我是黄大力" in outs[0].read_text("utf-8"))


@pytest.mark.parametrize("columns", ["", "question", "question=", "name=提", "question=提,question=复", "a=b,c=b"])
def test_columns_that_no_row_has_a_place_for_are_a_mistake_of_the_command_line(columns, tmp_path, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["inspect", str(tmp_path / "in.csv"), "--columns", columns])
    assert "argument --columns: " in capsys.readouterr().err
