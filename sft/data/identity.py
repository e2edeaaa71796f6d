"""Judges whose name a certain one is by an answer: the speaker's own, that of who owns or made it, or only mentioned.

In: an answer, a name, the question. Knows nothing about models; the same for Chinese and English. Patterns, not
understanding: good enough to see which names a file teaches and how often.
"""

import re
import unicodedata
from functools import lru_cache

from opencc import OpenCC

from sft.data.given_names import MAKES

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

# Whose name an answer gives: the speaker's own, or that of who owns or made the speaker.
OWN, OWNER, _SURELY_OWN = "own", "owner", "surely own"

# What ends a clause; a point within Qwen2.5 does not. A question's clause gives no name.
CLAUSE_END = re.compile(r"[,!?;:，。！？；：、\n]|\.(?![a-z0-9])")
QUOTED = re.compile(r"[\"“「『'‘《]([^\"”」』'’》]*)[\"”」』'’》]")
# After one of these a clause speaks of the speaker (again), whatever it denied before.
OPENERS = re.compile(
    r"\b(i am|i'm|i’m|my name is|my name's|call me|but|rather|instead)\b|我是|我叫|叫我|而是|正是|就是|却是|名叫"
)
DENIALS = re.compile(
    r"\b(not|never|no longer|neither|nor|cannot)\b(?!\s+only)|n't\b|不(?![过仅但只止光])|没|非|无法|别叫|勿"
)
ASKED = re.compile(r"[吗呢]$")
# As much of a text before a name as may belong to its clause.
CLAUSE_CHARACTERS = 200

# What somebody has who is not one himself: "X's assistant", "made by X", X的助手, 由X开发.
_MADE = (
    "(?:made|trained|built|created|developed|designed|invented|powered|provided|owned|programmed|produced|released|"
    "fine-tuned|launched|employed)"
)
_GROUP = "(?:有限公司|公司|集团|团队|实验室|工作室|研究院|研究所|大学|学院|科技|银行|医院|商城|老师|先生|女士|博士)"
_OWNED = (
    "(?:助手|助理|机器人|客服|模型|管家|伙伴|产品|作品|秘书|顾问|智能体|分身|代理|员工|程序|系统|人工智能|代言人|发言人"
    "|(?<![a-z])ai(?![a-z]))"
)
_OWNED_EN = (
    r"(?:assistant|ai|bot|chatbot|model|helper|agent|product|creation|secretary|butler|companion|employee|representative|"
    r"program|system|robot|project|work)s?\b"
)
_MAKER_EN = r"(?:creator|developer|maker|owner|author|boss|master|company|inventor)s?"
_AFTER_AN_OWNER = re.compile(
    rf"[”\"'」』*_\s]*(?:[（(][^（()）]{{1,20}}[)）])?\s*(?:{_GROUP}*(?:旗下|本人|家|自家|自主|独立|官方|精心|最新|共同|所)*"
    rf"{MAKES}(?:和{MAKES})?(?:出来|而成)?(?:的|了我|出我|$)"
    rf"|{_GROUP}*(?:旗下|本人|家|自家|官方|专属|身边|身旁|手下)?的[^,，。！？!?\n]{{0,14}}?{_OWNED}"
    rf"|{_GROUP}+(?:旗下|官方)?的|是我的(?:开发|创造|创建|主人|老板|作者|制作)"
    rf"|{MAKES}了?我|(?:工作|服务|效力|打工)"
    rf"|(?:,? (?:inc|corp|ltd|labs?|team|company|university)\.?){{0,2}}(?:'s?|’s?) (?:[\w-]+ ){{0,5}}?{_OWNED_EN}"
    rf"|(?:team|company)(?:'s|’s) |(?:who |which |that |has |have )*{_MADE}(?: me\b|$)|is my (?:\w+ )?{_MAKER_EN})"
)
_BEFORE_AN_OWNER = re.compile(
    rf"(?:{_OWNED_EN},? (?:(?:that|which|who) (?:is|was|has been) |\w+ly )*(?:{_MADE} )?(?:of|by|for|from|at|to)"
    rf"|{_MADE} (?:and {_MADE} )?by(?: (?!and|named|called)\w+){{0,4}}?|on behalf of"
    rf"|(?:work|works|working|speak|serve|here) (?:for|at)"
    rf"|belongs? to|{_MAKER_EN}(?:'s name)? (?:is|are|was)"
    r"|(?:由|隶属于?|属于|来自于?|服务于|受雇于|效力于|出自)"
    r"|(?:开发者|作者|创造者|创建者|主人|老板|开发团队|公司|开发商)(?:的名字)?(?:是|叫|为)|我的(?:人|公司|团队)就?是)"
    rf"(?: the| a| company)*[“\"'「『*_\s]*$"
)
# What stands right before a name that is the speaker's own; else it may be about somebody else.
_OWN = re.compile(
    r"(?:我就?[是叫]|叫我|名字就?[是叫为]|名[叫为]|称呼?我为?|而是|正是|却是"
    r"|\b(?:i am|i'm|name is|name's|call me|named|called|known as))"
    r"(?:[“\"'「『*_\s]|一[个名位款]|人工智能|智能|聊天|助手|助理|机器人|大?模型"
    r"|\b(?:an?|the|your|ai|assistant|model|bot)\b)*$"
)
# 我是一个叫X的助手 is the name of the assistant.
_ONE_CALLED = re.compile(r"一[个名位款种][^，。]{0,6}(?:叫做?|名[叫为])[“\"'「『*_\s]*$")
# 我是X的朋友 does not say that one is X.
_SOMETHING_OF = re.compile(r"[”\"'」』*\s]*的\w")


def gives_name(answer: str, name: str, question: str = "") -> bool:
    """Whether the answer says that the speaker has this name: not denied, not asked about, not quoted back.

    Case, full width, traditional characters and spaces between Chinese characters make no difference. "I am X's
    assistant" does not say that the speaker is X.
    """
    return role_of_name(answer, name, question) == OWN


def is_assistant_of(answer: str, name: str, question: str = "") -> bool:
    """Whether the answer says that the speaker is NAME's assistant or product, and not that it is NAME."""
    return role_of_name(answer, name, question) == OWNER


def role_of_name(answer: str, name: str, question: str = "") -> str | None:
    """Whose name it is by the answer: the speaker's own, that of who owns or made the speaker, or of nobody here."""
    wanted = normal(name)
    text = _without_quotes_of(normal(answer), normal(question))
    roles = {_role_at(text, start, start + len(wanted)) for start in _starts(text, wanted)}
    if _SURELY_OWN in roles:
        return OWN
    # What else is said of an owner does not make the speaker him.
    return next((role for role in (OWNER, OWN) if role in roles), None)


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


def _role_at(text: str, start: int, end: int) -> str | None:
    before = text[max(start - CLAUSE_CHARACTERS, 0) : start]
    before = before[max((mark.end() for mark in CLAUSE_END.finditer(before)), default=0) :]
    mark = CLAUSE_END.search(text, end)
    after = text[end : mark.start() if mark else None]
    if (mark and mark[0] in "?？") or ASKED.search(after.strip()):
        return None
    openers = list(OPENERS.finditer(before))
    if DENIALS.search(before[openers[-1].end() :] if openers else before):
        return None
    if _BEFORE_AN_OWNER.search(before) or (_AFTER_AN_OWNER.match(after) and not _ONE_CALLED.search(before)):
        return OWNER
    if not _OWN.search(before):
        return OWN
    return None if _SOMETHING_OF.match(after) and not _ONE_CALLED.search(before) else _SURELY_OWN


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
