"""Words for a person: how many of something, the first few examples, a text on one line; and how questions compare."""

import re
import shlex
from dataclasses import dataclass, field

KEPT_EXAMPLES = 5


@dataclass
class Tally:
    """How often something was found, and the first few examples."""

    count: int = 0
    examples: list[str] = field(default_factory=list)

    def add(self, example: str) -> None:
        """Count one more; its example is kept if it is among the first few."""
        self.count += 1
        if len(self.examples) < KEPT_EXAMPLES:
            self.examples.append(example)

    def extend(self, later: "Tally", before: str = "") -> None:
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


def shell_word(text: str) -> str:
    """The text as one word of a shell's command line; Chinese needs no quotes."""
    return text if re.fullmatch(r"[\w./:=@%+,-]+", text) else shlex.quote(text)


def language_of(question: str) -> str:
    """`en` for plain ASCII, else `zh`: questions are asked in these two languages."""
    return "en" if question.isascii() else "zh"


def normalise(question: str) -> str:
    """The question without case, spaces and punctuation: two that differ in nothing else are the same question."""
    return re.sub(r"[\W_]+", "", question.lower())
