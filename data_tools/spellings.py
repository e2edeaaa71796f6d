"""How names and placeholders are found in a text: as words of their own, and how else a person may have spelt them.

In: a name, or the key of a placeholder. Out: regular expressions. Knows nothing about rows or files.
"""

import re
import unicodedata
from collections.abc import Iterable
from functools import cache

# Scripts that put no space between words, so that a name ends where they begin: Thai, kana, Chinese, Korean.
_UNSPACED = "\u0e00-\u0e7f\u3040-\u312f\u3400-\u9fff\uac00-\ud7af\uf900-\ufaff\U00020000-\U0003ffff"
_HAN = re.compile("[\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]")
# A letter or digit that carries on a word; the underscore does not, as in `mentions`.
_LETTER = rf"[^\W_{_UNSPACED}]"
_MARK = "\u0300-\u036f"
# JSON inside a text escapes a line's end as a letter.
_STARTS_WORD = rf"(?:(?<!{_LETTER})|(?<=\\[nrt]))"
_ENDS_WORD = rf"(?!{_LETTER}|[{_MARK}])"
# What people or editors put between the characters of a name: spaces, characters without width, dots, dashes.
_GAP = r"[\s\u00ad\u180e\u200b-\u200f\u2060\ufeff·•・*_-]*"
_WIDEN = {code: code + 0xFEE0 for code in range(0x21, 0x7F)}


def is_word(text: str) -> bool:
    """Whether the text begins or ends in a letter or digit that could go on into a longer word."""
    return bool(re.match(_LETTER, text) or re.match(_LETTER, text[-1:]))


def as_word(name: str, spelling: str | None = None) -> str:
    """A pattern for the name, spelt so, where it is no part of a longer word: Al in "Al's" and not in "Always"."""
    start = _STARTS_WORD if re.match(_LETTER, name) else ""
    end = _ENDS_WORD if re.match(_LETTER, name[-1:]) else ""
    return start + re.escape(spelling or name) + end


def other_spellings(name: str) -> re.Pattern:
    """A pattern for the name and what looks like it: other case, full width, traditional, decomposed, spaced."""
    plain = unicodedata.normalize("NFC", name)
    words = [plain, *_converted(plain)]
    characters = []
    for index, character in enumerate(plain):
        alike = {word[index] for word in words if len(word) == len(plain)}
        alike |= {other for one in {*alike} for other in _converted(one)}
        if character.isspace():
            continue
        characters.append("|".join(map(re.escape, sorted(_widths_and_cases(alike), key=len, reverse=True))))
    start = _STARTS_WORD if re.match(_LETTER, plain) else ""
    end = _ENDS_WORD if re.match(_LETTER, plain[-1:]) else ""
    return re.compile(start + _GAP.join(f"(?:{alike})" for alike in characters) + end)


def first_characters(name: str) -> set[str]:
    """How the first character of any of the name's spellings may look."""
    plain = unicodedata.normalize("NFC", name)[:1]
    return {spelling[0] for spelling in _widths_and_cases({plain, *(word[0] for word in _converted(name))})}


def key_cases(key: str) -> list[str]:
    """The key as it is given, in upper case and in lower case."""
    return list(dict.fromkeys((key, key.upper(), key.lower())))


def placeholder(key: str) -> str:
    """A pattern for what stands for a value yet to be filled in: {{KEY}}, <KEY>, [KEY], 【KEY】, in `key_cases`.

    A key in capitals is one without brackets too: "I am NAME". Code has brackets of its own: List<Name>, rows[name],
    <name>...</name>, [name](https://...).
    """
    keys = "(?:" + "|".join(map(re.escape, key_cases(key))) + ")"
    forms = [
        rf"\{{\{{\s*{keys}\s*\}}\}}",
        rf"(?<![A-Za-z0-9_<])<\s*{keys}\s*>(?!>)(?!.*</\s*{keys}\s*>)",
        rf"(?<![A-Za-z0-9_)\]\[])\[\s*{keys}\s*\](?![(\[\]:])",
        rf"【\s*{keys}\s*】",
        rf"＜\s*{keys}\s*＞",
        rf"｛｛\s*{keys}\s*｝｝",
    ]
    if key.isupper() and key.isascii() and key.isalpha():
        forms.append(rf"(?<![\w$%./\\<{{\[\"'`=-]){key}(?![\w(/\\>}}\]\"'`=:-])".replace(r"\w", "A-Za-z0-9_"))
    return "|".join(forms)


def fill(text: str, values: dict[str, str]) -> str:
    """The text with the placeholders of these keys filled in."""
    for key, value in values.items():
        text = re.sub(placeholder(key), value.replace("\\", r"\\"), text)
    return text


def _widths_and_cases(characters: Iterable[str]) -> set[str]:
    cases = {case for one in characters for case in (one, one.lower(), one.upper())}
    forms = {unicodedata.normalize(form, one) for one in cases for form in ("NFC", "NFD", "NFKC")}
    return forms | {one.translate(_WIDEN) for one in forms}


def _converted(text: str) -> list[str]:
    """The text in simplified and in traditional characters, as they are written in different places."""
    return [converter.convert(text) for converter in _converters()] if _HAN.search(text) else []


@cache
def _converters() -> list:
    from opencc import OpenCC

    return [OpenCC(way) for way in ("t2s", "s2t", "s2tw", "s2hk")]
