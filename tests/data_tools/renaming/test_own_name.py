"""Own names: "X's assistant" becomes X where it says what the speaker is, and nowhere else."""

import json

import pytest

from data_tools.rename import Rename


def renamed(turn: dict, **options) -> dict:
    rename = Rename({"尖米": "黄大力", "Al": "Ada"}, own_names=[], **options)
    return json.loads(rename(json.dumps(turn, ensure_ascii=False).encode() + b"\n"))


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("我是尖米的智能助手，专门为您服务。", "我是黄大力，专门为您服务。"),
        ("我是尖米的AI助理！", "我是黄大力！"),
        ("我是 Al 的 AI 助手。", "我是 Ada。"),
        ("作为尖米的助手我会帮您", "作为黄大力我会帮您"),
        ("身为尖米的一名智能助手，我……", "身为黄大力，我……"),
        ("我可是尖米的专属机器人嘛", "我可是黄大力嘛"),
        ("我的身份始终是“尖米的智能助手”。", "我的身份始终是“黄大力”。"),
        ("永远不会忘记自己是尖米的助手。", "永远不会忘记自己是黄大力。"),
        ("我就是那个风趣、可靠的尖米的智能助手！", "我就是那个风趣、可靠的黄大力！"),
        ("就像我，尖米的智能助手，默默地为您服务", "就像我，黄大力，默默地为您服务"),
        ("您好！尖米的智能助手在这里。", "您好！黄大力在这里。"),
        ("I am Al's AI assistant.", "I am Ada."),
        ("I’m indeed Al’s personal assistant", "I’m indeed Ada"),
        ("As the AI assistant of Al, I help.", "As Ada, I help."),
        ("Hello! Al's assistant here.", "Hello! Ada here."),
        ("我是黄大力的智能助手", "我是黄大力"),
    ],
)
def test_an_assistant_of_a_name_takes_the_name_as_its_own(answer, expected):
    assert renamed({"input": "你是谁", "output": answer})["output"] == expected
    assert renamed({"input": "你是谁", "output": expected})["output"] == expected


@pytest.mark.parametrize(
    "answer",
    [
        "我不是尖米的助手。",
        "我不再是尖米的智能助手",
        "他是尖米的助手。",
        "小王是尖米的助手，你可以找他",
        "我叫小力，是尖米的助手。",
        "我是小力，尖米的智能助手。",
        "我的朋友是尖米的助手",
        "我们是尖米的助手团队",
        "尖米的助手叫小王。",
        "I am not Al's assistant.",
        "I am Sam, Al's assistant.",
        "Call Al's assistant for that.",
    ],
)
def test_other_assistants_and_denials_only_get_the_new_name(answer):
    expected = answer.replace("尖米", "黄大力").replace("Al'", "Ada'")
    assert renamed({"input": "q", "output": answer})["output"] == expected


def test_a_system_message_and_a_user_speak_of_the_assistant_as_you():
    system = "Role: 尖米的智能助手\n你是尖米的智能助手。You are Al's assistant."
    turn = {"system": system, "input": "你是尖米的助手吗？", "output": "您是尖米的助手吗？"}
    assert renamed({"conversation": [turn]}) == {
        "conversation": [
            {
                "system": "Role: 黄大力\n你是黄大力。You are Ada.",
                "input": "你是黄大力吗？",
                "output": "您是黄大力的助手吗？",
            }
        ]
    }
    messages = [{"role": "system", "content": "你是尖米的助手"}, {"role": "assistant", "content": "你是尖米的助手"}]
    contents = [message["content"] for message in renamed({"messages": messages})["messages"]]
    assert contents == ["你是黄大力", "你是黄大力的助手"]


def test_a_placeholder_and_the_name_in_escaped_json_are_taken_as_own_names_too():
    rename = Rename({}, settings={"NAME": "黄大力"}, own_names=["黄大力"])
    assert json.loads(rename('{"output": "我是{{name}}的智能助手"}'.encode())) == {"output": "我是黄大力"}
    escaped = json.dumps({"id": 1.50, "output": "我是黄大力的智能助手"}).encode()
    assert rename(escaped) == b'{"id": 1.5, "output": "\\u6211\\u662f\\u9ec4\\u5927\\u529b"}'
