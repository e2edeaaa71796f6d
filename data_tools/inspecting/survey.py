"""Measures a training file, row after row: what it holds, what it repeats, what is wrong with it.

Knows nothing about printing. What grows with the file is a few bytes a row: lengths, digests of questions and rows.
"""

import itertools
import math
import re
from array import array
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from functools import cached_property
from typing import Any

from data_tools.dedup import Duplicates, NearDuplicates
from data_tools.renaming.own_name import owner_of
from data_tools.renaming.spellings import as_word
from sft.core.text import Tally
from sft.data.given_names import asks_for_a_text, asks_who, given_name
from sft.data.identity import OLD_NAMES, normal
from sft.data.identity_rows import IdentityRows, NamedRows, RowFacts, SoughtNames, main_name
from sft.data.placeholders import open_placeholders
from sft.data.rows.canonical import PLACEHOLDER, NoQuestion, answered, texts_of
from sft.data.rows.json_line import BadRow, parse_line
from sft.data.rows.row_shapes import shape_of
from sft.data.rows.unknown_format import UnknownFormat

# Nearly alike rows are looked for among so many of the first, as each of them is remembered.
NEAR_ROWS = 20_000
NEAR_SIMILARITY = 0.9
# So many distinct systems and names, and examples of a kind, are kept.
KEPT_TEXTS = 1000

_SCRIPTS = {
    "Chinese": re.compile("[\u3400-\u9fff]"),
    "Japanese": re.compile("[\u3040-\u30ff]"),
    "Korean": re.compile("[\uac00-\ud7af]"),
    "Cyrillic": re.compile("[\u0400-\u04ff]"),
    "Arabic": re.compile("[\u0600-\u06ff]"),
    "Latin": re.compile("[A-Za-z\u00c0-\u024f]"),
}


# Of the chat templates of many models: <|im_end|>, <｜Assistant｜>, [INST], <start_of_turn>, </s>.
CONTROL_TOKEN = re.compile(r"<\|[^<>|\s]{1,40}\|>|<｜[^<>｜]{1,40}｜>|\[/?INST\]|<(?:start|end)_of_turn>|</?s>")

# What nobody means to teach: keys, phone numbers, e-mail addresses, identity numbers.
_SHAPES = {
    "API key": r"\b(?:sk-[\w-]{20,}|hf_[A-Za-z0-9]{30,}|gh[pousr]_[A-Za-z0-9]{36}|xox[abprs]-[\w-]{10,}"
    r"|(?:AKIA|ASIA)[0-9A-Z]{16})\b",
    "private key": r"-----BEGIN [A-Z ]*PRIVATE KEY-----",
    "identity number": r"(?<!\d)\d{6}(?:19|20)\d\d(?:0[1-9]|1[0-2])(?:0[1-9]|[12]\d|3[01])\d{3}[\dXx](?!\w)",
    "phone number": r"(?<![\d.])(?:\+?86[- ]?)?1[3-9]\d(?:[- ]?\d{4}){2}(?![\d.])"
    r"|(?<!\d)\+\d{1,3}(?:[- ]?\d{2,4}){3,4}(?!\d)",
    "e-mail address": r"\b[\w.+-]+@[\w-]+\.[A-Za-z]{2,}\b",
}
_ANY = re.compile("|".join(f"({shape})" for shape in _SHAPES.values()))
_UNICODE = re.compile(r"\\u([0-9a-fA-F]{4})")
_KINDS = list(_SHAPES)


class Survey:
    """The facts about a file; `add` takes its lines one by one."""

    def __init__(
        self,
        was: Sequence[str] = (),
        count_tokens: Callable[[int, dict], int] | None = None,
        questions: int | None = None,
    ):
        self.was, self.count_tokens = list(was), count_tokens
        # How many questions `repair` can give back, one row after another; None where their list is not there.
        self.questions = questions
        self.rows = self.turns = self.characters = 0
        self.formats: Counter[str] = Counter()
        # Keys that rows have and nobody trains on, by rows.
        self.unused_keys: Counter[str] = Counter()
        self.bad: Tally[tuple[int, str]] = Tally()
        # What the keys of the first row of no known format may hold.
        self.guessed_columns: dict[str, str] | None = None
        # Rows whose input is an object: nobody's question; of these some hold one. Nested turns that say xxx.
        self.nested = self.nested_questions = self.nested_placeholders = 0
        self.empty_answers: Tally[int] = Tally()
        self.control_tokens: Tally[tuple[int, str]] = Tally()
        self.empty_lines = array("I")
        self.nested_characters = 0
        self.systems: Counter[str] = Counter()
        self.rows_with_system = self.system_characters = 0
        self.languages: Counter[str] = Counter()
        self.lengths, self.token_lengths = array("I"), array("I")
        # Rows by the name they give the assistant, by whose assistant it says it is, and by another model's name.
        self.names: Counter[str] = Counter()
        self.owners: Counter[str] = Counter()
        self.old_names: Counter[str] = Counter()
        # Rows without duplicates and empty answers, by whether they lack a question and are about identity.
        self.distinct: Counter[tuple[bool, bool]] = Counter()
        self.identity_rows = 0
        # Lines that are the same as, or much like, an earlier one.
        self.exact: Tally[tuple[int, int]] = Tally()
        self.near: Tally[tuple[int, int]] = Tally()
        self.leftovers: dict[str, Tally[int]] = {name: Tally() for name in self.was}
        self.sensitive: dict[str, Tally[tuple[int, str]]] = {}
        self._facts = RowFacts(SoughtNames((), tuple(dict.fromkeys([*OLD_NAMES, *was]))))
        self._leftovers = {name: re.compile(as_word(name)) for name in self.was}
        self._duplicates, self._near = Duplicates(), NearDuplicates(NEAR_SIMILARITY)

    def add(self, number: int, raw: bytes) -> None:
        """Take in one line; of a bad one only that it is bad."""
        self.rows += 1
        try:
            row: Any = parse_line(raw)
            shape = shape_of(row)
            self.formats[shape.name] += 1
            canonical, has_question = shape.read(row), True
        except NoQuestion:
            self._add_nested(row)
            canonical, has_question = {"messages": as_trained_by_xtuner(row)}, False
        except BadRow as problem:
            self.bad.add((number, str(problem)))
            if isinstance(problem, UnknownFormat) and self.guessed_columns is None:
                self.guessed_columns = problem.columns
            return
        self.unused_keys.update(shape.unused(row))
        messages = canonical["messages"]
        texts = list(itertools.chain.from_iterable(map(texts_of, messages)))
        is_answered = self._add_messages(number, messages, texts)
        if self.count_tokens:
            self.token_lengths.append(self.count_tokens(number, canonical))
        if not has_question:
            # The object in its place would make all such rows alike: as many are as repair gives one question.
            index = (self.rows - 1) % self.questions if self.questions else self.rows
            messages = [_asked(message, f"Who are you, {index}?") for message in messages]
        is_identity = self._add_identity(number, messages)
        is_new = self._add_repeats(number, canonical if has_question else {"messages": messages})
        if is_answered and is_new:
            self.distinct[not has_question, is_identity] += 1
        self._add_texts(number, texts)

    def _add_nested(self, row: Any) -> None:
        self.nested += 1
        holds_question = False
        for turn in _dicts(row.get("conversation")):
            question = turn.get("input")
            if not isinstance(question, dict):
                self.nested_placeholders += _says_placeholder(turn)
                continue
            self.nested_characters += len(str(question))
            inner = _dicts(question.get("conversation"))
            self.nested_placeholders += sum(map(_says_placeholder, inner))
            questions = (turn.get("input") for turn in inner)
            holds_question |= any(isinstance(text, str) and not PLACEHOLDER.fullmatch(text) for text in questions)
        self.nested_questions += holds_question

    def _add_messages(self, number: int, messages: list[dict], texts: list[str]) -> bool:
        """Take in how long the row is and what it is written in; returns whether every answer says something."""
        answers = [message for message in messages if message["role"] == "assistant"]
        self.turns += len(answers)
        is_answered = all(answer["content"].strip() or "tool_calls" in answer for answer in answers)
        if not is_answered:
            self.empty_answers.add(number)
            self.empty_lines.append(number)
        self.characters += sum(map(len, texts))
        self.lengths.append(sum(map(len, texts)))
        if messages and messages[0]["role"] == "system":
            self._add_system(texts[0])
        self.languages[script("".join(answer["content"] for answer in answers))] += 1
        return is_answered

    def _add_texts(self, number: int, texts: list[str]) -> None:
        """What no text should hold: an old name, something private."""
        for name, pattern in self._leftovers.items():
            if any(map(pattern.search, texts)):
                self.leftovers[name].add(number)
        if control := next(filter(None, map(CONTROL_TOKEN.search, texts)), None):
            self.control_tokens.add((number, control[0]))
        for text in texts:
            for kind, shown in sensitive(text):
                self.sensitive.setdefault(kind, Tally()).add((number, shown))

    def _add_system(self, system: str) -> None:
        self.rows_with_system += 1
        self.system_characters += len(system)
        if system in self.systems or len(self.systems) < KEPT_TEXTS:
            self.systems[system] += 1

    def _add_identity(self, number: int, messages: list[dict]) -> bool:
        """Whose name the answers give; returns whether they give one, or a placeholder of one."""
        before = {name: tally.count for name, tally in self._facts.old_names.items()}
        self._facts.add(number, messages)
        pairs = [(user["content"], assistant["content"]) for user, assistant in answered(messages)]
        answers = [(question, answer) for question, answer in pairs if not asks_for_a_text(question)]
        old = [name for name, tally in self._facts.old_names.items() if tally.count > before.get(name, 0)]
        owner = next(filter(None, (owner_of(answer, question) for question, answer in answers)), None)
        given = next(filter(None, (given_name(answer) for question, answer in answers if asks_who(question))), None)
        said = [answer for _, answer in pairs if any(map(normal(answer).__contains__, map(normal, old)))]
        stand = {_as_it_stands(name, answer) for name in old for answer in said}
        stand |= {given} if given and not stand and self._is_old(given) else set()
        self.old_names.update(stand - {*self.was})
        kept, name = (self.owners, owner) if owner else (self.names, given)
        if name and (name in kept or len(kept) < KEPT_TEXTS):
            kept[name] += 1
        is_identity = bool(name or old or any(open_placeholders(answer) for _, answer in pairs))
        self.identity_rows += is_identity
        return is_identity

    def _add_repeats(self, number: int, row: dict) -> bool:
        """Look for an earlier row like this one; returns whether there is none that is the same."""
        if like := self._duplicates.first_like(number, row):
            self.exact.add((number, like[0]))
            return False
        if self.rows <= NEAR_ROWS and (first := self._near.first_like(number, row["messages"])):
            self.near.add((number, first))
        return True

    @property
    def placeholders(self) -> dict[str, Tally]:
        """Texts by the placeholder of a name that they hold."""
        return self._facts.placeholders

    @property
    def named_rows(self) -> int:
        """Rows that give the assistant a name."""
        return self.names.total() + self.owners.total()

    @cached_property
    def name(self) -> str | None:
        """The assistant's name by the file, its own or else whose assistant it is; none of the old ones."""
        name = main_name([self._facts])
        if name is None or self._is_old(name):
            common = [*self.names.most_common(), *self.owners.most_common()]
            names = (one for one, count in common if count > 1 and one not in self.placeholders)
            name = next((one for one in names if not self._is_old(one)), None)
        return name

    @cached_property
    def contradictions(self) -> dict[str, Tally]:
        """Questions that were answered with another name before, by that name."""
        rows = IdentityRows(self.name, self._facts.old_names)
        if self.name:
            self._facts.named.setdefault(self.name, NamedRows())
        rows.add("line", self._facts)
        for finding in rows.contradictions.values():
            finding.examples = [example.replace("line:", "line ") for example in finding.examples]
        return rows.contradictions

    def _is_old(self, name: str) -> bool:
        return any(normal(old) in normal(name) for old in (*OLD_NAMES, *self.was))


def rows_holding(names: Collection[str], lines: Iterable[bytes]) -> Counter[str]:
    """In how many lines each of the names stands, as a word of its own."""
    counts: Counter[str] = Counter()
    if not names:
        return counts
    patterns = {name: re.compile(as_word(name)) for name in names}
    for raw in lines:
        text = _UNICODE.sub(lambda code: chr(int(code[1], 16)), raw.decode("utf-8", "replace"))
        counts.update(name for name, pattern in patterns.items() if pattern.search(text))
    return counts


def as_trained_by_xtuner(row: Any) -> list[dict]:
    """The messages XTuner makes of a row without a question: an object becomes its Python repr, the user's words."""
    messages: list[dict] = []
    for turn in _dicts(row.get("conversation")):
        if not messages and turn.get("system"):
            messages.append({"role": "system", "content": str(turn["system"])})
        messages.append({"role": "user", "content": str(turn.get("input"))})
        messages.append({"role": "assistant", "content": str(turn.get("output"))})
    return messages


def _asked(message: dict, question: str) -> dict:
    return {**message, "content": question} if message["role"] == "user" else message


def _as_it_stands(old: str, answer: str) -> str:
    """The old name with all that belongs to the word, such as Qwen2.5 and GPT-4o, as the answer spells it."""
    pattern = re.escape(old) + r"[A-Za-z0-9]*(?:[.-][A-Za-z0-9]+)*" if old.isascii() else re.escape(old)
    match = re.search(pattern, answer, re.IGNORECASE)
    return match[0] if match else old


def _dicts(turns: object) -> list[dict]:
    return [turn for turn in turns if isinstance(turn, dict)] if isinstance(turns, list) else []


def _says_placeholder(turn: dict) -> bool:
    return any(isinstance(text, str) and PLACEHOLDER.fullmatch(text) for text in turn.values())


def sensitive(text: str) -> Iterator[tuple[str, str]]:
    """Yield (kind, the match with all but its first four characters hidden) for what looks private.

    Shapes only: a match may be harmless, and what has another shape is missed.
    """
    for match in _ANY.finditer(text):
        yield _KINDS[(match.lastindex or 1) - 1], match.group()[:4] + "*" * min(len(match.group()) - 4, 8)


def script(text: str) -> str:
    """The script most of the text is written in; kana make it Japanese."""
    counts = {name: len(pattern.findall(text)) for name, pattern in _SCRIPTS.items()}
    if counts["Japanese"]:
        return "Japanese"
    # One Chinese character says about as much as three letters.
    best = max(counts, key=lambda name: counts[name] * (3 if name == "Chinese" else 1))
    return best if counts[best] else "no letters"


def percentile(ordered: list[int], share: float) -> int:
    """The smallest of the ordered values that `share` of them do not exceed (nearest rank)."""
    return ordered[max(math.ceil(len(ordered) * share), 1) - 1]
