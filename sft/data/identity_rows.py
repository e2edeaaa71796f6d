"""Counts what training rows teach about identity: the name, other names, systems, languages, open placeholders.

In: rows, names to look for. Out: `RowFacts`, gathered from a part of a file by whoever reads it (as JSON they are kept
with the part's tokens), and `IdentityRows`, all of them together for one wanted name. Knows nothing about models or
templates.
"""

import hashlib
import inspect
import json
import re
import sys
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cache, cached_property, lru_cache
from typing import Any

from opencc import OpenCC

from sft.core.text import KEPT_EXAMPLES, Tally, language_of, normalise, one_line
from sft.data import given_names, identity, placeholders
from sft.data.given_names import asks_for_a_text, asks_who, given_name
from sft.data.identity import OLD_NAMES, OWN, normal, role_of_name
from sft.data.placeholders import open_placeholders
from sft.data.rows.canonical import answered

# Where an answer gives its name, if it does; the rest of a long one is about something else.
OPENING_CHARACTERS = 200
# So many distinct system messages are kept of a part of a file, and of all files.
KEPT_SYSTEMS = 1000
QUOTED_CHARACTERS = 80
# A name is what a file teaches if so many rows give it, and such a share of them.
MAIN_NAME_ROWS, MAIN_NAME_SHARE = 3, 0.05

# What stands before a name in the same clause where somebody presents himself or who made him.
_I_AM = r"我是|我叫|我的名字|叫我|i am|i'm|i was|my name is|call me"
_SPEAKS_OF_ITSELF = rf"(?:{_I_AM}|as an? (?:ai|artificial|large|language))"
# Between the two a name is what somebody uses or speaks of, not who he is.
_USES = re.compile(r"\b(?:us(?:e|ing)|familiar|about|like|sure|with)\b|用|关于|熟悉|喜欢")


class NameSpotter:
    """Tells whose names a few are by an answer; looks closely only at answers that hold one of them."""

    def __init__(self, names: Iterable[str]):
        self._spellings = {name: _spellings(name) for name in names}
        spellings = sorted(spelling for spellings in self._spellings.values() for spelling in spellings)
        self._any = re.compile("|".join(map(re.escape, spellings)) or "(?!)")

    def roles(self, answer: str, question: str = "") -> dict[str, str]:
        """The names that are the speaker's own or its owner's by the answer, each with which of the two."""
        roles = {name: role_of_name(answer, name, question) for name in self.held(answer)}
        return {name: role for name, role in roles.items() if role}

    def held(self, answer: str) -> list[str]:
        """The names that stand in the answer in any spelling."""
        text = answer.lower()
        if not self._any.search(text):
            return []
        return [name for name, spellings in self._spellings.items() if any(map(text.__contains__, spellings))]


@dataclass(frozen=True)
class SoughtNames:
    """The names that rows are searched for: those that may turn out to be the wanted one, and old ones."""

    wanted: tuple[str, ...]
    old: tuple[str, ...]

    @cached_property
    def key(self) -> str:
        """A hash of the names and of the code that looks for them: facts under another one say something else."""
        modules = (sys.modules[__name__], identity, given_names, placeholders)
        code: tuple[Any, ...] = (*modules, normalise, language_of)
        parts = [*self.wanted, "", *self.old, *map(inspect.getsource, code)]
        return hashlib.sha256("\0".join(parts).encode("utf-8", "surrogatepass")).hexdigest()[:16]


@dataclass
class NamedRows:
    """Rows that say a name of the speaker, and of these how many do so to a question in Chinese and in English.

    Rows that give it only as the name of who owns or made the speaker are counted in `as_owner` as well.
    """

    rows: int = 0
    as_owner: int = 0
    languages: dict[str, int] = field(default_factory=dict)


@dataclass
class GivenName:
    """Answers that give one name to one question under one system message; the first few as (line, turn, question)."""

    question: str  # a digest
    name: str
    count: int = 0
    examples: list[tuple[int, int, str]] = field(default_factory=list)


class RowFacts:
    """What the rows of a part of a file say, as far as it does not depend on the other parts; places are lines."""

    def __init__(self, names: SoughtNames):
        self.rows = self.rows_with_system = 0
        self.systems: Counter[str] = Counter()
        self.named = {name: NamedRows() for name in names.wanted}
        self.old_names: dict[str, Tally] = {}
        self.placeholders: dict[str, Tally] = {}
        self.given: dict[tuple[str, str], GivenName] = {}
        # Rows by the names they give to questions about the one who answers.
        self.names: Counter[str] = Counter()
        self._wanted, self._old = NameSpotter(names.wanted), NameSpotter(names.old)

    @classmethod
    def from_json(cls, text: bytes) -> "RowFacts":
        """The facts that `to_json` wrote; they can be read, and no row added."""
        facts, saved = cls(SoughtNames((), ())), json.loads(text)
        facts.rows, facts.rows_with_system = saved["rows"], saved["rows_with_system"]
        facts.systems, facts.names = Counter(saved["systems"]), Counter(saved["names"])
        facts.named = {name: NamedRows(**named) for name, named in saved["named"].items()}
        facts.old_names, facts.placeholders = map(_tallies, (saved["old_names"], saved["placeholders"]))
        facts.given = {(question, name): GivenName(question, name, *rest) for question, name, *rest in saved["given"]}
        return facts

    def to_json(self) -> bytes:
        """The facts as JSON, in the order they were found."""
        given = [[given.question, given.name, given.count, given.examples] for given in self.given.values()]
        return _to_json(vars(self) | {"given": given})

    def of(self, rows: Iterable[tuple[int, dict]]) -> Iterator[tuple[int, dict]]:
        """Pass (line, row) pairs on and take in each on its way."""
        for line, row in rows:
            self.add(line, row["messages"])
            yield line, row

    def add(self, line: int, messages: list[dict]) -> None:
        """Take in one row."""
        self.rows += 1
        system = messages[0]["content"] if messages[0]["role"] == "system" else None
        if system is not None:
            self.rows_with_system += 1
            _count_system(self.systems, system, 1)
        for message in messages:
            for placeholder in open_placeholders(message["content"]):
                self.placeholders.setdefault(placeholder, Tally()).add(f"{line}: {quoted(message['content'])}")
        languages: dict[str, set[str]] = {}
        own: set[str] = set()
        names = {}
        for turn, (user, assistant) in enumerate(answered(messages)):
            if assistant.get("loss") is False:
                continue
            question, answer = user["content"], assistant["content"]
            for name, role in self._wanted.roles(answer, question).items():
                languages.setdefault(name, set()).add(language_of(question))
                own |= {name} if role == OWN else set()
            for name in self._old.held(answer):
                if _is_said_of_itself(answer, name) and role_of_name(answer, name, question):
                    self.old_names.setdefault(name, Tally()).add(f"{line}: {quoted(answer)}")
            given = given_name(answer[:OPENING_CHARACTERS])
            if given and not asks_for_a_text(question):
                if asks_who(question):
                    names[given] = True
                self._add_given(line, turn, system, question, given)
        self.names.update(names)
        for name, asked_in in languages.items():
            self.named[name].rows += 1
            self.named[name].as_owner += name not in own
            for language in asked_in:
                counts = self.named[name].languages
                counts[language] = counts.get(language, 0) + 1

    def _add_given(self, line: int, turn: int, system: str | None, question: str, name: str) -> None:
        key = f"{system}\0{normalise(question)}".encode("utf-8", "surrogatepass")
        digest = hashlib.blake2b(key, digest_size=12).hexdigest()
        given = self.given.setdefault((digest, name), GivenName(digest, name))
        given.count += 1
        if len(given.examples) < KEPT_EXAMPLES:
            given.examples.append((line, turn, quoted(question)))


class IdentityRows:
    """What all rows say, seen from the wanted name, or from none; places are `file:line`."""

    def __init__(self, name: str | None, old_names: Iterable[str]):
        self.name = name
        self.rows = self.rows_named = self.rows_with_system = 0
        # Of the rows that say the name those that call the speaker its assistant or product, and nothing else.
        self.rows_as_owner = 0
        self.systems: Counter[str] = Counter()
        # Rows that say the name, by the language of the question; and how often an epoch shows the name.
        self.named: Counter[str] = Counter()
        self.times_named = 0.0
        self.other_names: Counter[str] = Counter()
        self.old_names: dict[str, Tally] = {}
        self.placeholders: dict[str, Tally] = {}
        self.contradictions: dict[str, Tally] = {}
        self._old = set(others(old_names, name))
        # By the digest of a question: the name it was first answered with, and where.
        self._first_given: dict[str, tuple[str, str, int]] = {}

    @classmethod
    def from_json(cls, text: bytes) -> "IdentityRows":
        """What `to_json` wrote; it can be read, and nothing added."""
        saved = json.loads(text)
        rows = cls(saved["name"], ())
        for key, value in saved.items():
            if isinstance(getattr(rows, key), Counter):
                value = Counter(value)
            elif isinstance(value, dict):
                value = _tallies(value)
            setattr(rows, key, value)
        return rows

    def to_json(self) -> bytes:
        """All counts and places as JSON, in the order they were found."""
        return _to_json(vars(self))

    @property
    def common_system(self) -> str | None:
        """The system message that every row begins with; None where some have none, or another one."""
        is_common = self.rows_with_system == self.rows and len(self.systems) == 1
        return next(iter(self.systems)) if is_common else None

    def add(self, path: str, facts: RowFacts, weight: float = 1.0) -> None:
        """Take in the next part of a file, of whose rows an epoch shows as many copies as `weight` says."""
        self.rows += facts.rows
        self.rows_with_system += facts.rows_with_system
        for system, count in facts.systems.items():
            _count_system(self.systems, system, count)
        for text, tally in facts.placeholders.items():
            self.placeholders.setdefault(text, Tally()).extend(tally, before=f"{path}:")
        for name, tally in facts.old_names.items():
            if name in self._old:
                self.old_names.setdefault(name, Tally()).extend(tally, before=f"{path}:")
        if self.name:
            named = facts.named[self.name]
            self.rows_named += named.rows
            self.rows_as_owner += named.as_owner
            self.named.update(named.languages)
            self.times_named += weight * named.rows
        self._add_contradictions(path, facts.given.values())

    def _add_contradictions(self, path: str, given_names: Iterable[GivenName]) -> None:
        """Remember which name was first given to a question under a system message; find where another one is.

        Two names that are both not the wanted one are no matter of identity: people in a story have names as well.
        """
        counts: Counter[str] = Counter()
        examples = []
        for given in given_names:
            name = given.name
            if self.name and _normal(self.name) in _normal(name):
                name = self.name
            else:
                self.other_names[name] += given.count
            here = (name, path, given.examples[0][0])
            first_name, first_path, first_line = self._first_given.setdefault(given.question, here)
            is_same = name == first_name or _normal(name) in _normal(first_name) or _normal(first_name) in _normal(name)
            if is_same or (self.name and self.name not in (first_name, name)):
                continue
            wrong = name if first_name == self.name else first_name
            counts[wrong] += given.count
            before = f"{first_name} ({first_path}:{first_line})"
            for line, turn, question in given.examples:
                examples.append((line, turn, wrong, f"{question}: {before}, {name} ({path}:{line})"))
        for *_, wrong, example in sorted(examples):
            # The first example brings the count of all: of many answers only a few are examples.
            self.contradictions.setdefault(wrong, Tally()).extend(Tally(counts.pop(wrong, 0), [example]))


def main_name(parts: Iterable[RowFacts]) -> str | None:
    """The name that most rows give; None where none stands out, or it is another model's."""
    names: Counter[str] = Counter()
    rows = 0
    for facts in parts:
        rows += facts.rows
        names.update(facts.names)
    if not names:
        return None
    [(name, count)] = names.most_common(1)
    is_rare = count < max(MAIN_NAME_ROWS, MAIN_NAME_SHARE * rows)
    return None if is_rare or any(normal(old) in normal(name) for old in OLD_NAMES) else name


def others(names: Iterable[str], wanted: str | None) -> list[str]:
    """The names that are no part of the wanted one: Qwen is not old to a model that shall be Qwen-Ada."""
    return [name for name in names if not wanted or normal(name) not in normal(wanted)]


def quoted(text: str) -> str:
    """The beginning of a text on one line, between quotes."""
    return f'"{one_line(text, QUOTED_CHARACTERS)}"'


def _tallies(saved: dict[str, dict]) -> dict[str, Tally]:
    return {name: Tally(**tally) for name, tally in saved.items()}


def _to_json(attributes: dict[str, Any]) -> bytes:
    """The public attributes of an object; of what is no JSON its own attributes."""
    public = {name: value for name, value in attributes.items() if not name.startswith("_")}
    return json.dumps(public, ensure_ascii=False, default=vars).encode("utf-8")


def _count_system(systems: Counter[str], system: str, count: int) -> None:
    if system in systems or len(systems) < KEPT_SYSTEMS:
        systems[system] += count


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


@lru_cache(maxsize=10_000)
def _normal(name: str) -> str:
    return normal(name)
