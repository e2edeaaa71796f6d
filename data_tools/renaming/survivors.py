"""Finds what is left of an old name after renaming: other spellings, and the name inside longer words.

In: the renamed lines. Out: warnings, each with a count and the first line. Changes nothing.
"""

import re
from collections.abc import Iterable, Sequence

import orjson

from data_tools.renaming.spellings import as_word, first_characters, other_spellings
from sft.core.text import counted
from sft.data.rows.canonical import texts_in


class Survivors:
    """Takes renamed lines one after another and remembers which of them still hold an old name."""

    def __init__(self, old: Iterable[str], new: Iterable[str], also: Sequence[str], inside_words: bool):
        self._new = sorted(set(new), key=len, reverse=True)
        self._spellings = {name: other_spellings(name) for name in old}
        # Names that may be parts of longer words: there they were left alone.
        parts = [name for name in self._spellings if not inside_words and as_word(name) != re.escape(name)]
        self._inside = {name: re.compile(rf"[^\W_]*{re.escape(name)}[^\W_]*") for name in parts}
        self._also = {spelling: re.compile(re.escape(spelling), re.IGNORECASE) for spelling in also}
        patterns = [*self._spellings.values(), *self._also.values()]
        self._any = [*(re.compile(re.escape(name)) for name in parts), *patterns]
        # Most lines hold not even the first character of an old name, which is quick to see in their bytes.
        firsts = {first for name in (*self._spellings, *also) if name for first in first_characters(name)}
        self._hints = [rb"\\u", *(first.encode() for first in firsts)] if firsts else []
        # By spelling, or the word around the name: (lines, the first of them).
        self._found: dict[str, tuple[int, int]] = {}
        self._words: dict[str, tuple[int, int, str]] = {}

    def look(self, line: bytes, number: int) -> None:
        """Remember the spellings and words that the texts of a line still hold."""
        if not any(hint in line for hint in self._hints):
            return
        if b"\\u" not in line and not any(pattern.search(line.decode("utf-8")) for pattern in self._any):
            return
        text = "\n".join(texts_in(orjson.loads(line)))
        for new in self._new:
            text = text.replace(new, "\0")
        for name, pattern in self._spellings.items():
            for spelling in dict.fromkeys(pattern.findall(text)):
                if spelling != name:
                    self._remember(spelling, number)
        for spelling, pattern in self._also.items():
            if pattern.search(text):
                self._remember(spelling, number)
        for name, pattern in self._inside.items():
            if word := pattern.search(text):
                count, first, example = self._words.get(name, (0, number, word[0]))
                self._words[name] = (count + 1, first, example)

    def report(self) -> list[str]:
        """A warning for each spelling, and for each name that stands in longer words."""
        return [
            *(
                f"warning: {_shown(spelling)} still stands in {counted(count, 'line')}, the first is line {first:,}"
                for spelling, (count, first) in self._found.items()
            ),
            *(
                f"warning: {name!r} stands inside longer words in {counted(count, 'line')}, such as {word!r} in line "
                f"{first:,}: left as it is; --inside-words replaces it there too"
                for name, (count, first, word) in self._words.items()
            ),
        ]

    def _remember(self, spelling: str, number: int) -> None:
        count, first = self._found.get(spelling, (0, number))
        self._found[spelling] = (count + 1, first)


def _shown(spelling: str) -> str:
    """The spelling between quotes; where it would look like another one, what it is made of as well."""
    invisible = re.search("[\u00ad\u0300-\u036f\u180e\u200b-\u200f\u2060\ufeff]", spelling)
    return f"{spelling!r} ({spelling!a})" if invisible else repr(spelling)
