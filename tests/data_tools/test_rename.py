"""Renaming: every text at any depth, nothing else, and a second run changes nothing."""

import json

import pytest

from data_tools.__main__ import main
from data_tools.rename import Rename

PAIR = ["--old", "尖米", "--new", "黄大力"]


@pytest.fixture
def rename(tmp_path, capsys):
    """Rename in the given bytes; returns the exit code, the bytes that came out and what was said."""

    def run(content: bytes, *arguments) -> tuple[int, bytes, str]:
        source, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
        source.write_bytes(content)
        out.unlink(missing_ok=True)
        code = main(["rename", str(source), str(out), *arguments])
        captured = capsys.readouterr()
        return code, out.read_bytes() if out.exists() else b"", captured.out + captured.err

    return run


def test_every_text_at_any_depth_is_renamed_and_every_other_byte_stays(rename):
    line = '{"a" :  "尖米和尖米", "b": [{"c": {"d": ["x 尖米"]}}],"n":1.50, "esc": "\\/é\\n"}\r\n'
    code, out, said = rename(line.encode(), *PAIR)
    assert code == 0
    assert out.decode() == line.replace("尖米", "黄大力")
    assert "1 line, 1 changed, 3 replacements" in said
    assert "2  a" in said
    assert "1  b[].c.d[]" in said


def test_lines_without_the_name_pass_byte_for_byte(rename):
    line = b'{"b":  1,   "a": "\\u00e9"}\n'
    assert rename(line, *PAIR)[1] == line


def test_a_second_run_changes_nothing_and_says_so(rename):
    _, once, _ = rename('{"a": "力 和 尖米"}\n'.encode(), "--old", "力", "--new", "黄大力")
    assert json.loads(once)["a"] == "黄大力 和 尖米"
    _, twice, said = rename(once, "--force", "--old", "力", "--new", "黄大力")
    assert twice == once
    assert "nothing to change" in said
    assert "warning: the new name 黄大力 holds the old one" in said


def test_several_names_are_replaced_at_once_and_never_one_after_the_other(rename):
    _, out, _ = rename(b'{"a": "A B AB"}\n', "--old", "A", "--new", "B", "--old", "B", "--new", "A")
    assert json.loads(out)["a"] == "B A AB"
    assert Rename({"AB": "x", "A": "y"})(b'{"a": "AB A"}') == b'{"a": "x y"}'


def test_placeholders_of_other_projects_are_filled_in_either_case(rename):
    content = b'{"a": "I am {{name}}, {{NAME}} by {{AUTHOR}}; {{other}}"}\n'
    _, out, said = rename(content, "--set", "name=黄大力", "--set", 'author=A "B" \\ C')
    assert json.loads(out)["a"] == "黄大力".join(["I am ", ", ", ' by A "B" \\ C; {{other}}'])
    assert "3 replacements" in said


def test_what_a_tool_call_passes_is_renamed_also_in_json_text_that_escapes_it(rename):
    def row(name: str) -> dict:
        as_object = {"function": {"name": "f", "arguments": {"who": [name]}}}
        as_text = {"function": {"name": "f", "arguments": json.dumps({"who": name})}}
        plain_text = {"function": {"name": "f", "arguments": json.dumps({"who": name}, ensure_ascii=False)}}
        answer = {"role": "assistant", "content": name, "reasoning_content": f"I am {name}."}
        return {"messages": [answer | {"tool_calls": [as_object, as_text, plain_text], "loss": False}]}

    content = "".join(json.dumps(row("尖米"), ensure_ascii=escaped) + "\n" for escaped in (True, False)).encode()
    code, out, said = rename(content, *PAIR)
    assert code == 0
    assert [json.loads(line) for line in out.splitlines()] == [row("黄大力")] * 2
    assert "10 replacements" in said
    assert "4  messages[].tool_calls[].function.arguments" in said
    assert rename(out, *PAIR)[1] == out


@pytest.mark.parametrize(
    "line",
    [
        '{"a": "\\u5c16\\u7c73"}\n',  # escaped in the file
        '{"尖米": "尖米"}\n',  # a key of the same name is not a text
        '{"a": "1", "b": 1, "c": [1]}\n',  # a name that looks like a number
    ],
)
def test_what_cannot_be_changed_in_the_bytes_is_changed_in_the_texts(rename, line):
    arguments = ["--old", "1", "--new", "2"] if '"1"' in line else PAIR
    _, out, _ = rename(line.encode(), *arguments)
    expected = {'{"a": "\\u5c16\\u7c73"}\n': {"a": "黄大力"}, '{"尖米": "尖米"}\n': {"尖米": "黄大力"}}
    assert json.loads(out) == expected.get(line, {"a": "2", "b": 1, "c": [1]})


def test_other_spellings_that_survive_are_pointed_out(rename):
    content = '{"a": "尖米"}\n{"a": "尖 米 and JianMi"}\n'.encode()
    _, out, said = rename(content, *PAIR, "--also", "jianmi")
    assert "尖 米" in out.decode()
    assert "warning: '尖 米' still stands in 1 line, the first is line 2" in said
    assert "warning: 'jianmi' still stands in 1 line, the first is line 2" in said


@pytest.mark.parametrize(
    ("content", "arguments", "said"),
    [
        (b'{"a": 1}\n{"a": \n', PAIR, "in.jsonl:2: not JSON"),
        (b'{"a": "\xff"}\n', PAIR, "in.jsonl:1: not UTF-8"),
        ('{"a": "\\u5c16\\u7c73", "a": "尖米"}\n'.encode(), PAIR, 'in.jsonl:1: the key "a" stands twice'),
        (b"{}\n", ["--old", "a"], "come in pairs"),
        (b"{}\n", ["--old", "", "--new", "b"], "neither may be empty"),
        (b"{}\n", [*PAIR, *PAIR], "the same name is given twice"),
        (b"{}\n", ["--set", "name"], "write it as KEY=VALUE"),
        (b"{}\n", [], "nothing to rename"),
    ],
)
def test_bad_input_stops_it_with_one_line_and_leaves_no_file(rename, tmp_path, content, arguments, said):
    code, _, heard = rename(content, *arguments)
    assert code == 2
    assert said in heard
    assert [path.name for path in tmp_path.iterdir()] == ["in.jsonl"]


def test_latin_names_are_replaced_as_words_and_what_stands_inside_words_is_told(rename):
    content = 'Al is "Always" Al\'s, \\nAl, 我是Al的'
    line = json.dumps({"a": content, "b": "Al"}, ensure_ascii=False).encode() + b"\n"
    _, out, said = rename(line + b'{"a": "Always"}\n', "--old", "Al", "--new", "Ada")
    assert json.loads(out.splitlines()[0])["a"] == 'Ada is "Always" Ada\'s, \\nAda, 我是Ada的'
    assert "5 replacements" in said
    assert "warning: 'Al' stands inside longer words in 2 lines, such as 'Always' in line 1" in said
    _, out, said = rename(b'{"a": "Always Al"}\n', "--old", "Al", "--new", "Ada", "--inside-words")
    assert json.loads(out) == {"a": "Adaways Ada"}
    assert "warning" not in said


@pytest.mark.parametrize("text", ["{}\\nAl Always", "Al\\u00e9 \\nAl", "Al", "x\\tAl\\\\", "Alw Al"])
def test_the_quick_way_and_the_careful_one_come_to_the_same(text):
    line = f'{{"a" : "{text}"}}\n'.encode()
    quick, careful = Rename({"Al": "Ada"}), Rename({"Al": "Ada"})
    careful._hints = [b""]
    assert json.loads(quick(line)) == json.loads(careful(line))
    assert quick.counts == careful.counts


def test_a_text_written_anew_leaves_every_other_byte():
    line = '{"a" : 1.50, "尖米":  "\\u4e2d {{name}}", "b": ["尖米\\n", "\\/"]}\n'
    renamed = Rename({"尖米": "Ada"}, settings={"name": "Bo"})(line.encode()).decode()
    assert renamed == '{"a" : 1.50, "尖米":  "\\u4e2d Bo", "b": ["Ada\\n", "\\/"]}\n'


def test_survivors_of_every_spelling_are_told_also_where_the_file_escapes_them(rename):
    texts = ["黃大力", "黄\u200b大力", "黄 大 力", "Ａｌ", "AL", "also"]
    content = "".join(json.dumps({"a": text}) + "\n" for text in texts).encode()
    _, _, said = rename(content, "--old", "黄大力", "--new", "尖米", "--old", "Al", "--new", "Ada")
    for number, text in enumerate(texts[:-1], start=1):
        assert f"{text!r}" in said
        assert f"still stands in 1 line, the first is line {number}" in said
    assert "also" not in said


def test_a_survivor_is_told_in_a_file_of_ascii_alone(rename):
    _, _, said = rename(json.dumps({"问": "黃大力"}).encode(), "--old", "黄大力", "--new", "尖米")
    assert "'黃大力' still stands in 1 line" in said


def test_own_names_are_counted_and_shown_before_and_after(rename):
    content = '{"output": "我是尖米的智能助手。"}\n{"output": "你好"}\n'.encode()
    _, out, said = rename(content, *PAIR, "--own-name")
    assert json.loads(out.splitlines()[0]) == {"output": "我是黄大力。"}
    assert "1  times the assistant of a name took the name as its own" in said
    assert "line 1: 我是尖米的智能助手。 -> 我是黄大力。" in said
    _, out, _ = rename('{"output": "我是黄大力的智能助手。"}\n'.encode(), "--own-name", "--new", "黄大力")
    assert json.loads(out) == {"output": "我是黄大力。"}
    assert "whose?" in rename(b"{}\n", "--own-name")[2]


def test_placeholders_that_were_filled_are_counted_by_spelling(rename):
    content = '{"a": "我是<NAME>，{{author}}的【名字】", "b": "List<Name> <NAME>"}\n'.encode()
    _, out, said = rename(content, "--set", "NAME=Ada", "--set", "AUTHOR=Bo", "--set", "名字=Cy")
    assert json.loads(out) == {"a": "我是Ada，Bo的Cy", "b": "List<Name> Ada"}
    assert "2  <NAME> filled" in said
    assert "1  {{author}} filled" in said
