"""What is told in words: how many of something, the first of many; and what a question's text is compared by."""

import re
from dataclasses import dataclass, field

KEPT_EXAMPLES = 5


@dataclass
class Tally:
    """How often something was found, and the first few places."""

    count: int = 0
    examples: list[str] = field(default_factory=list)

    def add(self, example: str) -> None:
        self.count += 1
        if len(self.examples) < KEPT_EXAMPLES:
            self.examples.append(example)


def counted(count: int, noun: str) -> str:
    """Such as "1 row", "1,234 rows" and "2 processes"."""
    if count == 1:
        return f"1 {noun}"
    return f"{count:,} {noun}{'es' if noun.endswith('s') else 's'}"


def language_of(question: str) -> str:
    return "en" if question.isascii() else "zh"


def normalise(question: str) -> str:
    """A question without case, spaces and punctuation, to tell whether two are the same."""
    return re.sub(r"[\W_]+", "", question.lower())
