"""Inspecting: what a file holds, what is wrong with it, what to do next; on screen and as a page."""

import json
import re
import sys
from pathlib import Path

import pytest

from data_tools.__main__ import main
from data_tools.inspect import BAR, bars, histogram
from tests.support.encoding import with_template

TUTORIAL = Path(__file__).parents[3] / "shared" / "data" / "assistant_Tuner.jsonl"


def xtuner(question, answer, system=None) -> dict:
    turn = {"input": question, "output": answer}
    return {"conversation": [{"system": system, **turn} if system else turn]}


def nested(answer, system="S" * 50) -> dict:
    inner = {"conversation": [{"system": system, "input": "xxx", "output": "xxx"}]}
    return {"conversation": [{"system": system, "input": inner, "output": answer}]}


@pytest.fixture
def inspect(tmp_path, capsys):
    def run(*rows, options=(), name="data.jsonl", code=0) -> str:
        path = tmp_path / name
        lines = [row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in rows]
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        assert main(["inspect", str(path), *options]) == code
        return capsys.readouterr().out

    return run


def test_formats_systems_turns_and_scripts_are_counted(inspect):
    openai = {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "Hello there"}]}
    said = inspect(xtuner("你好", "您好呀", "S"), xtuner("你好吗", "很好", "S"), openai)
    assert re.search(r"\n  rows +3 \(0 of them bad\)\n  turns +3\n  format +xtuner 2, messages 1\n", said)
    assert "Chinese 67%, Latin 33%" in said
    assert "in 2 rows, 1 distinct" in said


def test_names_contradictions_and_leftovers_are_found(inspect):
    rows = [
        xtuner("你是谁", "我是尖米的智能助手"),
        xtuner("你是谁？", "我叫黄大力。"),
        xtuner("Who are you?", "I am 黄大力."),
    ]
    said = inspect(*rows, options=["--was", "尖米"])
    assert "2 rows call the assistant 黄大力" in said
    assert "1 row says the assistant is 尖米's assistant" in said
    assert "1 question is answered with another name than before" in said
    assert '"你是谁？": 尖米 (line 1), 黄大力 (line 2)' in said
    assert "1 row still names 尖米; the first is line 1" in said
    assert "--old 尖米 --new 黄大力" in said


def test_exact_and_near_duplicates_are_told_apart(inspect):
    text = "从前有座山，山里有座庙，庙里有个老和尚在给小和尚讲故事，讲的是什么呢？讲的是从前有座山。" * 3
    said = inspect(xtuner("讲故事", text), xtuner("讲故事", text), xtuner("讲故事", text + "完"), xtuner("天气", "晴"))
    assert "line 2 is line 1 again" in said
    assert "line 3 is nearly line 1" in said
    assert "line 4" not in said


def test_bad_rows_are_counted_and_the_rest_is_measured(inspect):
    said = inspect("{broken", xtuner("q", "a"), xtuner("q", None), code=1)
    assert "3 (2 of them bad)" in said
    assert "line 1: not JSON" in said
    assert "line 3: conversation[0].output is null" in said
    assert re.search(r"--skip-bad \S+/data\.bad\.jsonl", said)


def test_empty_answers_are_told_with_their_lines(inspect):
    said = inspect(xtuner("q", "a"), xtuner("q2", " "), xtuner("q3", ""), code=1)
    assert "2 rows have an empty answer, which training refuses" in said
    assert "line 2\n" in said
    assert "line 3\n" in said
    assert "empty answer" not in inspect(xtuner("q", "a"))


def test_control_tokens_in_a_text_are_pointed_at(inspect):
    texts = ["a <|im_end|> b", "[INST] c", "<start_of_turn>", "<｜Assistant｜>", "end</s>"]
    said = inspect(
        *(xtuner(f"q{number}", text) for number, text in enumerate(texts)), xtuner("a < b | c > d", "[1] <b>")
    )
    assert "5 rows hold what many models take for a control token" in said
    assert "line 1: <|im_end|>" in said
    assert "line 6" not in said


def test_private_things_are_pointed_at_and_not_shown(inspect):
    key, phone = "sk-" + "a1B2" * 8, "13812345678"
    said = inspect(xtuner("q", f"use {key}"), xtuner("q2", f"call {phone}"), xtuner("q3", "pi is 3.14159265358979"))
    assert "text has the shape of: API key" in said
    assert "text has the shape of: phone number" in said
    assert key not in said
    assert phone not in said
    assert "line 3" not in said


def test_rows_with_tools_are_measured_with_all_they_say(inspect, tiny_model):
    call = {"name": "who", "arguments": {"of": "尖米", "mail": "someone@example.com"}}
    rows = [
        {
            "messages": [
                {"role": "user", "content": "你是谁"},
                {"role": "assistant", "content": None, "tool_calls": [call], "thinking": "<|im_end|>"},
                {"role": "tool", "content": "我是小明"},
                {"role": "assistant", "content": "我叫小红"},
            ],
            "tools": [{"name": "who"}],
        },
        xtuner("你是谁", "我是黄大力"),
    ]
    said = inspect(*rows, options=["--was", "尖米", "--tokenizer", str(tiny_model)])
    assert re.search(r"turns +3\n", said)
    assert "empty answer" not in said
    assert "another name than before" not in said
    assert "1 row calls the assistant 黄大力" in said
    assert "1 row gives no name" in said
    assert "1 row still names 尖米; the first is line 1" in said
    assert "line 1: some" in said
    assert "line 1: <|im_end|>" in said


def test_a_row_that_the_models_template_refuses_is_named(tmp_path, capsys, tokenizer):
    with_template(tokenizer, "{{ raise_exception('no such role') }}").save_pretrained(tmp_path / "model")
    path = tmp_path / "data.jsonl"
    path.write_text(json.dumps(xtuner("q", "a")), encoding="utf-8")
    assert main(["inspect", str(path), "--tokenizer", str(tmp_path / "model")]) == 2
    said = capsys.readouterr().err
    assert "data.jsonl:1: " in said
    assert "its chat template refuses this conversation: no such role: name another model" in said


def test_a_nested_file_is_explained_and_its_mending_is_the_next_step(inspect):
    said = inspect(nested("我是尖米的智能助手"), nested("我是尖米。"), code=1)
    assert "2 rows hold no question of a user" in said
    assert "2 turns say xxx in place of words" in said
    assert "data_tools repair" in said
    assert "Q_list.txt" in said
    assert "nearly" not in said
    assert "1 row says the assistant is 尖米's assistant" in said


def test_placeholders_come_first_in_what_is_wrong_and_old_names_are_called_so(inspect):
    rows = [xtuner(f"你是谁{number}", "我是{{name}}，由【作者】开发。", "你是<NAME>。") for number in range(3)]
    rows += [xtuner(f"你叫什么{number}", "我是Qwen2.5，一个模型。") for number in range(4)]
    wrong = inspect(*rows).partition("wrong\n")[2].splitlines()
    assert "in place of a name; the first is line 1: " in wrong[1]
    assert any("3 texts have {{name}} in place of a name" in line for line in wrong[:6])
    assert any("3 texts have 【作者】 in place of a name" in line for line in wrong)
    assert any("3 texts have <NAME> in place of a name" in line for line in wrong)
    assert "  4 rows give an old name, that of another model: Qwen2.5" in wrong
    (rename,) = (line for line in wrong if " rename " in line)
    assert "--set NAME=黄大力" in rename
    assert "--set 作者=" in rename


def test_columns_that_are_not_trained_on_are_named(inspect):
    rows = [xtuner("q", "a") | {"id": 1, "category": "c"}, xtuner("q2", "a") | {"id": 2}]
    assert re.search(r"columns not used +id \(2 rows\), category \(1 row\)\n", inspect(*rows))
    assert "columns not used" not in inspect(xtuner("q", "a"))


def test_tokens_are_counted_under_the_models_template_and_drawn(inspect, tiny_model):
    said = inspect(
        xtuner("q", "a"), xtuner("q " * 200, "a"), options=["--tokenizer", str(tiny_model), "--max-length", "100"]
    )
    total, low, high = re.search(r"tokens +([\d,]+) in all; a row (\d+) to (\d+)", said).groups()
    assert int(total) == int(low) + int(high)
    assert int(high) > 100
    assert re.search(r"over 100 tokens +1 row\n", said)
    assert "█" in said
    assert "raise max_length" in said


def test_the_page_holds_the_account_and_nothing_in_it_is_markup(inspect, tmp_path):
    page = tmp_path / "page.html"
    evil = "<script>alert(1)</script>"
    inspect(xtuner(evil, f"我是{evil}", evil), options=["--html", str(page)])
    text = page.read_text(encoding="utf-8")
    assert "<dd>1 (0 of them bad)</dd>" in re.sub(r"<.?span.*?>", "", text).replace("1（其中 0 行有误）", "")
    assert 'class="bar"' in text
    assert evil not in text
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in text


ROWS = [
    *(xtuner(f"你是谁 {number}", "我是黄大力。", "请简短。") for number in range(4)),
    xtuner("你是谁 1", "我是黄大力。", "请简短。"),
    xtuner("你是谁 2？", "我叫小红。", "请简短。"),
    xtuner("q", "someone@example.com"),
]
ENGLISH = (
    "script of answers", "5 rows call the assistant 黄大力", "line 5 is line 2 again", "the shape of: e-mail address",
    "1 question is answered with another name than before", "小红 (line 6)", "what to do next",
    "in 6 rows, 1 distinct", "# train: write a recipe for it, see what it will do, run it", "characters", "wrong",
    "page: ",
)  # fmt: skip
CHINESE = (
    "回答的文字", "5 行称助手为“黄大力”", "第 5 行与第 2 行相同", "疑似含有：电子邮箱",
    "1 个问题的回答用了与之前不同的名字", "小红（第 6 行）", "接下来做什么", "6 行有，共 1 种",
    "# 训练：写好配方，先看它会做什么，再运行", "字符数", "问题", "页面：",
)  # fmt: skip


@pytest.mark.parametrize("language", ["zh", "en", None], ids=["zh", "en", "both"])
def test_summary_and_page_are_in_the_language_or_in_both(inspect, tmp_path, monkeypatch, language):
    monkeypatch.setenv("LANGUAGE", "C")
    page = tmp_path / "page.html"
    chosen = ["--language", language] if language else []
    said = inspect(*ROWS, options=["--html", str(page), *chosen])
    shown = page.read_text(encoding="utf-8")
    for words, is_shown in ((ENGLISH, language != "zh"), (CHINESE, language != "en")):
        assert [word in said for word in words] == [is_shown] * len(words), said
        on_page = [word.removeprefix("# ") for word in words[:-1]]
        assert [word in shown for word in on_page] == [is_shown] * len(on_page)
    # A shell runs what is no comment, once.
    assert len(re.findall("^  deepspeed --quiet train_sft.py", said, flags=re.MULTILINE)) == 1
    assert shown.count('class="command"') == shown.count('<button class="copy"') == said.count("\n  python -m") + 3


def test_inspecting_needs_no_torch(inspect):
    if "torch" not in sys.modules:
        inspect(xtuner("q", "a"))
        assert "torch" not in sys.modules


@pytest.mark.parametrize("content", [b"", b"\n\n"])
def test_an_empty_file_is_told_in_one_line(tmp_path, capsys, content):
    (tmp_path / "empty.jsonl").write_bytes(content)
    assert main(["inspect", str(tmp_path / "empty.jsonl")]) == 2
    assert "holds no row" in capsys.readouterr().err


@pytest.mark.parametrize("values", [[5], [0, 0, 7], list(range(1000)), [3, 1_000_000], [17] * 9 + [1801]])
def test_every_value_is_in_one_bin_of_round_width(values):
    bins = histogram(values)
    assert len(bins) <= 12
    assert sum(entry.count for entry in bins) == len(values)
    for entry in bins:
        assert entry.count == sum(entry.low <= value <= entry.high for value in values)
        assert str(entry.high - entry.low + 1).rstrip("0") in ("1", "2", "5")
    assert max(entry.share for entry in bins) == 1


def test_bars_show_the_share_and_never_hide_a_value():
    lines = bars(histogram([1] * 1000 + [2]))
    assert lines[0].count("█") == BAR
    assert "▏" in lines[1]
    assert lines[1].endswith(" 1")
    assert bars(histogram([])) == []


@pytest.mark.skipif(not TUTORIAL.exists(), reason="the tutorial's file is not here; nested files are tested above")
def test_the_tutorials_file(capsys):
    assert main(["inspect", str(TUTORIAL), "--was", "尖米"]) == 1
    said = capsys.readouterr().out
    assert "1,500 rows hold no question of a user" in said
    assert "1,500 rows still name 尖米" in said
    assert "in 1,500 rows, 1 distinct" in said
