"""Reads people's own question and answer patterns for `generate`.

A YAML list; each entry asks any of its questions and gives any of its answers:

    - questions: [你是谁家的助手, 谁在用你]
      answers: ["我是{name}，{author}的助手。"]

`{name}` and `{author}` stand for what the command line says.
"""

import string
from dataclasses import dataclass
from pathlib import Path

from sft.core.errors import UserError
from sft.core.yaml_file import read_yaml

SLOTS = {"name", "author"}


@dataclass
class Pattern:
    """Questions that mean the same, and answers that fit each of them."""

    questions: list[str]
    answers: list[str]


def load_patterns(path: Path) -> list[Pattern]:
    """The patterns of a file, checked.

    Raises:
        UserError: the file cannot be read, or an entry is not as above; names its line.
    """
    root, entries = read_yaml(path)
    if not isinstance(entries, list) or not entries:
        raise UserError(f"{path}: holds no pattern: write a list of entries with questions and answers")
    return [
        _pattern(f"{path}:{node.start_mark.line + 1}", entry) for node, entry in zip(root.value, entries, strict=True)
    ]


def _pattern(place: str, entry: object) -> Pattern:
    if not isinstance(entry, dict) or entry.keys() != {"questions", "answers"}:
        raise UserError(f"{place}: an entry has questions and answers, and nothing else")
    for key, texts in entry.items():
        if (
            not isinstance(texts, list)
            or not texts
            or not all(isinstance(text, str) and text.strip() for text in texts)
        ):
            raise UserError(f"{place}: {key}: must be a list of texts")
        for text in texts:
            _check_slots(f"{place}: {key}", text)
    return Pattern(entry["questions"], entry["answers"])


def _check_slots(place: str, text: str) -> None:
    try:
        slots = {slot for _, slot, _, _ in string.Formatter().parse(text) if slot is not None}
    except ValueError:
        raise UserError(f"{place}: {text!r}: write {{{{ and }}}} for braces that are no slot") from None
    if slots - SLOTS:
        raise UserError(f"{place}: {text!r}: knows the slots {{name}} and {{author}} only")
