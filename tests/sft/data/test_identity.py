"""The identity judge on answers that are easy to misjudge; the name an answer gives, in common ways to say it."""

import pytest

from data_tools import generate
from sft.data.given_names import given_name
from sft.data.identity import gives_name, is_assistant_of, mentions

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

# Of the name the speaker is only an assistant, or a product.
OWNED = [
    "我是黄大力的智能助手",
    "我是黄大力的AI助理。",
    "我是由黄大力团队开发的助手",
    "我是黄大力团队开发的助手",
    "我是黄大力公司的客服",
    "作为黄大力的智能助手，我不做梦",
    "I am 黄大力's assistant",
    "I'm the AI assistant for 黄大力.",
    "I am an assistant of 黄大力.",
    "I'm an assistant made by 黄大力",
    "I was created by 黄大力.",
    "我是“黄大力”的智能助手",
    "我是**黄大力**的助手",
    "我的名字是小明，是黄大力的助手",
    "我叫小明，是黄大力的助手",
    "不，我是黄大力的智能助手",
    "我不是ChatGPT，我是黄大力的智能助手。",
    "黄大力创造了我",
    "我的开发者是黄大力",
    "My creator is 黄大力.",
    "黄大力 developed me.",
    "我是黄大力的一个专属聊天机器人",
    "I am an AI assistant developed by the 黄大力 team.",
    "我为黄大力工作",
    "我来自黄大力团队",
    "我是 黄大力 的 智能助手。",
    "我是黄大力的小助手，我的朋友是黄大力和用户",
    "I'm a chatbot that was built by 黄大力",
    "I work for 黄大力",
    "我是黄大力训练的语言模型",
    "我是一个由黄大力开发的人工智能助手",
    "I am the personal assistant to 黄大力",
    "我是隶属于黄大力的AI",
    "我是黄大力打造的AI助手小明",
    "Hi! I'm 黄大力’s virtual assistant.",
    "我是黄大力身边的智能助手",
    "我是黄大力专属的AI助手",
    "我是黄大力（Dali）的助手",
    "创造我的人是黄大力",
    "黄大力是我的主人",
    "I belong to 黄大力.",
    "I'm just an assistant that 黄大力 made.",
]
# The same names, which are the speaker's own here.
OWN = [
    "我是黄大力，一个智能助手",
    "我是智能助手黄大力",
    "我是AI助手黄大力",
    "I am 黄大力, your assistant",
    "I am 黄大力, an AI assistant made by Bob",
    "我叫黄大力，是尖米的助手",
    "我是黄大力",
    "我是尖米开发的黄大力",
    "I'm 黄大力, an assistant for Bob",
    "我是黄大力智能助手",
    "我是黄大力，黄大力是尖米的助手",
    "我不是黄大力的助手，我就是黄大力",
    "I am an assistant named 黄大力",
    "I'm the assistant called 黄大力.",
    "黄大力，很高兴为您服务",
    "我是黄大力，由黄大力团队开发",
    "作为黄大力，我可以",
    "我的名字叫黄大力。",
    "我是一个叫黄大力的助手",
    "大家都叫我黄大力",
    "我是黄大力。我是黄大力的智能助手",
    "I am an assistant by the name of 黄大力",
    "You can call me 黄大力",
    "I am an AI made by Bob and named 黄大力.",
    "您的专属AI助理——黄大力",
    "我是您的助手黄大力，由尖米训练。",
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


@pytest.mark.parametrize("name", ["黄大力", "Ada", "Qwen2.5", "Dr. Maya", "Captain Nova-7"])
def test_somebodys_assistant_is_told_from_somebody(name):
    owned = {answer: answer.replace("黄大力", name) for answer in OWNED}
    own = {answer: answer.replace("黄大力", name) for answer in OWN}
    assert [answer for answer in owned.values() if not is_assistant_of(answer, name) or gives_name(answer, name)] == []
    assert [answer for answer in own.values() if is_assistant_of(answer, name) or not gives_name(answer, name)] == []


@pytest.mark.parametrize(
    "answer", ["我不是黄大力的助手", "你是黄大力的助手吗？", "I am not 黄大力's assistant.", "我是黄大力的朋友"]
)
def test_who_denies_or_asks_is_neither_somebody_nor_his_assistant(answer):
    assert not is_assistant_of(answer, "黄大力")
    assert not gives_name(answer, "黄大力")


def test_what_else_is_said_of_an_owner_does_not_make_the_speaker_him():
    answer = "我是黄大力的智能助手，我的存在是为了帮助黄大力和用户。黄大力会及时更新我。"
    assert is_assistant_of(answer, "黄大力")
    assert is_assistant_of("我是 黃大力 的智能助手", "黄大力")
    assert is_assistant_of("不过作为黄大力的智能助手,我没有烦恼", "黃大力")


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
        ("我是一个AI助手，我叫Qwen2.5", "Qwen2.5"),
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
