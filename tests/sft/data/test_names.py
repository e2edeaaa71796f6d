"""The name an answer gives: common ways to say it, in both languages, and what only looks like it."""

import pytest

from data_tools import generate
from sft.data.names import given_name


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
