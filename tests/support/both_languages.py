"""Findings as a reader of one language has them: Chinese that holds no English sentence, English to compare."""

import re
from collections.abc import Iterable
from typing import NamedTuple

from sft.core.finding import Finding
from sft.core.language import Text

# What is the same in every language, and errors of the stack, which are English.
QUOTED = re.compile(r'"(?:[^"\\]|\\.)*"|报错：.*')
ENGLISH_SENTENCE = re.compile(r"(?<![-\w])[A-Za-z]+,? [a-z]+,? [a-z]{2,}\b")


class English(NamedTuple):
    """The English of a finding."""

    wrong: str
    evidence: list[str]
    do: str | None


def english(findings: Iterable[Finding]) -> list[English]:
    """The English of findings whose Chinese holds none."""
    return [
        English(
            *english_lines([each.wrong]),
            english_lines(each.evidence),
            *(english_lines([each.do]) if each.do else [None]),
        )
        for each in findings
    ]


def english_lines(lines: Iterable[Text]) -> list[str]:
    """The English of lines whose Chinese holds none."""
    lines = list(lines)
    refuse_english(line.zh for line in lines)
    return [line.en for line in lines]


def english_half(lines: list[str]) -> list[str]:
    """Of lines shown in both languages, those in English, which are the second half."""
    half = len(lines) // 2
    chinese, others = lines[:half], lines[half:]
    assert len(chinese) == len(others)
    assert re.search("[一-鿿]", QUOTED.sub("", "".join(chinese)))
    refuse_english(chinese)
    return others


def refuse_english(lines: Iterable[str]) -> None:
    """Fail where a line holds an English sentence outside quotes."""
    for line in lines:
        assert not ENGLISH_SENTENCE.search(QUOTED.sub("", line)), line
