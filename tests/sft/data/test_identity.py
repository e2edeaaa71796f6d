"""The identity judge on answers that are easy to misjudge."""

import pytest

from sft.data.identity import gives_name, mentions

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
