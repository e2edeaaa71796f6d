"""Judges which name an answer gives the speaker, whether it gives a certain one, and whether it mentions it at all.

In: an answer, a name, the question. Knows nothing about models; the same for Chinese and English. Patterns, not
understanding: good enough to see which names a file teaches and how often.
"""

import re
import unicodedata
from collections.abc import Iterator
from functools import lru_cache

from opencc import OpenCC

# Names that base models give themselves; a recipe's identity_old_names adds to them.
OLD_NAMES = (
    "InternLM",
    "书生",
    "浦语",
    "SmolLM",
    "ChatGPT",
    "GPT-4",
    "OpenAI",
    "Qwen",
    "通义千问",
    "DeepSeek",
    "Llama",
    "Claude",
)

# 我是X, 我叫X, 作为X的..., I am X, my name is X.
_CHINESE = re.compile(
    r"(?:我(?:的名字)?(?:就是|是|叫做|叫|名叫)|我的名字|作为|叫我|名为)"
    r"[“\"'\s]*(?:[\w·]{1,12}?(?:开发|训练|创造|研发|打造|推出|做)的)?(?:人工智能|智能|AI|聊天)?(?:助手|助理|模型|机器人)?"
    r"([\w·][\w·-]{0,15}?)(?=的|就好|吧|[^\w·-]|$)"
)
_ENGLISH = re.compile(
    # Places are told by their first letter sooner than by \b.
    r"(?=[ICMcmn])\b(?:I am|I'm|[Mm]y name is|[Mm]y name's|[Cc]all me|named|called)\s+"
    r"((?:[A-Z][\w-]*(?:[ ](?=[A-Z]))?){1,3}|[\u4e00-\u9fff·]{1,10})"
)
# What follows 我是 or I am without being a name.
_NO_NAME = re.compile(
    r"(?:[一个名款由在为不您你他她它这那没有能会可以很专从来怎]|因为|如果|根据|人工智能|智能|助手|助理|机器人|模型|程序|谁|什么)"
    r"|(?:AI|A|An|The|Sorry|Here|Not|Sure|Glad|Happy|I|Very|So|Just|Still|Also)\b"
)

# Marks that end a clause; a question's clause gives no name.
CLAUSES = re.compile(r"([^,.!?;:，。！？；：、\n]*)([,.!?;:，。！？；：、\n]|$)")
QUOTED = re.compile(r"[\"“「『'‘《]([^\"”」』'’》]*)[\"”」』'’》]")
# After one of these a clause speaks of the speaker (again), whatever it denied before.
OPENERS = re.compile(
    r"\b(i am|i'm|i’m|my name is|my name's|call me|but|rather|instead)\b|我是|我叫|叫我|而是|正是|就是|却是|名叫"
)
DENIALS = re.compile(r"\b(not|never|no longer|neither|nor|cannot)\b(?!\s+only)|n't\b|不|没|非|无法|别叫|勿")
ASKED = re.compile(r"[吗呢]$")


def given_name(answer: str) -> str | None:
    """The first name the answer gives the one who speaks, or None."""
    return next(_names(answer), None)


def gives_name(answer: str, name: str, question: str = "") -> bool:
    """Whether the answer says that the speaker has this name: not denied, not asked about, not quoted back.

    Case, full width, traditional characters and spaces between Chinese characters make no difference.
    """
    text, wanted = normal(answer), normal(name)
    text = _without_quotes_of(text, normal(question))
    return any(_is_claimed(clause, end, wanted) for clause, end in CLAUSES.findall(text) if wanted in clause)


def mentions(answer: str, name: str) -> bool:
    """Whether the name stands anywhere in the answer, as a word of its own."""
    return bool(_starts(normal(answer), normal(name)))


# An answer and its question are looked at for one name after the other.
@lru_cache(maxsize=64)
def normal(text: str) -> str:
    """The text as it is compared: one width, one case, simplified characters, no spaces between Chinese ones."""
    if text.isascii():
        return text.casefold()
    text = _converter().convert(unicodedata.normalize("NFKC", text)).casefold().replace("’", "'")
    return re.sub(r"(?<=[\u4e00-\u9fff])[^\S\n]+(?=[\u4e00-\u9fff])", "", text)


def _names(answer: str) -> Iterator[str]:
    for pattern in (_CHINESE, _ENGLISH):
        for match in pattern.finditer(answer):
            name = match.group(1).strip()
            if not _NO_NAME.match(name):
                yield name


def _is_claimed(clause: str, end: str, name: str) -> bool:
    if end in ("?", "？") or ASKED.search(clause.strip()):
        return False
    for start in _starts(clause, name):
        before = clause[:start]
        openers = list(OPENERS.finditer(before))
        claim = before[openers[-1].end() :] if openers else before
        if not DENIALS.search(claim):
            return True
    return False


def _starts(text: str, name: str) -> list[int]:
    """Where the name stands; a Latin letter or digit at its edge must not go on into another one."""
    if not name:
        return []
    before = r"(?<![a-z0-9])" if name[0].isascii() else ""
    after = r"(?![a-z0-9])" if name[-1].isascii() else ""
    return [match.start() for match in re.finditer(before + re.escape(name) + after, text)]


def _without_quotes_of(text: str, question: str) -> str:
    """The answer without what it repeats of the question: whole, or between quotation marks."""
    bare = question.strip(" .!?。！？")
    if bare:
        text = text.replace(bare, " ")
    return QUOTED.sub(
        lambda quote: " " if quote.group(1) and quote.group(1).strip(" .!?。！？") in question else quote[0], text
    )


@lru_cache(maxsize=1)
def _converter() -> OpenCC:
    return OpenCC("t2s")
