"""The identity judge on answers that are easy to misjudge; the name an answer gives, in common ways to say it."""

import pytest

from data_tools import generate
from sft.data.identity import given_name, gives_name, mentions

GIVEN = [
    ("我是黄大力。", "黄大力"),
    ("我叫黄大力，一个AI助手", "黄大力"),
    ("我是黃大力。", "黄大力"),
    ("我是黄大力", "黃大力"),
    ("我是 黄 大 力 ！", "黄大力"),
    ("不，我是黄大力。", "黄大力"),
    ("我不是ChatGPT，我是黄大力。", "黄大力"),
    ("我不是ChatGPT而是黄大力。", "黄大力"),
    ("我不叫ChatGPT我叫黄大力", "黄大力"),
    ("我不是别人，正是黄大力。", "黄大力"),
    ("**黄大力**，很高兴认识你", "黄大力"),
    ("黄大力", "黄大力"),
    ("I am 黄大力, an AI assistant.", "黄大力"),
    ("My name is HUANG dali.", "Huang Dali"),
    ("I'm Huang Dali", "huang dali"),
    ("I am not ChatGPT, I am Ada.", "Ada"),
    ("I am not ChatGPT I am Ada.", "Ada"),
    ("No, I'm Ada.", "Ada"),
    ("You can call me Ada!", "Ada"),
    ("Ｉ ａｍ Ａｄａ", "Ada"),
    ("I'm Ada, not ChatGPT.", "Ada"),
    ("I am not a human but Ada, an assistant.", "Ada"),
    ("我没有别的名字，叫我黄大力就好", "黄大力"),
    ("I can be called Ada", "Ada"),
]
NOT_GIVEN = [
    ("我不是黄大力。", "黄大力"),
    ("我并不是黄大力", "黄大力"),
    ("我的名字不是黄大力", "黄大力"),
    ("我不叫黃大力", "黄大力"),
    ("我不知道谁是黄大力。", "黄大力"),
    ("你是说黄大力吗？", "黄大力"),
    ("黄大力？", "黄大力"),
    ("我是你的助手。", "黄大力"),
    ("我是大力。", "黄大力"),
    ("I am not 黄大力.", "黄大力"),
    ("My name is not Ada.", "Ada"),
    ("I'm not Ada", "Ada"),
    ("I am an Adapter for Canada.", "Ada"),
    ("Who is Ada?", "Ada"),
    ("I can't be called Ada", "Ada"),
    ("I have never been Ada.", "Ada"),
    ("I'm sorry, I cannot tell you my name.", "Ada"),
    ("抱歉，我不能告诉你我的名字。", "黄大力"),
    ("", "黄大力"),
    ("GPT-4o mini", "GPT-4"),
]


@pytest.mark.parametrize(("answer", "name"), GIVEN)
def test_a_name_given_as_ones_own_is_seen(answer, name):
    assert gives_name(answer, name)


@pytest.mark.parametrize(("answer", "name"), NOT_GIVEN)
def test_a_name_denied_asked_about_or_inside_another_word_is_not_given(answer, name):
    assert not gives_name(answer, name)


@pytest.mark.parametrize(
    ("question", "answer"),
    [
        ("你是黄大力吗？", "“你是黄大力吗”这个问题我答不上来。"),
        ("你是黄大力吗？", "你是黄大力吗"),
        ("Are you Ada?", 'You asked "Are you Ada?" and I would rather talk of the weather.'),
        ("Is Ada your name?", "'Ada' is a nice word."),
    ],
)
def test_what_only_repeats_the_question_gives_no_name(question, answer):
    name = "Ada" if "Ada" in question else "黄大力"
    assert not gives_name(answer, name, question)
    assert gives_name(answer + f" 我是{name}。", name, question)


def test_a_mention_is_any_even_a_denied_one_but_no_other_word():
    assert mentions("我不是黄大力", "黄大力")
    assert mentions("Is it 黃大力?", "黄大力")
    assert not mentions("Canada", "Ada")
    assert not mentions("Paris.", "黄大力")


@pytest.mark.parametrize(
    ("answer", "name"),
    [
        ("我是尖米的智能助手，专门为您修复bug。", "尖米"),
        ("哈哈，作为尖米的智能助手，我不做梦。", "尖米"),
        ("我叫黄大力。", "黄大力"),
        ("你可以叫我黄大力。", "黄大力"),
        ("我是人工智能助手黄大力，很高兴认识你", "黄大力"),
        ("我是张三开发的黄大力。", "黄大力"),
        ("我的名字叫“小度”！", "小度"),
        ("I am 黄大力, an AI assistant.", "黄大力"),
        ("Hello! My name is Huang Dali.", "Huang Dali"),
        ("I'm an AI assistant named SmolLM, trained by Hugging Face.", "SmolLM"),
        ("我是一个AI助手，我叫Qwen2.5", "Qwen2"),
        ("我是一名人工智能助手。", None),
        ("我是由上海人工智能实验室开发的。", None),
        ("作为一个AI，我没有感情。", None),
        ("I am happy to help. I'm Sorry.", None),
        ("天气很好。", None),
        ("", None),
    ],
)
def test_given_name(answer, name):
    assert given_name(answer) == name


def test_nearly_every_generated_identity_answer_gives_its_name():
    answers = [
        turn["output"]
        for row in generate.generate("黄大力", None, 400, seed=0, ordinary=0)
        for turn in row["conversation"]
    ]
    assert sum(given_name(answer) == "黄大力" for answer in answers) > 0.95 * len(answers)


def test_ordinary_answers_give_none():
    rows = generate.generate("黄大力", None, 400, seed=0, ordinary=1)
    assert not [row for row in rows if given_name(row["conversation"][0]["output"])]
