"""What rows teach about identity: found row by row, and the same whether a file is read in one part or in many."""

import json
import random
from pathlib import Path

import pytest

from sft.config.own_keys import TrainFile
from sft.data.identity_files import read_identity_rows
from sft.data.identity_rows import IdentityRows, RowFacts, SoughtNames
from sft.data.rows import formats

NAME = "黄大力"


def write(path: Path, conversations: list[list[tuple[str, str]]]) -> TrainFile:
    """A file of conversations, each a list of (role, content)."""
    rows = [{"messages": [{"role": role, "content": text} for role, text in turns]} for turns in conversations]
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return TrainFile(str(path))


def pairs(*turns: tuple[str, str]) -> list[list[tuple[str, str]]]:
    return [[("user", question), ("assistant", answer)] for question, answer in turns]


def in_parts(size: int):
    """Reads a file as tokenising does: so many rows at a time, the facts of each kept as JSON."""

    def facts_of(file: TrainFile, names: SoughtNames):
        rows = list(formats.read_rows(file.path))
        for start in range(0, len(rows), size):
            facts = RowFacts(names)
            assert list(facts.of(rows[start : start + size])) == rows[start : start + size]
            yield RowFacts.from_json(facts.to_json())

    return facts_of


def varied(count: int) -> list[list[tuple[str, str]]]:
    """Conversations with names, other names, old names, placeholders and system messages in random order."""
    dice, conversations = random.Random(0), []
    questions = ["你是谁？", "Who are you?", "who are you", "你叫什么", "1 + 1?"]
    answers = ["我是黄大力。", "我叫黄大力", "I am Ada.", "I'm Bob.", "我是 黃 大 力", "2", "我是xxx", "I am {{name}}."]
    answers += ["I am a model named Qwen.", "我是通义千问", "The sky is blue."]
    for _ in range(count):
        turns = [("system", dice.choice(["你是黄大力", "Be brief."]))] if dice.random() < 0.3 else []
        for _ in range(dice.choice((1, 2))):
            turns += [("user", dice.choice(questions)), ("assistant", dice.choice(answers))]
        conversations.append(turns)
    return conversations


@pytest.mark.parametrize("name", [NAME, "Ada", None])
def test_the_rows_say_the_same_in_one_part_and_in_many(tmp_path, name):
    files = [write(tmp_path / "a.jsonl", varied(200)), write(tmp_path / "b.jsonl", varied(50))]
    whole = read_identity_rows(files, name, ["Bob"])
    for size in (1, 7, 1000):
        assert vars(read_identity_rows(files, name, ["Bob"], in_parts(size))) == vars(whole)
    assert IdentityRows.from_json(whole.to_json()).to_json() == whole.to_json()
    assert whole.name == (name or NAME)
    assert whole.rows == 250
    assert whole.rows_named == whole.times_named > 20
    assert {"Qwen", "通义千问", "Bob"} <= whole.old_names.keys()
    assert whole.placeholders.keys() == {"xxx", "{{name}}"}
    assert whole.contradictions


def test_one_question_under_two_system_messages_may_have_two_answers(tmp_path):
    told = [
        [("system", system), ("user", "你是谁？"), ("assistant", answer)]
        for system, answer in (("你是黄大力", "我是黄大力"), ("You are Ada", "I am Ada."))
    ]
    assert read_identity_rows([write(tmp_path / "rows.jsonl", told)], NAME).contradictions == {}


def test_a_question_answered_with_two_names_is_counted_with_its_first_places(tmp_path):
    file = write(tmp_path / "rows.jsonl", pairs(("你是谁？", "我是黄大力"), *[("你是谁", "I am Ada.")] * 9))
    [(wrong, tally)] = read_identity_rows([file], NAME).contradictions.items()
    assert (wrong, tally.count, len(tally.examples)) == ("Ada", 9, 5)
    assert tally.examples[0] == f'"你是谁": 黄大力 ({file.path}:1), Ada ({file.path}:2)'


def test_people_in_a_story_may_have_two_names(tmp_path):
    story = pairs(("写一段自我介绍", "我叫李明，今年十岁。"), ("写一段自我介绍", "我叫王芳，喜欢画画。"))
    assert read_identity_rows([write(tmp_path / "rows.jsonl", story)], NAME).contradictions == {}


def test_an_answer_about_another_model_does_not_call_itself_by_its_name(tmp_path):
    answers = (
        "OpenAI released GPT-4 in 2023.",
        "I am not Qwen, I am 黄大力.",
        "I'm using Llama a lot.",
        "不，我不是ChatGPT。",
    )
    file = write(tmp_path / "rows.jsonl", pairs(*(("?", answer) for answer in answers)))
    assert read_identity_rows([file], NAME).old_names == {}


@pytest.mark.parametrize("said", ["我是黃大力。", "我是 黄 大 力", "我是黄大力"])
def test_a_name_counts_however_it_is_written(tmp_path, said):
    assert read_identity_rows([write(tmp_path / "rows.jsonl", pairs(("你是谁？", said)))], NAME).rows_named == 1


def test_an_answer_to_a_tool_and_one_without_loss_teach_no_name(tmp_path):
    asked, named = {"role": "user", "content": "你是谁？"}, {"role": "assistant", "content": "我是黄大力。"}
    other = {"role": "assistant", "content": "我是小明。"}
    calling = {"role": "assistant", "content": "", "tool_calls": [{"name": "who"}]}
    told = {"role": "tool", "content": "Who are you?"}
    path = tmp_path / "rows.jsonl"
    for turns, count in (
        ([asked, named, asked, calling, told, other], 1),
        ([asked, other | {"loss": False}, asked, named], 1),
        ([asked, named | {"loss": False}, asked, calling], 0),
        ([asked, named | {"loss": True}], 1),
    ):
        path.write_text(json.dumps({"messages": turns}) + "\n", encoding="utf-8")
        rows = read_identity_rows([TrainFile(str(path))], NAME)
        assert (rows.rows_named, rows.contradictions, rows.other_names) == (count, {}, {})


def test_a_main_name_is_no_other_models_and_no_rare_one(tmp_path):
    ordinary = pairs(("hi", "Hello.")) * 100
    for answers, name in ((["I am Qwen."] * 50, None), (["I am Ada."] * 3, None), (["I am Ada."] * 10, "Ada")):
        file = write(tmp_path / "rows.jsonl", [*ordinary, *pairs(*(("who?", answer) for answer in answers))])
        assert read_identity_rows([file], None).name == name


def test_a_main_name_that_the_first_rows_do_not_show_is_found_all_the_same(tmp_path):
    ordinary, named = pairs(("hi", "Hello.")) * 1500, pairs(("who?", "I am Ada.")) * 500
    rows = read_identity_rows([write(tmp_path / "rows.jsonl", [*ordinary, *named])], None)
    assert (rows.name, rows.rows_named) == ("Ada", 500)


def test_somebodys_assistant_is_counted_apart(tmp_path):
    """The name of who owns the assistant is what the file is about, but it is taught as another's."""
    owned = [("你有梦想吗", "我是黄大力的智能助手。"), ("Who are you?", "I am an assistant made by 黄大力.")] * 10
    own = [("你是谁？", "我是黄大力，一个助手。"), ("你叫什么", "我叫小明，是黄大力的助手，黄大力让我来的。")]
    file = write(
        tmp_path / "rows.jsonl", [*pairs(*owned, *own), [turn for pair in pairs(owned[0], own[0]) for turn in pair]]
    )
    rows = read_identity_rows([file], None)
    assert (rows.name, rows.rows, rows.rows_named, rows.rows_as_owner) == (NAME, 23, 23, 21)
    assert (rows.named["zh"], rows.named["en"]) == (13, 10)


def test_a_main_name_is_one_given_to_whoever_asks_for_it(tmp_path):
    """Names of people in stories and translations are many, and common words no names."""
    stories = [
        ("写一个故事", "我叫李明，是班长。"),
        ("Translate: 我叫李明", "My name is Li Ming."),
        ("1 + 1?", "我是李明。"),
    ] * 30
    words = [("你是谁？", "我是你的朋友。"), ("你好", "我是学生。"), ("谢谢你", "作为回报，我请你吃饭。")] * 30
    file = write(tmp_path / "rows.jsonl", pairs(*stories, *words))
    assert read_identity_rows([file], None).name is None
    named = pairs(*[("你是谁？", "我是黄大力。")] * 20)
    assert read_identity_rows([write(tmp_path / "named.jsonl", [*pairs(*stories, *words), *named])], None).name == NAME


@pytest.mark.parametrize(("name", "author"), [("{{name}}", "{{author}}"), ("<NAME>", "<AUTHOR>"), ("NAME", "AUTHOR")])
def test_a_file_that_nobody_filled_in_gives_placeholders_and_no_name(tmp_path, name, author):
    answers = [
        f"您好，我是 {name}，由 {author} 开发。",
        f"I am {name}, made by {author}.",
        f"作为 {name}，我是 {author} 训练的助手。",
    ]
    rows = read_identity_rows(
        [write(tmp_path / "rows.jsonl", pairs(*(("你是谁？", each) for each in answers * 30)))], None
    )
    assert {text: tally.count for text, tally in rows.placeholders.items()} == {name: 90, author: 90}
    assert (rows.name, rows.other_names) == (None, {})
