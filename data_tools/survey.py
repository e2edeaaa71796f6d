"""Measures a training file, row after row: what it holds, what it repeats, what is wrong with it.

Knows nothing about printing. What grows with the file is a few bytes a row: lengths, digests of questions and rows.
"""

import hashlib
import itertools
import math
import re
from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from data_tools.dedup import Duplicates, NearDuplicates
from sft.core.text import Tally, normalise
from sft.data import formats
from sft.data.canonical import PLACEHOLDER, NoQuestion, answered, texts_of
from sft.data.identity import given_name
from sft.data.json_line import BadRow, parse_line
from sft.data.row_shapes import shape_of

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
_KINDS = list(_SHAPES)


class Survey:
    """The facts about a file; `add` takes its lines one by one."""

    def __init__(self, was: Sequence[str] = (), count_tokens: Callable[[int, dict], int] | None = None):
        self.was, self.count_tokens = list(was), count_tokens
        self.rows = self.turns = self.characters = 0
        self.formats: Counter[str] = Counter()
        self.bad = Tally()
        # Rows whose input is an object: nobody's question. Nested turns that say xxx.
        self.nested = self.placeholders = 0
        self.empty_answers, self.control_tokens = Tally(), Tally()
        self.nested_characters = 0
        self.systems: Counter[str] = Counter()
        self.rows_with_system = self.system_characters = 0
        self.languages: Counter[str] = Counter()
        self.lengths, self.token_lengths = array("I"), array("I")
        self.names: Counter[str] = Counter()
        self.contradictions, self.exact, self.near = Tally(), Tally(), Tally()
        self.leftovers: dict[str, Tally] = {name: Tally() for name in self.was}
        self.sensitive: dict[str, Tally] = {}
        self._duplicates, self._near = Duplicates(), NearDuplicates(NEAR_SIMILARITY)
        self._named_first: dict[bytes, str] = {}

    def add(self, number: int, raw: bytes) -> None:
        """Take in one line; of a bad one only that it is bad."""
        self.rows += 1
        try:
            row = parse_line(raw)
            self.formats[shape_of(row).name] += 1
            canonical, has_question = formats.canonical_row(row), True
        except NoQuestion:
            self._add_nested(row)
            canonical, has_question = {"messages": as_trained_by_xtuner(row)}, False
        except BadRow as problem:
            self.bad.add(f"line {number}: {problem}")
            return
        messages = canonical["messages"]
        texts = list(itertools.chain.from_iterable(map(texts_of, messages)))
        self._add_messages(number, messages, texts)
        if self.count_tokens:
            self.token_lengths.append(self.count_tokens(number, canonical))
        self._add_identity(messages, has_question)
        # An object that stands in for the question would make all such rows alike.
        self._add_repeats(number, canonical if has_question else {"messages": messages[-1:]})
        self._add_texts(number, texts)

    def _add_nested(self, row: Any) -> None:
        self.nested += 1
        for turn in _dicts(row.get("conversation")):
            question = turn.get("input")
            if not isinstance(question, dict):
                self.placeholders += _says_placeholder(turn)
                continue
            self.nested_characters += len(str(question))
            self.placeholders += sum(map(_says_placeholder, _dicts(question.get("conversation"))))

    def _add_messages(self, number: int, messages: list[dict], texts: list[str]) -> None:
        answers = [message for message in messages if message["role"] == "assistant"]
        self.turns += len(answers)
        if not all(answer["content"].strip() or "tool_calls" in answer for answer in answers):
            self.empty_answers.add(f"line {number:,}")
        self.characters += sum(map(len, texts))
        self.lengths.append(sum(map(len, texts)))
        if messages and messages[0]["role"] == "system":
            self._add_system(texts[0])
        self.languages[script("".join(answer["content"] for answer in answers))] += 1

    def _add_texts(self, number: int, texts: list[str]) -> None:
        """What no text should hold: an old name, something private."""
        for name, finding in self.leftovers.items():
            if any(name in text for text in texts):
                finding.add(f"line {number}")
        if control := next(filter(None, map(CONTROL_TOKEN.search, texts)), None):
            self.control_tokens.add(f"line {number:,}: {control[0]}")
        for text in texts:
            for kind, shown in sensitive(text):
                self.sensitive.setdefault(kind, Tally()).add(f"line {number}: {shown}")

    def _add_system(self, system: str) -> None:
        self.rows_with_system += 1
        self.system_characters += len(system)
        if system in self.systems or len(self.systems) < KEPT_TEXTS:
            self.systems[system] += 1

    def _add_identity(self, messages: list[dict], has_question: bool) -> None:
        """Names the answers give, and questions that were answered with another name before."""
        given = None
        for user, assistant in answered(messages):
            if name := given_name(assistant["content"]):
                given = given or name
                question = user["content"]
                before = self._named_first.setdefault(_digest(question), name) if has_question else name
                if before != name:
                    self.contradictions.add(f"{question[:40]}: {before} and {name}")
        if given and (given in self.names or len(self.names) < KEPT_TEXTS):
            self.names[given] += 1

    def _add_repeats(self, number: int, row: dict) -> None:
        if like := self._duplicates.first_like(number, row):
            self.exact.add(f"line {number:,} is line {like[0]:,} again")
        elif self.rows <= NEAR_ROWS and (first := self._near.first_like(number, row["messages"])):
            self.near.add(f"line {number:,} is nearly line {first:,}")

    @property
    def named_rows(self) -> int:
        """Rows that give the assistant a name."""
        return self.names.total()


def as_trained_by_xtuner(row: Any) -> list[dict]:
    """The messages XTuner makes of a row without a question: an object becomes its Python repr, the user's words."""
    messages: list[dict] = []
    for turn in _dicts(row.get("conversation")):
        if not messages and turn.get("system"):
            messages.append({"role": "system", "content": str(turn["system"])})
        messages.append({"role": "user", "content": str(turn.get("input"))})
        messages.append({"role": "assistant", "content": str(turn.get("output"))})
    return messages


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


def _digest(question: str) -> bytes:
    return hashlib.blake2b(normalise(question).encode("utf-8", "surrogatepass"), digest_size=12).digest()
