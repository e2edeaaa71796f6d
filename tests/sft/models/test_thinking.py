"""How a template shows thinking is learned from what it renders, and found again in answers."""

import pytest

from sft.models.chat_template import ChatTemplate
from sft.models.thinking import Thinking, find_thinking
from tests.support.chat_templates import CHANNELS, CLOSED_BY_NAME, HEADERS, OPENED, SWALLOWS, THINKING, with_controls
from tests.support.encoding import CHATML

# Thinking is cut off what answers hold, and no place is left for it.
CUTS = CHATML.replace("message['content']", "message['content'].split('<think>')[-1]")
# gpt-oss's kind: thinking is a message of its own, closed by a token that ends messages.
ANALYSIS = CHANNELS.replace(
    "{{ '<|final|>'", "{{ '<|start|>' + m.reasoning_content + '<|eot|><|h|>' if m.reasoning_content }}{{ '<|final|>'"
)


@pytest.mark.parametrize(
    ("template", "kwargs", "expected"),
    [
        (CHATML, {}, None),
        (HEADERS, {}, None),
        (SWALLOWS, {}, None),
        (THINKING, {}, Thinking("<think>", "</think>")),
        (THINKING, {"enable_thinking": False}, None),
        # It has no place for reasoning, and opens thinking itself.
        (OPENED, {}, Thinking("", "</think>")),
        (CUTS, {}, Thinking("<think>", "</think>")),
        (ANALYSIS, {}, Thinking("<|start|>", "<|eot|><|h|><|final|>")),
        (CLOSED_BY_NAME, {}, Thinking("", "<|/h|>think<|final|>")),
    ],
)
def test_what_opens_and_closes_thinking_is_learned(tokenizer, template, kwargs, expected):
    assert find_thinking(ChatTemplate(with_controls(tokenizer, template, kwargs))) == expected


def test_thinking_is_found_in_an_answer():
    tags, opened = Thinking("<think>", "</think>"), Thinking("", "</think>")
    assert tags.goes_on("<think>am I")
    assert not tags.goes_on("I am")
    assert not tags.goes_on("<think>am I Qwen?</think>")
    assert opened.goes_on("am I")
    assert not opened.goes_on("am I Qwen?</think>I am")
    assert tags.removed("<think>\nam I Qwen?\n</think>\n\nI am 黄大力.") == "I am 黄大力."
    assert tags.removed("I am 黄大力.") == "I am 黄大力."
