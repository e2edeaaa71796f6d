"""Judges whether an answer gives a name as the speaker's own, and whether it mentions a name at all.

In: an answer, a name, the question. Out: yes or no. Knows nothing about models; the same for Chinese and English.
"""

import re
import unicodedata
from functools import lru_cache

from opencc import OpenCC

# Marks that end a clause; a question's clause gives no name.
CLAUSES = re.compile(r"([^,.!?;:，。！？；：、\n]*)([,.!?;:，。！？；：、\n]|$)")
QUOTED = re.compile(r"[\"“「『'‘《]([^\"”」』'’》]*)[\"”」』'’》]")
# After one of these a clause speaks of the speaker (again), whatever it denied before.
OPENERS = re.compile(
    r"\b(i am|i'm|i’m|my name is|my name's|call me|but|rather|instead)\b|我是|我叫|叫我|而是|正是|就是|却是|名叫"
)
DENIALS = re.compile(r"\b(not|never|no longer|neither|nor|cannot)\b(?!\s+only)|n't\b|不|没|非|无法|别叫|勿")
ASKED = re.compile(r"[吗呢]$")


def gives_name(answer: str, name: str, question: str = "") -> bool:
    """Whether the answer says that the speaker has this name: not denied, not asked about, not quoted back.

    Case, full width, traditional characters and spaces between Chinese characters make no difference.
    """
    text, wanted = normal(answer), normal(name)
    text = _without_quotes_of(text, normal(question))
    return any(_is_claimed(clause, end, wanted) for clause, end in CLAUSES.findall(text))


def mentions(answer: str, name: str) -> bool:
    """Whether the name stands anywhere in the answer, as a word of its own."""
    return bool(_places(normal(answer), normal(name)))


def normal(text: str) -> str:
    """The text as it is compared: one width, one case, simplified characters, no spaces between Chinese ones."""
    text = _converter().convert(unicodedata.normalize("NFKC", text)).casefold().replace("’", "'")
    return re.sub(r"(?<=[\u4e00-\u9fff])[^\S\n]+(?=[\u4e00-\u9fff])", "", text)


def _is_claimed(clause: str, end: str, name: str) -> bool:
    if end in ("?", "？") or ASKED.search(clause.strip()):
        return False
    for place in _places(clause, name):
        before = clause[:place]
        openers = list(OPENERS.finditer(before))
        said = before[openers[-1].end() :] if openers else before
        if not DENIALS.search(said):
            return True
    return False


def _places(text: str, name: str) -> list[int]:
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
