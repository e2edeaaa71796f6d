"""Words for a person: how many of something, first examples, a text on one line or visible; how questions compare."""

import re
import shlex
from dataclasses import dataclass, field
from typing import Generic, TypeVar

KEPT_EXAMPLES = 5
# What a terminal obeys or does not show: control characters but newline and tab, marks of direction, separators of
# lines, invisible characters, half surrogate pairs, code points that are none. A joiner (U+200D, U+200C) shapes its
# neighbours. Tags are invisible, except where they make the flag of a region.
FLAG = "\U0001f3f4[\U000e0020-\U000e007e]{1,16}\U000e007f"
UNSEEN = re.compile(
    f"({FLAG})|["
    "\x00-\x08\x0b-\x1f\x7f-\x9f\xad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\ufffe\uffff"
    "\ud800-\udfff\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e00ff]"
)


Example = TypeVar("Example")


@dataclass
class Tally(Generic[Example]):
    """How often something was found, and the first few examples."""

    count: int = 0
    examples: list[Example] = field(default_factory=list)

    def add(self, example: Example) -> None:
        """Count one more; its example is kept if it is among the first few."""
        self.count += 1
        if len(self.examples) < KEPT_EXAMPLES:
            self.examples.append(example)

    def extend(self: "Tally[str]", later: "Tally[str]", before: str = "") -> None:
        """Count what was found later as well; its examples come after these, with `before` in front of each."""
        self.count += later.count
        room = KEPT_EXAMPLES - len(self.examples)
        self.examples += [before + example for example in later.examples[:room]]


def counted(count: int, noun: str) -> str:
    """Such as "1 row", "1,234 rows" and "2 processes"."""
    if count == 1:
        return f"1 {noun}"
    return f"{count:,} {noun}{'es' if noun.endswith('s') else 's'}"


def one_line(text: str, longest: int | None = None) -> str:
    """The text on one line; "..." stands for what comes after the first `longest` characters."""
    line = " ".join(text.split())
    return line if longest is None or len(line) <= longest else line[:longest] + "..."


def one_line_message(problem: Exception, longest: int | None = None) -> str:
    """The message of an exception as one line of at most `longest` characters (None: of any length)."""
    return one_line(str(problem))[:longest]


def visible(text: str) -> str:
    """The text with an escape such as \\x1b or \\u202e for each character that a terminal would obey or not show."""
    return UNSEEN.sub(lambda found: found[1] or found[0].encode("unicode_escape").decode("ascii"), text)


def shell_word(text: str) -> str:
    """The text as one word of a shell's command line; Chinese needs no quotes."""
    return text if re.fullmatch(r"[\w./:=@%+,-]+", text) else shlex.quote(text)


def language_of(question: str) -> str:
    """`en` for plain ASCII, else `zh`: questions are asked in these two languages."""
    return "en" if question.isascii() else "zh"


def normalise(question: str) -> str:
    """The question without case, spaces and punctuation: two that differ in nothing else are the same question."""
    return re.sub(r"[\W_]+", "", question.lower())
