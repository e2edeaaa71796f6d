"""Finds what is left of an old name after renaming: other spellings, and the name inside longer words.

In: the renamed lines. Out: warnings, each with a count and the first line. Changes nothing.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import orjson

from data_tools.renaming.spellings import as_word, first_characters, other_spellings
from sft.core.text import counted
from sft.data.rows.canonical import texts_in


@dataclass
class Found:
    """What is left of old names in lines that stand together."""

    # By spelling, or by the name that a word holds: (lines, the first of them), and the word that is there.
    spellings: dict[str, tuple[int, int]] = field(default_factory=dict)
    words: dict[str, tuple[int, int, str]] = field(default_factory=dict)

    def add_spelling(self, spelling: str, number: int, lines: int = 1) -> None:
        """Count lines that hold a spelling, of which the first has this number."""
        count, first = self.spellings.get(spelling, (0, number))
        self.spellings[spelling] = (count + lines, first)

    def add_word(self, name: str, number: int, word: str, lines: int = 1) -> None:
        """Count lines that hold a word with the name in it, of which the first has this number."""
        count, first, example = self.words.get(name, (0, number, word))
        self.words[name] = (count + lines, first, example)

    def add(self, later: "Found") -> None:
        """Add what was found in lines after these."""
        for spelling, (count, first) in later.spellings.items():
            self.add_spelling(spelling, first, count)
        for name, (count, first, word) in later.words.items():
            self.add_word(name, first, word, count)

    def report(self) -> list[str]:
        """A warning for each spelling, and for each name that stands in longer words."""
        return [
            *(
                f"warning: {_shown(spelling)} still stands in {counted(count, 'line')}, the first is line {first:,}"
                for spelling, (count, first) in self.spellings.items()
            ),
            *(
                f"warning: {name!r} stands inside longer words in {counted(count, 'line')}, such as {word!r} in line "
                f"{first:,}: left as it is; --inside-words replaces it there too"
                for name, (count, first, word) in self.words.items()
            ),
        ]


class Survivors:
    """Looks into renamed lines for what they still hold of an old name."""

    def __init__(self, old: Iterable[str], new: Iterable[str], also: Sequence[str], inside_words: bool):
        self._new = sorted(set(new), key=len, reverse=True)
        self._spellings = {name: other_spellings(name) for name in old}
        # Names that may be parts of longer words: there they were left alone.
        parts = [name for name in self._spellings if not inside_words and as_word(name) != re.escape(name)]
        self._inside = {name: re.compile(rf"[^\W_]*{re.escape(name)}[^\W_]*") for name in parts}
        self._also = {spelling: re.compile(re.escape(spelling), re.IGNORECASE) for spelling in also}
        patterns = [*self._spellings.values(), *self._also.values()]
        self._any = [*(re.compile(re.escape(name)) for name in parts), *patterns]
        # Most lines hold not even the first character of an old name, which is quick to see; one may be escaped.
        firsts = {first for name in (*self._spellings, *also) if name for first in first_characters(name)}
        self._hints = [*firsts, r"\u"] if firsts else []

    def look(self, line: bytes, number: int, found: Found) -> None:
        """Add the spellings and words that the texts of a line still hold to what was found."""
        shown = line.decode("utf-8")
        for hint in self._hints:
            if hint in shown:
                break
        else:
            return
        if r"\u" not in shown and not any(pattern.search(shown) for pattern in self._any):
            return
        text = "\n".join(texts_in(orjson.loads(line)))
        for new in self._new:
            text = text.replace(new, "\0")
        for name, pattern in self._spellings.items():
            for spelling in dict.fromkeys(pattern.findall(text)):
                if spelling != name:
                    found.add_spelling(spelling, number)
        for spelling, pattern in self._also.items():
            if pattern.search(text):
                found.add_spelling(spelling, number)
        for name, pattern in self._inside.items():
            if word := pattern.search(text):
                found.add_word(name, number, word[0])


def _shown(spelling: str) -> str:
    """The spelling between quotes; where it would look like another one, what it is made of as well."""
    invisible = re.search("[\u00ad\u0300-\u036f\u180e\u200b-\u200f\u2060\ufeff]", spelling)
    return f"{spelling!r} ({spelling!a})" if invisible else repr(spelling)
