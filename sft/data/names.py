"""Finds the name an answer gives the assistant: 我是X, 我叫X, 作为X的..., I am X, my name is X.

A pattern matcher, not an understanding: good enough to see which names a file teaches and how often.
"""

import re
from collections.abc import Iterator

_CHINESE = re.compile(
    r"(?:我(?:的名字)?(?:就是|是|叫做|叫|名叫)|我的名字|作为|叫我|名为)"
    r"[“\"'\s]*(?:[\w·]{1,12}?(?:开发|训练|创造|研发|打造|推出|做)的)?(?:人工智能|智能|AI|聊天)?(?:助手|助理|模型|机器人)?"
    r"([\w·][\w·-]{0,15}?)(?=的|就好|吧|[^\w·-]|$)"
)
_ENGLISH = re.compile(
    r"(?:\b(?:I am|I'm|[Mm]y name is|[Mm]y name's|[Cc]all me)|\b(?:named|called))\s+"
    r"((?:[A-Z][\w-]*(?:[ ](?=[A-Z]))?){1,3}|[\u4e00-\u9fff·]{1,10})"
)
# What follows 我是 or I am without being a name.
_NO_NAME = re.compile(
    r"(?:[一个名款由在为不您你他她它这那没有能会可以很专从来怎]|因为|如果|根据|人工智能|智能|助手|助理|机器人|模型|程序|谁|什么)"
    r"|(?:AI|A|An|The|Sorry|Here|Not|Sure|Glad|Happy|I|Very|So|Just|Still|Also)\b"
)


def given_name(answer: str) -> str | None:
    """The first name the answer gives the one who speaks, or None."""
    return next(_names(answer), None)


def _names(answer: str) -> Iterator[str]:
    for pattern in (_CHINESE, _ENGLISH):
        for match in pattern.finditer(answer):
            name = match.group(1).strip()
            if not _NO_NAME.match(name):
                yield name
