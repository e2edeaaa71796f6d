"""How names and placeholders are found in a text: as words of their own, and how else a person may have spelt them.

In: a name, or the key of a placeholder. Out: regular expressions. Knows nothing about rows or files.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable
from functools import cache

from sft.core.text import normalise
from sft.data.placeholders import key_of, open_placeholders

# Scripts that put no space between words, so that a name ends where they begin: Thai, kana, Chinese, Korean.
_UNSPACED = "\u0e00-\u0e7f\u3040-\u312f\u3400-\u9fff\uac00-\ud7af\uf900-\ufaff\U00020000-\U0003ffff"
_HAN = re.compile("[\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]")
# A letter or digit that carries on a word; the underscore does not, as in `mentions`.
_LETTER = rf"[^\W_{_UNSPACED}]"
_MARK = "\u0300-\u036f"
# JSON inside a text escapes a line's end as a letter.
_STARTS_WORD = rf"(?:(?<!{_LETTER})|(?<=\\[nrt]))"
# Qwen2 is not what Qwen2.5 is called.
_ENDS_WORD = rf"(?!{_LETTER}|[{_MARK}]|\.[0-9])"
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


class Placeholders:
    """Fills what stands for a value yet to come: {{KEY}}, <KEY>, [KEY] and 【KEY】, the key as given or in one case.

    Where somebody presents himself, any other spelling of the key that `open_placeholders` sees as well: NAME, xxx.
    Code has brackets of its own: List<Name>, rows[name], <name>...</name>, [name](https://...).
    """

    def __init__(self, values: dict[str, str]):
        self._values = {_normal(key): value for key, value in values.items()}
        self._capitals = {key.upper() for key in values if key.isascii() and key.isalpha() and "x" not in key.lower()}
        keys = "|".join(re.escape(case) for key in values for case in (key, key.upper(), key.lower()))
        forms = [
            r"\{\{\s*(?:KEYS)\s*\}\}",
            r"(?<![A-Za-z0-9_<])<\s*(?P<tag>KEYS)\s*>(?!>)(?!.*</\s*(?P=tag)\s*>)",
            r"(?<![A-Za-z0-9_)\]\[])\[\s*(?:KEYS)\s*\](?![(\[\]:])",
            r"【\s*(?:KEYS)\s*】",
            r"＜\s*(?:KEYS)\s*＞",
        ]
        self._forms = re.compile("|".join(forms).replace("KEYS", keys) if keys else "(?!)")

    def fill(self, text: str) -> tuple[str, Counter[str]]:
        """The text with its placeholders filled in, and how often each spelling of them was."""
        spellings = {spelling for spelling in open_placeholders(text) if _normal(key_of(spelling)) in self._values}
        # Where one word in capitals stands for a value, the others do.
        if any(spelling.isupper() and spelling == key_of(spelling) for spelling in spellings):
            spellings |= {key for key in self._capitals if key in text}
        patterns = [_alone(spelling) for spelling in sorted(spellings, key=len, reverse=True)]
        filled: Counter[str] = Counter()

        def value(match: re.Match) -> str:
            filled[match[0]] += 1
            return self._values[_normal(key_of(match[0]))]

        for pattern in (self._forms, *map(re.compile, patterns)):
            text = pattern.sub(value, text)
        return text, filled


def _alone(placeholder: str) -> str:
    """A pattern for the placeholder; one without brackets is no part of a longer word."""
    is_bare = key_of(placeholder) == placeholder and placeholder.isascii()
    return rf"(?<![A-Za-z0-9_$]){re.escape(placeholder)}(?![A-Za-z0-9_])" if is_bare else re.escape(placeholder)


def _normal(key: str) -> str:
    """bot_name, Bot Name and botName are one key."""
    return normalise(key) or key


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
