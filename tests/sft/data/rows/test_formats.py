"""Reading training files: known forms become canonical rows, bad input is named by file and line."""

import json

import pytest

from sft.core.errors import UserError
from sft.data.rows.formats import read_rows


def write(tmp_path, *rows, raw: bytes | None = None):
    path = tmp_path / "data.jsonl"
    lines = [row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in rows]
    path.write_bytes(raw if raw is not None else "\n".join(lines).encode("utf-8") + b"\n")
    return path


def test_xtuner_and_openai_rows_become_the_same_canonical_row(tmp_path):
    xtuner = {"conversation": [{"system": "S", "input": "q1", "output": "a1"}, {"input": "q2", "output": "a2"}]}
    roles = [("system", "S"), ("user", "q1"), ("assistant", "a1"), ("user", "q2"), ("assistant", "a2")]
    openai = {"messages": [{"role": role, "content": content} for role, content in roles]}
    rows = list(read_rows(write(tmp_path, xtuner, openai)))
    assert rows == [(1, openai), (2, openai)]


def test_sharegpt_and_alpaca_rows_become_the_same_canonical_row_too(tmp_path):
    sharegpt = {
        "conversations": [
            {"from": "system", "value": "S"},
            {"from": "human", "value": "q1"},
            {"from": "gpt", "value": "a1"},
            {"from": "human", "value": "q2\nabout"},
            {"from": "gpt", "value": "a2"},
        ]
    }
    alpaca = {"system": "S", "history": [["q1", "a1"]], "instruction": "q2", "input": "about", "output": "a2"}
    (_, first), (_, second) = read_rows(write(tmp_path, sharegpt, alpaca))
    assert first == second
    assert first["messages"][3] == {"role": "user", "content": "q2\nabout"}


def test_blank_lines_bom_and_crlf_change_nothing_but_the_line_numbers(tmp_path):
    row = '{"conversation": [{"input": "你好", "output": "好"}]}'
    path = write(tmp_path, raw=f"\ufeff{row}\r\n\r\n{row}\r\n".encode())
    assert [line for line, _ in read_rows(path)] == [1, 3]
    assert next(read_rows(path))[1]["messages"][0] == {"role": "user", "content": "你好"}


GOOD = {"conversation": [{"input": "q", "output": "a"}]}


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ('{"conversation": [', "not JSON"),
        ("[1]", "a row is a JSON object, this is a list"),
        ({"text": "x"}, "no known format; it has the keys text (of a table, the names in its first line)"),
        ({"conversation": [], "messages": []}, "conversation, messages may each be the conversation: say which"),
        ({"conversation": "hi"}, "is text: it must be a list"),
        ({"conversation": []}, "is empty"),
        ({"conversation": ["hi"]}, "conversation[0] is text"),
        ({"conversation": [{"input": "q"}]}, 'lacks "output"'),
        ({"conversation": [{"output": "a"}]}, 'lacks "input"'),
        ({"conversation": [{"input": "q", "output": None}]}, "output is null: it must be text"),
        ({"conversation": [{"input": "q", "output": 3}]}, "output is a number"),
        ({"conversation": [{"input": " ", "output": "a"}]}, "input is empty"),
        ({"conversation": [{"system": "A", "input": "q", "output": "a"}, {"system": "B", "input": "q", "output": "a"}]},
         "differs from the first"),
        ({"conversations": [{"from": "narrator", "value": "x"}]}, "'narrator': use system, human or gpt"),
        ({"conversations": [{"from": "human"}]}, 'lacks "value"'),
        ({"instruction": "q"}, 'has "instruction" and no answer to it'),
        ({"instruction": "q", "output": "a", "history": ["x"]}, "history[0] is text"),
        ({"instruction": "q", "output": "a", "history": True}, "history is true or false"),
        ({"conversations": [{"from": [], "value": "x"}]}, "[]: use system, human or gpt"),
        ({"instruction": "q", "output": None}, "output is null"),
        ({"messages": [{"role": "narrator", "content": "x"}]}, "'narrator': use system, user or assistant"),
        ({"messages": [{"role": "developer", "content": "x"}]}, "role is 'developer': use system"),
        ({"messages": [{"role": "assistant", "content": "x"}]}, "user first, assistant last"),
        ({"messages": [{"role": "user", "content": "x"}]}, "user first, assistant last"),
        ({"messages": [{"role": "user"}]}, 'lacks "content"'),
        ({"messages": [{"role": "user", "content": "q"}, {"role": "system", "content": "s"},
                       {"role": "assistant", "content": "a"}]}, "has one, at its start"),
        ({"messages": [{"role": "system", "content": "s"}]}, "found none"),
        ({"messages": [{"role": "user", "content": "q", "name": "n"}]}, "has name, which would not be trained on"),
        ('{"conversation": [{"input": "q", "output": "a", "output": "b"}]}', '"output" stands twice'),
        (r'{"conversation": [{"input": "q", "output": "\ud83d"}]}', "half of a surrogate pair"),
        ("[" * 100_000, "nested too deeply"),
    ],
)  # fmt: skip
def test_a_bad_row_is_named_by_file_and_line(tmp_path, row, said):
    path = write(tmp_path, GOOD, row)
    with pytest.raises(UserError) as error:
        list(read_rows(path))
    assert str(error.value).startswith(f"{path}:2: ")
    assert said in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("asked", "said"),
    [({"conversation": []}, "is an object, not the user's words"), ("xxx", "is the placeholder 'xxx'")],
)
def test_nested_or_placeholder_input_names_the_first_line_and_the_count(tmp_path, asked, said):
    bad = {"conversation": [{"input": asked, "output": "a"}]}
    path = write(tmp_path, GOOD, bad, GOOD, bad, bad)
    with pytest.raises(UserError) as error:
        list(read_rows(path))
    assert str(error.value).startswith(f"{path}:2: ")
    assert said in str(error.value)
    assert "(3 such rows in the file)" in str(error.value)


def test_bytes_that_are_not_utf8_are_named_by_line(tmp_path):
    path = write(tmp_path, raw=json.dumps(GOOD).encode() + b"\n\xff\xfe\n")
    with pytest.raises(UserError, match=r"data\.jsonl:2: not UTF-8 \(byte 1"):
        list(read_rows(path))


def test_an_empty_file_a_missing_one_and_a_directory_are_refused(tmp_path):
    with pytest.raises(UserError, match="holds no row"):
        list(read_rows(write(tmp_path, raw=b"\n\n")))
    with pytest.raises(UserError, match="No such file"):
        list(read_rows(tmp_path / "none.jsonl"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="cannot be read as a data set"):
        list(read_rows(tmp_path / "empty"))
