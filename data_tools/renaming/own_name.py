"""Recognises where an assistant calls itself somebody's assistant, so that it can give the name as its own.

In: a text, who says it, the name. Out: whether "X的智能助手" at a place of it speaks of the speaker. Patterns, not
understanding: where in doubt, no.
"""

import re

from data_tools.renaming.spellings import as_word
from sft.data.given_names import names_given
from sft.data.identity import is_assistant_of
from sft.data.placeholders import open_placeholders

_KINDS = (
    "一[名个位款]|专属|私人|个人|贴心|得力|智能|智慧|人工智能|人工智慧|虚拟|聊天|编程|语音|数字|专业|在线|官方|全能|小"
    "|AI|ai"
)
_KINDS_ENGLISH = r"AI|artificial|intelligence|intelligent|smart|virtual|personal|dedicated|digital|own|chat|helpful"
# One of these stands in a line that is to be looked at more closely.
WORDS = ("助手", "助理", "机器人", "assistant", "chatbot")
HINTS = [word.encode() for word in WORDS]
_CLAUSE_END = re.compile(r"[,.!?;，。！？；…\n]")
# As much of a text before a name as may belong to its clause.
_CLAUSE_CHARACTERS = 80
_QUOTE = r"[\"'“‘「『《\s]*"
# Right before the name, after its subject; a denial is none.
_IS = "(?<!不)(?<!不再)(?<!不只)(?<!不仅)(?<!不光)(?:是|叫做|叫|名为)"
_AS = "(?:作为|身为|成为|扮演|自称|叫我|称我为|——|—)"
_I = "(?:我(?!的(?!确)|们)|自己|本助手|俺|在下|身份|角色|名字|名称)"
_YOU = "(?:[你您](?!的|们)|自己|身份|角色|名字|名称)"
_SAYS_I = r"(?:I am|I'm|I’m|I was|I remain|[Mm]y (?:name|role|identity) is|[Cc]all me|\b[Aa]s|[Bb]eing)"
_SAYS_YOU = r"(?:[Yy]ou are|[Yy]ou're|[Yy]our (?:name|role|identity) is)"
_ADVERBS = r"(?:(?:indeed|actually|still|now|really|also|always|proudly|just|simply)\s+)*"
_OTHERS = re.compile("(?<!其)他|她|它们|谁")
_HEADING = re.compile(rf"^\W*(?:[Rr]ole|角色|身份|[Nn]ame|名字|名称)\s*[:：]{_QUOTE}$")
_IS_IT = [
    re.compile(rf"(?:{subject}[^他她]{{0,12}}?{_IS}(?:.{{0,24}}的)?|{_AS}|{says}\s+{_ADVERBS}){_QUOTE}$")
    for subject, says in ((f"(?:{_I}|{_YOU})", f"(?:{_SAYS_I}|{_SAYS_YOU})"), (_I, _SAYS_I))
]
# What comes after the phrase where its sentence begins with it.
_ENDS = re.compile(r"[\"'”’」』》\s]*(?:$|[,.!?，。！？\n嘛哦呢啦])")
_AT_YOUR_SERVICE = re.compile(r"\s*(?:在这|在此|为您|为你|随时|here|at your service)")


def phrase(names: str) -> str:
    """A pattern for "X's assistant" in Chinese and English, X being any of what the pattern `names` matches."""
    english = rf"(?:(?:{_KINDS_ENGLISH})\s+)*(?:assistant|chatbot)\b"
    return (
        rf"(?:{names})\s*的\s*(?:(?:{_KINDS})\s*)*(?:助手|助理|机器人)(?![们团])"
        rf"|(?:{names})(?:'s|’s)\s+{english}"
        rf"|(?:(?:[Tt]he|[Aa]n?|[Yy]our)\s+)?{english}\s+(?:of|to)\s+(?:{names})"
    )


_ENGLISH_NAME = (
    r"(?<![A-Za-z])(?!(?:I|It|You|The|Your|My|We|He|She|They|This|That)\b)([A-Z][\w-]*(?: [A-Z][\w-]*){0,2})"
)
# Somebody's assistant in English, whoever it is.
_ENGLISH_OWNER = re.compile(phrase(_ENGLISH_NAME))


def owner_of(answer: str, question: str = "") -> str | None:
    """The name, or the placeholder of one, whose assistant the answer says that the speaker is; or None."""
    if not any(word in answer for word in WORDS):
        return None
    english = _ENGLISH_OWNER.finditer(answer) if "assistant" in answer or "chatbot" in answer else ()
    owners = [next(filter(None, match.groups())) for match in english]
    owners += [*names_given(answer), *open_placeholders(answer)]
    return next((owner for owner in owners if _is_owner(owner, answer, question)), None)


def _is_owner(name: str, answer: str, question: str) -> bool:
    phrases = re.finditer(phrase(as_word(name)), answer)
    is_said = any(speaks_of_itself(answer, match.start(), match.end(), "assistant") for match in phrases)
    return is_said and is_assistant_of(answer, name, question)


def speaks_of_itself(text: str, start: int, end: int, speaker: str) -> bool:
    """Whether the phrase at text[start:end] is what the assistant is; `speaker` is assistant, system or user.

    An assistant says "I am", the others say "you are" as well.
    """
    earliest = max(start - _CLAUSE_CHARACTERS, 0)
    begins = max((end.end() for end in _CLAUSE_END.finditer(text, earliest, start)), default=earliest)
    before, earlier = text[begins:start], text[max(begins - 9, 0) : begins].rstrip(" ")
    if _OTHERS.search(before):
        return False
    if _IS_IT[speaker == "assistant"].search(before) or _HEADING.search(before):
        return True
    if before.strip("\"'“‘「『《 "):
        return False
    opens = not earlier.strip() or earlier[-1] in ".!?。！？…\n" or earlier.endswith(("我，", "我,"))
    return bool(_AT_YOUR_SERVICE.match(text, end) or (opens and _ENDS.match(text, end)))
