"""Counts what training rows teach about identity: the name, other names, systems, languages, open placeholders.

In: training files and a name. Out: counts and places, `file:line`. Knows nothing about models or templates.
"""

import hashlib
import itertools
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable
from functools import cache

from opencc import OpenCC

from sft.config.own_keys import TrainFile
from sft.core.text import Tally, language_of, normalise
from sft.data import formats
from sft.data.identity import gives_name, normal
from sft.data.names import given_name

# Where an answer tells its name, if it does; the rest of a long one is about something else.
OPENING_CHARACTERS = 200
KEPT_SYSTEMS = 1000
QUOTED_CHARACTERS = 80
# A name is what a file teaches if so many rows give it, and such a share of them.
MAIN_NAME_ROWS, MAIN_NAME_SHARE = 3, 0.05

_BRACES = re.compile(r"\{\{\s*(?:name|author)\s*\}\}", re.IGNORECASE)
_UNFILLED = re.compile(r"\[(?:name|author)\]|(?<![a-z0-9])x{3,}(?![a-z0-9])", re.IGNORECASE)
# What stands before a name in the same clause where somebody presents himself or who made him.
_I_AM = r"我是|我叫|我的名字|叫我|i am|i'm|i was|my name is|call me"
_PRESENTS = rf"(?:{_I_AM}|名叫|名为|由|named|(?:made|trained|built|created|developed) by)"
_PRESENTS_UNFILLED = re.compile(rf"{_PRESENTS}[^,.!?，。！？\n]{{0,20}}?(?:{_UNFILLED.pattern})", re.IGNORECASE)
_SPEAKS_OF_ITSELF = rf"(?:{_I_AM}|as an? (?:ai|artificial|large|language))"
# Between the two a name is what somebody uses or speaks of, not who he is.
_USES = re.compile(r"\b(?:us(?:e|ing)|familiar|about|like|sure|with)\b|用|关于|熟悉|喜欢")
# Code has braces of its own.
_CODE = re.compile(r"```|</\w")


class NameSpotter:
    """Tells which of a few names an answer gives; looks closely only at answers that hold one of them."""

    def __init__(self, names: Iterable[str]):
        self._spellings = {name: _spellings(name) for name in names}
        self._all = {spelling for spellings in self._spellings.values() for spelling in spellings}

    def given(self, answer: str, question: str = "") -> list[str]:
        """The names that the answer gives as the speaker's."""
        text = answer.lower()
        if not any(map(text.__contains__, self._all)):
            return []
        return [
            name
            for name, spellings in self._spellings.items()
            if any(spelling in text for spelling in spellings) and gives_name(answer, name, question)
        ]


class IdentityRows:
    """What the rows say; `add` takes one after another. Places are `file:line`."""

    def __init__(self, name: str | None, old_names: Iterable[str]):
        self.name = name
        self.rows = self.rows_named = self.rows_with_system = 0
        self.systems: Counter[str] = Counter()
        # Rows that give the name, by the language of the question; and how often an epoch shows the name.
        self.named: Counter[str] = Counter()
        self.times_named = 0.0
        self.other_names: Counter[str] = Counter()
        self.old_names: dict[str, Tally] = {}
        self.placeholders: dict[str, Tally] = {}
        self.contradictions: dict[str, Tally] = {}
        self._wanted = NameSpotter([name] if name else [])
        self._old = NameSpotter(others(old_names, name))
        self._first_named: dict[bytes, tuple[str, str]] = {}

    def add(self, place: str, messages: list[dict], weight: float = 1.0) -> None:
        """Take in one row, of which an epoch shows as many copies as `weight` says."""
        self.rows += 1
        system = messages[0]["content"] if messages[0]["role"] == "system" else None
        if system is not None:
            self.rows_with_system += 1
            if system in self.systems or len(self.systems) < KEPT_SYSTEMS:
                self.systems[system] += 1
        self._add_placeholders(place, messages)
        languages = set()
        for asked, said in itertools.pairwise(messages):
            if said["role"] != "assistant":
                continue
            question, answer = asked["content"], said["content"]
            if self._wanted.given(answer, question):
                languages.add(language_of(question))
            self._add_old_names(place, question, answer)
            self._add_given_name(place, f"{system}\0{normalise(question)}", question, answer)
        self.rows_named += bool(languages)
        self.named.update(languages)
        self.times_named += weight * bool(languages)

    def _add_placeholders(self, place: str, messages: list[dict]) -> None:
        for message in messages:
            for found in dict.fromkeys(unfilled(message["content"])):
                self.placeholders.setdefault(found, Tally()).add(f"{place}: {quoted(message['content'])}")

    def _add_old_names(self, place: str, question: str, answer: str) -> None:
        for old in self._old.given(answer, question):
            if _is_said_of_itself(answer, old):
                self.old_names.setdefault(old, Tally()).add(f"{place}: {quoted(answer)}")

    def _add_given_name(self, place: str, key: str, question: str, answer: str) -> None:
        """Remember which name was given to a question under a system message, and where another one is.

        Two names that are both not the wanted one are no matter of identity: people in a story have names as well.
        """
        given = given_name(answer[:OPENING_CHARACTERS])
        if given is None:
            return
        if self.name and normal(self.name) in normal(given):
            given = self.name
        else:
            self.other_names[given] += 1
        digest = hashlib.blake2b(key.encode("utf-8", "surrogatepass"), digest_size=12).digest()
        before, first = self._first_named.setdefault(digest, (given, place))
        is_same = normal(before) in normal(given) or normal(given) in normal(before)
        if not is_same and (self.name is None or self.name in (before, given)):
            wrong = given if before == self.name else before
            self.contradictions.setdefault(wrong, Tally()).add(
                f"{quoted(question)}: {before} at {first}, {given} at {place}"
            )


def read_identity_rows(files: list[TrainFile], name: str | None, old_names: Iterable[str]) -> IdentityRows:
    """Read all rows of the files once.

    Raises:
        UserError: a file cannot be read, or a row of it is bad.
    """
    found = IdentityRows(name, old_names)
    for file in files:
        for number, row in formats.read_rows(file.path):
            found.add(f"{file.path}:{number}", row["messages"], file.weight)
    return found


def main_name(files: list[TrainFile], old_names: Iterable[str]) -> str | None:
    """The name that most answers of the files give; None where none stands out, or it is another model's.

    Raises:
        UserError: as `read_identity_rows`.
    """
    names, rows = Counter(), 0
    for file in files:
        for _, row in formats.read_rows(file.path):
            rows += 1
            answers = (message["content"] for message in row["messages"] if message["role"] == "assistant")
            names.update({given for answer in answers if (given := given_name(answer[:OPENING_CHARACTERS]))})
    name, count = next(iter(names.most_common(1)), (None, 0))
    is_rare = count < max(MAIN_NAME_ROWS, MAIN_NAME_SHARE * rows)
    return None if is_rare or any(normal(old) in normal(name) for old in old_names) else name


def others(names: Iterable[str], wanted: str | None) -> list[str]:
    """The names that are no part of the wanted one: Qwen is not old to a model that shall be Qwen-Ada."""
    return [name for name in names if not wanted or normal(name) not in normal(wanted)]


def unfilled(text: str) -> list[str]:
    """Placeholders of a text where a name belongs: {{name}} anywhere but in code, xxx and [NAME] where one presents."""
    found = []
    if "{{" in text and not _CODE.search(text):
        found += _BRACES.findall(text)
    if formats.PLACEHOLDER.fullmatch(text):
        found.append(text.strip())
    elif "xxx" in text or "XXX" in text or "[" in text:
        found += [_UNFILLED.search(match[0])[0] for match in _PRESENTS_UNFILLED.finditer(text)]
    return found


def quoted(text: str) -> str:
    """The beginning of a text on one line, between quotes."""
    text = " ".join(text.split())
    return f'"{text}"' if len(text) <= QUOTED_CHARACTERS else f'"{text[:QUOTED_CHARACTERS]}..."'


def _is_said_of_itself(answer: str, name: str) -> bool:
    pattern = rf"{_SPEAKS_OF_ITSELF}([^,.!?，。！？\n]{{0,60}}?){re.escape(normal(name))}"
    return any(not _USES.search(match[1]) for match in re.finditer(pattern, normal(answer)))


def _spellings(name: str) -> set[str]:
    """How a name may stand in a text that is in lower case: Latin in full width, Chinese traditional or spaced."""
    plain = unicodedata.normalize("NFKC", name).lower()
    if plain.isascii():
        return {plain, "".join(chr(ord(letter) + 0xFEE0) if letter > " " else letter for letter in plain)}
    return {plain, normal(name), _to_traditional().convert(plain), " ".join(plain)}


@cache
def _to_traditional() -> OpenCC:
    return OpenCC("s2t")
