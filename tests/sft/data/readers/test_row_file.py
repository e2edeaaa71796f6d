"""One reader behind every door: whatever people put their conversations in, the same rows come out of it."""

import csv
import gzip
import io
import json
import os
import threading
from collections import deque
from collections.abc import Callable

import datasets
import pyarrow
import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as some
from pyarrow import parquet

from sft.core.errors import UserError
from sft.data.readers.row_file import RowFile
from sft.data.rows.formats import read_rows
from sft.data.rows.json_line import BadLine
from sft.data.rows.row_shapes import shape_of

Turns = list[tuple[str, str]]

PAIRS = b'{"question": "q", "answer": "a"}\n'


def read(path) -> None:
    """Go through all lines, which shows what is wrong with the file, and then through its rows."""
    deque(RowFile(path).lines(), maxlen=0)
    deque(read_rows(path), maxlen=0)


def messages(turns: Turns, system: str | None) -> list[dict]:
    made = [{"role": "system", "content": system}] if system else []
    for question, answer in turns:
        made += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return made


def spelt(role: str, name: str, words: str, turns: Turns, system: str | None, key: str) -> dict:
    """A list of turns under other names: of the key, of the roles, of the words."""
    names = {"system": "system", "user": name.split("/")[0], "assistant": name.split("/")[1]}
    return {key: [{role: names[turn["role"]], words: turn["content"]} for turn in messages(turns, system)]}


def columns(names: str, turns: Turns, system: str | None, with_history: bool = True) -> dict:
    question, answer, *rest = names.split("/")
    *history, (asked, answered) = turns
    row = {question: asked, answer: answered, "system": system or ""}
    return row | ({"history": [list(pair) for pair in history]} if with_history else {}) | dict.fromkeys(rest, "")


# How a conversation is written down: several turns, or the last two only one.
MANY_TURNS: dict[str, Callable[[Turns, str | None], dict]] = {
    "messages": lambda turns, system: {"messages": messages(turns, system)},
    "messages, row's system": lambda turns, system: {"system": system or "", "messages": messages(turns, None)},
    "sharegpt": lambda turns, system: spelt("from", "human/gpt", "value", turns, system, "conversations"),
    "sharegpt, user": lambda turns, system: spelt("from", "user/assistant", "value", turns, system, "items"),
    "sharegpt, chatgpt": lambda turns, system: spelt("from", "Human/ChatGPT", "text", turns, system, "conversations"),
    "human and bot": lambda turns, system: spelt("role", "human/bot", "text", turns, system, "dialogue"),
    "conversation of roles": lambda turns, system: spelt(
        "role", "user/assistant", "value", turns, system, "conversation"
    ),
    "LLaMA-Factory v1": lambda turns, system: {
        "messages": [
            {"role": turn["role"], "content": [{"type": "text", "value": turn["content"]}], "loss_weight": weight}
            for turn in messages(turns, system)
            for weight in [float(turn["role"] == "assistant")]
        ]
    },
    "xtuner": lambda turns, system: {
        "conversation": [
            {"input": question, "output": answer, "system": (system or "") if index == 0 else ""}
            for index, (question, answer) in enumerate(turns)
        ]
    },
    "human and assistant": lambda turns, system: {
        "system": system or "",
        "conversation": [{"human": question, "assistant": answer} for question, answer in turns],
    },
    "alpaca": lambda turns, system: columns("instruction/output/input", turns, system),
    "ms-swift": lambda turns, system: columns("query/response", turns, system),
}
ONE_TURN: dict[str, Callable[[Turns, str | None], dict]] = {
    names: lambda turns, system, names=names: columns(names, turns, system, with_history=False)
    for names in (
        "prompt/completion", "question/answer", "Question/Answer", "input/output", "instruction/response/context",
        "问题/答案", "指令/输出/输入", "user/assistant", "prompt/response", "用户/客服", "q/a", "query/answer",
    )
}  # fmt: skip
ONE_TURN["TRL's conversational"] = lambda turns, system: {
    "prompt": messages(turns, system)[:-1], "completion": messages(turns, system)[-1:]
}  # fmt: skip


def as_cells(row: dict) -> dict:
    return {key: value if isinstance(value, str) else json.dumps(value) for key, value in row.items()}


def table(rows: list[dict], separator: str, encoding: str, first_line: str = "") -> bytes:
    text = io.StringIO(first_line, newline="")
    text.seek(0, io.SEEK_END)
    writer = csv.DictWriter(text, list(rows[0]), delimiter=separator)
    writer.writeheader()
    writer.writerows(map(as_cells, rows))
    return text.getvalue().encode(encoding)


def parquet_bytes(rows: list[dict]) -> bytes:
    out = io.BytesIO()
    parquet.write_table(pyarrow.Table.from_pylist(rows), out)
    return out.getvalue()


def dumped(rows: list[dict], **how) -> list[str]:
    return [json.dumps(row, **how) for row in rows]


# What a file of rows is, by a name that may say otherwise.
CONTAINERS: dict[str, Callable[[list[dict]], bytes]] = {
    "lines.jsonl": lambda rows: "\n".join(dumped(rows, ensure_ascii=False)).encode(),
    "lines.json": lambda rows: ("\ufeff" + "\r\n\r\n".join(dumped(rows)) + "\r\n").encode(),
    "array.json": lambda rows: json.dumps(rows, ensure_ascii=False).encode(),
    "array.jsonl": lambda rows: json.dumps(rows, indent=2).encode(),
    "spread.json": lambda rows: "\n".join(dumped(rows, indent=1)).encode(),
    "lines": lambda rows: "\n".join(dumped(rows)).encode(),
    "comma.csv": lambda rows: table(rows, ",", "utf-8"),
    "excel.csv": lambda rows: table(rows, ";", "utf-8-sig", "sep=;\r\n"),
    "semicolon.csv": lambda rows: table(rows, ";", "utf-8"),
    "tabs.tsv": lambda rows: table(rows, "\t", "utf-16"),
    "table.txt": lambda rows: table(rows, "\t", "utf-8-sig"),
    "rows.parquet": parquet_bytes,
}
PACKED = {"": bytes, ".gz": gzip.compress, ".zst": zstandard.compress, " (gzip)": gzip.compress}
TEXT = some.text(some.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=40)
WORDS = TEXT.filter(lambda text: text.strip() and not text.strip().lower().startswith("xxx")) | some.sampled_from(
    ['他说："你好"，\n然后走了', "a;b,c\td|e", "{not: json}", "[1, 2", "é", "1e5", "NaN", "  spaced  "]
)
TURNS = some.lists(some.tuples(WORDS, WORDS), min_size=1, max_size=3)
CONVERSATIONS = some.lists(some.tuples(TURNS, some.none() | WORDS), min_size=1, max_size=3)
FORMS = MANY_TURNS | ONE_TURN


@settings(
    max_examples=600, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(CONVERSATIONS, some.sampled_from([*FORMS]), some.sampled_from([*CONTAINERS]), some.sampled_from([*PACKED]))
def test_a_conversation_is_the_same_row_in_every_format_and_container(tmp_path, conversations, form, container, packed):
    write = FORMS[form]
    if form in ONE_TURN:
        conversations = [(turns[-1:], system) for turns, system in conversations]
    path = tmp_path / f"{container}{packed}"
    path.write_bytes(PACKED[packed](CONTAINERS[container]([write(turns, system) for turns, system in conversations])))
    rows = [row for _, row in read_rows(path)]
    marked = [
        [turn | ({"loss": True} if form == "LLaMA-Factory v1" and turn["role"] == "assistant" else {}) for turn in made]
        for made in (messages(turns, system) for turns, system in conversations)
    ]
    assert rows == [{"messages": made} for made in marked]


CHAT = [{"question": f"你是谁{number}", "answer": "我是黄大力。", "说明": "备注"} for number in range(30)]
EXPECTED = [messages([(row["question"], row["answer"])], None) for row in CHAT]


@pytest.mark.parametrize("encoding", ["gbk", "gb18030", "utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
def test_a_table_is_read_in_its_encoding_and_says_what_was_found(tmp_path, encoding, separator):
    path = tmp_path / "table.csv"
    path.write_bytes(table(CHAT, separator, encoding))
    file = RowFile(path)
    rows = [row for _, row in read_rows(file)]
    assert [row["messages"] for row in rows] == EXPECTED
    assert rows[0]["unused"] == ["说明"]
    name = {"gbk": "GB18030", "gb18030": "GB18030", "utf-8-sig": "UTF-8"}.get(encoding, encoding.upper())
    words = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}[separator]
    assert file.summary() == f"CSV, {name}, separated by {words}"


def test_english_before_the_first_chinese_and_rare_characters_do_not_mislead(tmp_path):
    path = tmp_path / "table.csv"
    rows = [{"question": "hello there", "answer": "hi"}] * 50_000 + [
        {"question": "你是谁？", "answer": "我是黄大力，😀㐀"}
    ]
    path.write_bytes(table(rows, ",", "gb18030"))
    assert [row for _, row in read_rows(path)][-1] == {"messages": messages([("你是谁？", "我是黄大力，😀㐀")], None)}


@pytest.mark.parametrize("encoding", ["latin-1", "cp1252", "big5", "shift-jis"])
def test_another_encoding_is_refused_at_its_line_not_read_as_gibberish(tmp_path, encoding):
    text = {"big5": "你是誰呀，我是黃大力的朋友", "shift-jis": "あなたは誰ですか"}.get(
        encoding, "où êtes-vous né, à l'été"
    )
    (tmp_path / "t.csv").write_bytes(f"question,answer\nq,a\nq,{text.replace(',', ' ')}\n".encode(encoding))
    with pytest.raises(UserError, match=r"t\.csv:3: neither UTF-8 nor GB18030 \(GBK\)"):
        list(read_rows(tmp_path / "t.csv"))


def test_no_cell_is_lost(tmp_path):
    long = "长" * 200_000
    (tmp_path / "t.csv").write_text(f'question,answer,answer,,note\nq,{long},b,c,"x\ny"\n,,,,\nq2,a2,,,\n', "utf-8")
    file = RowFile(tmp_path / "t.csv")
    [(first, row), (second, _)] = [(line, json.loads(raw)) for line, raw in file.lines()]
    assert (first, second) == (2, 5)
    assert row == {"question": "q", "answer": long, "answer (3)": "b", "column 4": "c", "note": "x\ny"}
    assert "no name over column 4" in file.summary()
    assert "several columns are called answer: the later ones are read as answer (3)" in file.summary()
    assert shape_of(row).unused(row) == ["answer (3)", "column 4", "note"]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("t.csv", 'question,answer\n"a\nb",c\nd\n', "t.csv:4: holds 1 cell, and the first line 2 cells: mend the row"),
        ("t.csv", 'question,answer\na,b\nc,"d\ne,f\n', "t.csv:3: not CSV (unexpected end of data)"),
        ("t.csv", "姓名,电话\n黄大力,1\n", "t.csv:2: no known format; it has the keys 姓名, 电话 (of a table"),
        ("t.json", '[\n{"a": 1},\n]', "t.json:2: a comma stands after the last row: take it away"),
        ("t.json", '[{"a": 1},\n{"a": 1,\n}]', "t.json:2: a comma stands before the closing bracket"),
        ("t.json", '[{"a": [1,\n2,\n]}]', "t.json:2: a comma stands before the closing bracket"),
        ("t.json", '[{"messages": 1}, // why\n{}]', "t.json:1: a comment begins here, and JSON has none: take it away"),
        ("t.json", '[\n# why\n{}]', "t.json:2: a comment begins here"),
        ("t.json", '[{}\n/* why */]', "t.json:2: a comment begins here"),
        ("t.json", '// why\n[]', "t.json:1: a comment begins here"),
        ("t.json", '[{}\n{}]', "t.json:2: a comma is missing before this"),
        ("t.json", "[\n{'a': 1}]", "t.json:2: not JSON (single quotes)"),
        ("t.json", '[{"a":\nTrue}]', "t.json:2: not JSON (Python's True, False or None): write true, false or null"),
        ("t.json", '[{"messages": []}\n]\n[]', "t.json:3: something stands after the array's end"),
        ("t.json", '[{"messages": [', "t.json:1: not JSON"),
        ("t.json", "[1" + "0" * 5000 + "]", "t.json:1: holds a number of thousands of digits"),
        ("t.json", "[" * 100_000, "t.json:1: nested too deeply"),
        ("t.json", '{\n"a": 1\n}\n{\n"a": 2,\n}', "t.json:5: a comma stands before the closing bracket"),
        ("t.jsonl", '{"instruction": "q"},\n', "t.jsonl:1: a comma stands after the object: take it away"),
        ("t.jsonl", '{“question”: "q"}\n', "t.jsonl:1: not JSON (“ is Chinese punctuation)"),
        ("t.csv", "问题，答案\n你好，在的\n", "t.csv:1: the cells are separated by ，"),
        ("t.csv", "question,answer\na,b\n\ufeff\"question\",answer\nc,d\n", "t.csv:3: the names of the columns"),
        ("t.md", "| question | answer |\n|---|:--|\n| a | b |\n", "t.md: a table in Markdown: save it as CSV"),
        ("t.txt", "甲：你好\n乙：在的\n", "t.txt:1: neither JSON nor Parquet, and as a table its first line names no"),
        ("t.jsonl", "version https://git-lfs.github.com/spec/v1\n", "t.jsonl: a pointer of Git LFS"),
        ("t.json", "\n<!DOCTYPE html>\n", "t.json: a web page in place of the file: download it anew"),
        ("t.tar", "\0" * 257 + "ustar", "t.tar: a tar archive: unpack it"),
        ("t.xlsx", "PK\x03\x04", "t.xlsx: a zip archive or an Excel workbook: unpack it, or save it as CSV UTF-8"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_file_is_said_at_its_line_with_what_to_do(tmp_path, name, content, said):
    (tmp_path / name).write_text(content, "utf-8")
    with pytest.raises(UserError) as error:
        read(tmp_path / name)
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_an_array_is_read_a_piece_at_a_time(tmp_path, monkeypatch):
    monkeypatch.setattr("sft.data.readers.json_text.CHUNK", 7)
    rows = [{"question": "问" * number + '"\\n{[', "answer": str(number)} for number in range(1, 40)]
    (tmp_path / "t.json").write_text(json.dumps(rows, ensure_ascii=False, indent=3), "utf-8")
    assert [json.loads(raw) for _, raw in RowFile(tmp_path / "t.json").lines()] == rows
    assert [line for line, _ in RowFile(tmp_path / "t.json").lines()] == [2 + 4 * number for number in range(39)]


def test_columns_of_other_names_are_named_and_a_row_without_them_is_bad(tmp_path):
    row = {"提": "q", "复": "a", "question": "not this", "设": "S", "id": 1}
    (tmp_path / "t.jsonl").write_text(json.dumps(row) + "\n" + json.dumps({"提": "q"}) + "\n")
    file = RowFile(tmp_path / "t.jsonl", {"question": "提", "answer": "复", "system": "设"})
    rows = read_rows(file)
    expected = {"messages": messages([("q", "a")], "S"), "unused": ["other.question", "id"]}
    assert next(rows) == (1, expected)
    with pytest.raises(UserError, match=r"t\.jsonl:2: there is no 复, which columns names; there is 提"):
        next(rows)
    chat = {"对话内容": messages([("q", "a")], None), "prompt": "p"}
    (tmp_path / "t.jsonl").write_text(json.dumps(chat))
    [(_, whole)] = read_rows(RowFile(tmp_path / "t.jsonl", {"messages": "对话内容"}))
    assert whole["messages"] == messages([("q", "a")], None)
    (tmp_path / "t.csv").write_text("提,复\nq,a\n", "utf-8")
    with pytest.raises(UserError, match=r"t\.csv:1: there is no 问, which columns names; there is 提, 复"):
        list(read_rows(RowFile(tmp_path / "t.csv", {"question": "问", "answer": "复"})))
    with pytest.raises(UserError, match="columns: name: a row holds question, answer"):
        RowFile(tmp_path / "t.csv", {"name": "提"})


def test_parquet_of_bytes_dates_and_nested_values_is_read(tmp_path):
    columns = {
        "question": pyarrow.array(["q"]),
        "answer": pyarrow.array([b"a"]),
        "image_bytes": pyarrow.array([b"\xff\xd8"]),
        "day": pyarrow.array([20_000], pyarrow.date32()),
        "at": pyarrow.array([1], pyarrow.timestamp("ns")),
        "far": pyarrow.array([10**15], pyarrow.timestamp("s")),
        "took": pyarrow.array([5], pyarrow.duration("ns")),
        "pairs": pyarrow.array([[("k", 1)]], pyarrow.map_(pyarrow.string(), pyarrow.int32())),
        "nested": pyarrow.array([{"a": [{"b": None, "c": float("nan"), "d": 1.5}]}]),
        "nothing": pyarrow.nulls(1),
    }
    parquet.write_table(pyarrow.table(columns), tmp_path / "t.parquet")
    [(number, raw)] = RowFile(tmp_path / "t.parquet").lines()
    row = json.loads(raw)
    assert number == 1
    assert not isinstance(raw, BadLine)
    assert (row["question"], row["answer"], row["day"]) == ("q", "a", "2024-10-04")
    assert row["image_bytes"] == {"base64": "/9g="}
    assert row["nested"] == {"a": [{"d": 1.5}]}
    assert row["at"].startswith("1970-01-01")
    assert "nothing" not in row
    assert [row["messages"] for _, row in read_rows(tmp_path / "t.parquet")] == [messages([("q", "a")], None)]


def test_a_data_set_folder_is_read_by_its_parts(tmp_path):
    rows = [{"question": "q", "answer": "a"}, {"question": "q2", "answer": "a2"}]
    made = datasets.Dataset.from_list(rows)
    made.save_to_disk(str(tmp_path / "one"))
    datasets.DatasetDict({"train": made, "test": made.select([1])}).save_to_disk(str(tmp_path / "several"))
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "train.jsonl").write_text("\n".join(dumped(rows)))
    for name in ("one", "several", "files"):
        assert [row["messages"][0]["content"] for _, row in read_rows(tmp_path / name)] == ["q", "q2"]
    assert [number for number, _ in read_rows(f"{tmp_path}/several:test")] == [1]
    with pytest.raises(UserError, match="has the parts train, test: name one, such as"):
        list(read_rows(f"{tmp_path}/several:none"))
    digest = RowFile(tmp_path / "files").digest()
    assert digest == RowFile(tmp_path / "files").digest()
    (tmp_path / "files" / "train.jsonl").write_text(json.dumps(rows[0]))
    assert digest != RowFile(tmp_path / "files").digest()


def test_a_hub_id_without_a_network_is_one_line(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match=r"nobody/nothing: cannot be read as a data set \("):
        list(read_rows("nobody/nothing"))


@pytest.mark.parametrize(
    "content",
    [gzip.compress(PAIRS), zstandard.compress(PAIRS), b"question,answer\nq,a\n"],
    ids=["gzip", "zstd", "CSV"],  # a name of its own would hold the time of day, as gzip writes it
)
def test_a_pipe_is_read_once_and_can_be_gone_through_again(tmp_path, content):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(target=pipe.write_bytes, args=(content,))
    writer.start()
    file = RowFile(pipe)
    rows = list(read_rows(file))
    assert rows == list(read_rows(file))
    assert [row for _, row in rows] == [{"messages": messages([("q", "a")], None)}]
    writer.join()


def test_a_file_that_changes_between_or_during_two_readings_is_noticed(tmp_path):
    path = tmp_path / "t.jsonl"
    path.write_text('{"question": "q", "answer": "a"}\n' * 3)
    file, during = RowFile(path), RowFile(path)
    list(file.lines())
    lines = during.lines()
    next(lines)
    path.write_text('{"question": "Q", "answer": "a"}\n' * 4)
    for changed in (lines, file.lines()):
        with pytest.raises(UserError, match=r"t\.jsonl: changed while it was read: start again"):
            list(changed)


def test_nothing_of_a_folder_is_left_out_in_silence(tmp_path):
    for folder, names in {"two kinds": ["a.jsonl", "b.csv"], "a test": ["客服.jsonl", "test.jsonl"]}.items():
        (tmp_path / folder).mkdir()
        for name in names:
            (tmp_path / folder / name).write_bytes(PAIRS if name.endswith("l") else b"question,answer\nq,a\n")
    with pytest.raises(UserError, match=r"as a data set of a\.jsonl would leave out b\.csv: name the files one by one"):
        read(tmp_path / "two kinds")
    with pytest.raises(UserError, match=r"of test\.jsonl would leave out 客服\.jsonl"):
        read(tmp_path / "a test")


def test_a_folder_whose_files_have_other_keys_is_no_crash(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(PAIRS)
    (tmp_path / "b.jsonl").write_bytes(b'{"messages": []}\n')
    with pytest.raises(UserError, match="cannot be read as a data set"):
        read(tmp_path)


@pytest.mark.parametrize("pack", [gzip.compress, zstandard.compress])
def test_what_is_compressed_and_cut_short_is_not_taken_for_whole(tmp_path, pack):
    packed = pack(b"".join(json.dumps({"question": f"q{n}", "answer": "a"}).encode() + b"\n" for n in range(20_000)))
    path = tmp_path / "t.jsonl"
    path.write_bytes(packed + packed)
    assert sum(1 for _ in RowFile(path).lines()) == 40_000
    path.write_bytes(packed[: len(packed) // 2])
    with pytest.raises(UserError, match=r"t\.jsonl: cut short: .* copy or download it anew"):
        read(path)
    path.write_bytes(pack(pack(PAIRS)))
    with pytest.raises(UserError, match="compressed twice: unpack it once"):
        read(path)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("put together.jsonl", "\ufeff{}\n\ufeff{}\n".format(*[PAIRS.decode().strip()] * 2)),
        ("of an old Mac.jsonl", "{}\r{}\r".format(*[PAIRS.decode().strip()] * 2)),
        ("called a table.csv", PAIRS.decode() * 2),
        ("with a title.csv", "客服问答表,,\r\n编号,问题,答案\r\n1,q,a\r\n2,q,a\r\n"),
        ("a choice.csv", "id,question,A,B,answer\n1,q,x,y,a\n2,q,x,y,a\n"),
        ("of a doctor.csv", "department,title,ask,answer\n儿科,t,q,a\n儿科,t,q,a\n"),
        ("of Q and A.csv", "Q,A\nq,a\nq,a\n"),
    ],
)
def test_files_as_people_have_them_are_read_as_they_are_meant(tmp_path, name, content):
    (tmp_path / name).write_text(content, "utf-8", newline="")
    assert [row["messages"] for _, row in read_rows(tmp_path / name)] == [messages([("q", "a")], None)] * 2


def test_a_title_above_a_table_is_told(tmp_path):
    (tmp_path / "t.csv").write_text("客服问答表,\n问题,答案\nq,a\n", "utf-8")
    assert "above the columns stands 客服问答表" in RowFile(tmp_path / "t.csv").summary()
