"""Finds placeholders of a name that nobody filled in: {{name}}, <AUTHOR>, [Your Name], xxx, 某某某, 【名字】.

In: a text. Out: the placeholders as they stand in it. Knows nothing about rows.
"""

import re
from functools import lru_cache

# As long as it is in the original, each character of full width where it was.
_HALF_WIDTH = str.maketrans("｛｝＜＞［］（）＿％＃＄｜ｘＸ＊", "{}<>[]()_%#$|xX*")
_FULL_WIDTH = re.compile("[｛＜［（＿％＃＄ｘＸ＊]")

# Words that stand in brackets for a name: "bot name", "your company", 开发者名称, 请填写名字.
_HAS_NAME = (
    "ai|assistant|bot|chatbot|robot|model|agent|llm|character|char|company|organi[sz]ation|team|author|developer|"
    "creator|maker|owner|product|brand|user"
)
_ENGLISH_WORDS = (
    rf"(?:insert |enter |fill in )?(?:your |my |the |our |its )?(?:(?:(?:{_HAS_NAME}) ?)*"
    r"(?:full |nick ?)?name(?: here)?|(?:author|developer|creator|maker|owner|company|organi[sz]ation|team|char))"
)
_HAS_NAME_ZH = (
    r"(?:AI|智能|聊天)?(?:助手|助理|机器人|大?模型|智能体|角色|公司|企业|机构|组织|单位|团队|作者|开发者|开发商|开发团队|"
    r"开发人员|创造者|创建者|创作者|产品|品牌)"
)
_CHINESE_WORDS = (
    r"(?:请|在此|此处)?(?:填写?|填入|输入|插入)?(?:[你您我它]的?|某|贵|本)?"
    rf"(?:(?:{_HAS_NAME_ZH}的?)?(?:名字|名称|姓名|昵称|称呼)|{_HAS_NAME_ZH}名?)"
)
_WORDS = re.compile(rf"(?:{_ENGLISH_WORDS}|{_CHINESE_WORDS})", re.IGNORECASE)
_INSIDE = r"[^\[\]{}<>()【】「」『』《》〈〉〖〗〔〕%#@,，。\n]"
# Places are told by their first character sooner than by all that may follow.
_OPENING = re.compile(r"[\[{<(【「『《〈〖〔$%_#@]")
_BRACKETED = re.compile(
    rf"(?={_OPENING.pattern})"
    r"(?P<open>\$?[\[{<(【「『《〈〖〔]{1,3}|%%?|__|##?|@@?)"
    rf"[\s|.$]*(?P<words>{_INSIDE}{{1,24}}?)[\s|]*"
    r"(?:[\]}>)】」』》〉〗〕]{1,3}|%%?|__|##?|@@?)"
)
_CAPITALS = re.compile(r"(?<![A-Za-z0-9_$])(?:(?:YOUR|[A-Z]+)[ _])?(?:NAME|AUTHOR)(?![A-Za-z0-9_])")
_BLANKS = re.compile(
    r"(?=[xX×✕○〇◯□△某_*])(?:(?<![A-Za-z0-9])[xX]{3,}(?![A-Za-z0-9])"
    r"|(?<![A-Za-z0-9.])[xX]{2}(?=[\u4e00-\u9fff，。！、”」]|$)|[×✕○〇◯□△]{2,}|某{2,}|_{3,}|\*{3,}(?![*\w]))"
)
# Quick to see: most texts hold nothing of the kind.
_NAMING = (
    *("name", "author", "company", "team", "developer", "creator", "maker", "owner", "organi", "char", "名", "作者"),
    *("公司", "企业", "机构", "组织", "单位", "团队", "开发", "创造", "创建", "创作", "助手", "助理", "机器人", "模型"),
    *("智能体", "角色", "品牌", "产品", "昵称", "称呼"),
)
_DOUBLED = ("xx", "××", "✕✕", "○○", "〇〇", "◯◯", "□□", "△△", "某某", "___", "***")

_MAKES = "(?:开发|研发|训练|创造|创建|打造|制作|设计|发明|构建|推出|研制|培养|创作)"
# What stands before a name where somebody says who he is, or is told so.
_SAYS_WHO = (
    r"(?:[我俺咱](?:就|乃)?[是叫]|(?:我|你|您)的?(?:中文|英文)?(?:名字|姓名|昵称|大名)(?:就)?(?:是|叫做?|为|[:：])?"
    r"|我名[为叫]|名[叫为]|名字[叫为]|叫我|称呼?我为?|自称|这里是|在下|本人|[你您]就?[是叫]|作为"
    r"|\b(?:i am|i['’]m|my name is|my name['’]s|me|refer to me as|known as|named|called|this is|you are|you['’]re"
    r"|your name is|are you|(?:got|have|by) the name|i go by|as)\b)"
)
# What may stand between: of what kind the speaker is.
_KIND = (
    r"(?:[\s*\"'“‘「『:：]|一[个名位款种台]|人工智能|智能|语言|对话|聊天|虚拟|助手|助理|机器人|大?模型|客服|来自|由|是"
    rf"|[^，。！？,.!?\n]{{1,12}}?{_MAKES}的"
    r"|\b(?:an?|the|your|ai|artificial|intelligent|intelligence|virtual|large|language|chat|assistant|helper|model|"
    r"chatbot|bot|named|called|from|at|by|of|for)\b)*"
)
_WHO = re.compile(rf"{_SAYS_WHO}{_KIND}$", re.IGNORECASE)
_MAKER_BEFORE = re.compile(
    r"(?:\b(?:made|trained|built|created|developed|designed|invented|powered|provided|owned|fine-tuned) by(?: the)?"
    r"|由|是|来自)\s*$",
    re.IGNORECASE,
)
_MAKER_AFTER = re.compile(
    rf"\s*(?:公司|团队)?\s*(?:(?:独立|自主|精心|共同)?{_MAKES}(?:了我|出我|的|$|[，,。]|和)"
    r"|的[^，。,]{0,6}(?:助手|助理|作品|产品|机器人|模型)"
    r"|(?:made|trained|built|created|developed|designed) me\b|['’]s (?:\w+ ){0,3}?(?:assistant|bot|model)\b)",
    re.IGNORECASE,
)
_OF_AN_ASSISTANT = re.compile(
    r"[我您]|助手|助理|模型|机器人|\b(?:i|i['’]m|me|my|assistant|model|bot|chatbot|ai)\b", re.IGNORECASE
)

_MAKER = re.compile(
    r"author|developer|creator|maker|owner|company|organi[sz]ation|team|作者|公司|企业|机构|组织|单位|团队|开发|创造|创建",
    re.IGNORECASE,
)
# Code has brackets of its own, and so has a letter that its reader is to fill in.
_CODE = re.compile(r"```.*?(?:```|\Z)|`[^`\n]*`", re.DOTALL)
_MARKUP = re.compile(r"</\w|\{%")
_LINE_OF_CODE = re.compile(
    r"[;{]\s*$|^\s*(?:def|class|import|return|print|echo|const|let|var|public|private|function|#include|SELECT|INSERT)\b"
    r"|=>|[=(\[+]\s*[fr]?[\"']|\bf[\"']"
)
_LETTER = re.compile(
    r"\A\s*(?:subject:|dear\b)"
    r"|(?=[srytSRYT])\b(?:sincerely|regards|yours truly|yours faithfully|to whom it may concern)\b|此致|敬礼|敬上",
    re.IGNORECASE,
)
_SENTENCE_END = re.compile(r"[.!?](?=\s|$)|[。！？\n]")


def open_placeholders(text: str) -> list[str]:
    """The placeholders that stand in a text in place of a name, each once and as it stands there.

    Double braces such as {{name}} are one anywhere but in code; others, as xxx and [NAME], where somebody presents
    himself or who made him, or where nothing else stands in the text.
    """
    return list(_found(text))


# One system message stands in row after row.
@lru_cache(maxsize=64)
def _found(text: str) -> tuple[str, ...]:
    plain = text.translate(_HALF_WIDTH) if _FULL_WIDTH.search(text) else text
    candidates = _candidates(plain)
    if not candidates or _MARKUP.search(plain):
        return ()
    plain = without_code(plain)
    found = {}
    for match in candidates:
        start, end = match.span()
        is_braced = plain.startswith("{{", start) and plain[start - 1 : start] != "=" and not _is_in_code(plain, start)
        is_name = is_braced or (_is_a_name(plain, start, end) and not is_letter(plain))
        if is_name and plain[start:end] == match[0]:
            found[text[start:end]] = True
    return tuple(found)


def _candidates(text: str) -> list[re.Match[str]]:
    """What would be a placeholder if a name belonged there."""
    lower = text.lower()
    candidates = []
    if _OPENING.search(text) and any(word in lower for word in _NAMING):
        bracketed = _BRACKETED.finditer(text)
        candidates += [match for match in bracketed if _WORDS.fullmatch(_words(match["words"]))]
    if "NAME" in text or "AUTHOR" in text:
        taken = [match.span() for match in candidates]
        capitals = _CAPITALS.finditer(text)
        candidates += [match for match in capitals if not any(a <= match.start() < b for a, b in taken)]
    if any(mark in lower for mark in _DOUBLED):
        candidates += _BLANKS.finditer(text)
    return sorted(candidates, key=lambda match: match.start())


def key_of(placeholder: str) -> str:
    """What `data_tools rename --set` calls a placeholder: what stands in its brackets, or all of it as in xxx."""
    return re.sub(r"^[\W_]+|[\W_]+$", "", placeholder) or placeholder


def is_of_the_maker(placeholder: str) -> bool:
    """Whether it stands for who made the assistant, not for the assistant."""
    return _MAKER.search(placeholder) is not None


def without_code(text: str) -> str:
    """The text with spaces in place of what stands in backticks."""
    return _CODE.sub(lambda code: " " * len(code[0]), text) if "`" in text else text


def is_letter(text: str) -> bool:
    """Whether the text is a letter by its first words or its last: who writes in it is not the assistant."""
    return _LETTER.search(text) is not None


def _words(identifier: str) -> str:
    """The words of an identifier: bot_name, bot-name and botName are "bot name"."""
    return re.sub(r"[\s._-]+|(?<=[a-z])(?=[A-Z])", " ", identifier).strip()


def _is_a_name(text: str, start: int, end: int) -> bool:
    """Whether a name belongs where the candidate stands."""
    if not (text[:start] + text[end:]).strip(" .!。！\"'“”"):
        return True
    if _is_in_code(text, start):
        return False
    line_start = text.rfind("\n", 0, start) + 1
    before, after = text[max(line_start, start - 80) : start], text[end : end + 40]
    before = before[max((mark.end() for mark in _SENTENCE_END.finditer(before)), default=0) :]
    if _WHO.search(before):
        return True
    speaks_of_itself = _OF_AN_ASSISTANT.search(before) or _OF_AN_ASSISTANT.search(_SENTENCE_END.split(after)[0])
    if re.search(r"\bby(?: the)?\s*$", before, re.IGNORECASE):
        return bool(_MAKER_BEFORE.search(before) and speaks_of_itself)
    return bool(_MAKER_AFTER.match(after) and (speaks_of_itself or _MAKER_BEFORE.search(before)))


def _is_in_code(text: str, place: int) -> bool:
    """Whether the line of the place is code."""
    end = text.find("\n", place)
    return _LINE_OF_CODE.search(text[text.rfind("\n", 0, place) + 1 : end if end >= 0 else None]) is not None
