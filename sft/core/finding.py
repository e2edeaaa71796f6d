"""What was found wrong with a plan or a run, and what to do about it, in both languages.

In: texts of the catalogue. Out: lines for a console, JSON for a run directory, and back. Knows nothing about causes.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from sft.core.language import Text, _


@dataclass(frozen=True)
class Finding:
    """What is wrong, the evidence for it, and the one thing to do: a command or an edit.

    A note is about nothing wrong, but good to know.
    """

    wrong: Text
    evidence: list[Text] = field(default_factory=list)
    do: Text | None = None
    is_note: bool = False

    def lines(self) -> list[Text]:
        """What is wrong, and indented below it the evidence and what to do."""
        return [
            self.wrong,
            *(text.indented() for text in self.evidence),
            *([_("do: {what}", what=self.do).indented()] if self.do else []),
        ]

    def warning(self) -> list[Text]:
        """The same lines as a warning, or as a note."""
        first, *more = self.lines()
        head = _("note: {what}", what=first) if self.is_note else _("warning: {what}", what=first)
        return [head, *(line.indented(7) for line in more)]

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it, every text by language."""
        return {
            "wrong": self.wrong.to_dict(),
            "evidence": [text.to_dict() for text in self.evidence],
            "do": self.do.to_dict() if self.do else None,
            "is_note": self.is_note,
        }

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> "Finding":
        """What `to_dict` made.

        Raises:
            KeyError, TypeError: it did not make this.
        """
        do = content["do"]
        return cls(
            Text(**content["wrong"]),
            [Text(**text) for text in content["evidence"]],
            Text(**do) if do else None,
            content["is_note"],
        )
