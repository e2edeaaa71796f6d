"""Words for a person: counts, first examples, one line, a word of a shell; and which questions are the same."""

import shlex

import pytest

from sft.core.text import (
    KEPT_EXAMPLES,
    Tally,
    counted,
    language_of,
    normalise,
    one_line,
    one_line_message,
    shell_word,
    visible,
)


def test_a_tally_counts_all_and_keeps_the_first_examples():
    tally = Tally()
    for number in range(9):
        tally.add(str(number))
    assert (tally.count, tally.examples) == (9, ["0", "1", "2", "3", "4"])


@pytest.mark.parametrize("split", range(10))
def test_a_tally_in_two_parts_is_the_tally_of_the_whole(split):
    whole, first, later = Tally(), Tally(), Tally()
    for number in range(9):
        whole.add(f"a:{number}")
        (first.add(f"a:{number}") if number < split else later.add(str(number)))
    first.extend(later, before="a:")
    assert first == whole
    assert len(first.examples) == KEPT_EXAMPLES


def test_a_noun_is_in_the_plural_but_for_one():
    assert [counted(1, "row"), counted(0, "row"), counted(1234, "process")] == ["1 row", "0 rows", "1,234 processes"]


def test_a_text_is_shown_on_one_line_and_says_when_it_was_longer():
    assert one_line(" a\n\tb  c ") == "a b c"
    assert one_line("abc", 3) == "abc"
    assert one_line("abcd", 3) == "abc..."


@pytest.mark.parametrize("text", ["a b", "it's", "黄大力", "$(rm x)", "数据/a.jsonl", "", "{{name}}", "*", "a;b"])
def test_a_shell_reads_one_word(text):
    assert shlex.split(shell_word(text)) == [text]


def test_questions_are_the_same_but_for_case_spaces_and_punctuation():
    assert normalise("Who are you?") == normalise("who  are you") != normalise("who is he")
    assert [language_of("Who?"), language_of("你是谁")] == ["en", "zh"]


def test_a_message_of_several_lines_becomes_one_of_a_given_length():
    problem = ValueError("expected 3\n\n   found\t4\n")
    assert one_line_message(problem) == "expected 3 found 4"
    assert one_line_message(problem, 10) == "expected 3"


@pytest.mark.parametrize(
    "text",
    [
        "a\tb\n",
        "中文，　全角",
        "e\u0301 é",
        "👨\u200d👩\u200d👧 ❤\ufe0f 🏳\ufe0f\u200d🌈",
        "🏴󠁧󠁢󠁥󠁮󠁧󠁿",
        "می\u200cخواهم",
        "\u00a0\ue000",
    ],
)
def test_ordinary_text_is_shown_as_it_is(text):
    assert visible(text) == text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[31m", r"\x1b[31m"),
        ("\x00\x07\x08\x0b\r\x7f\x9b", r"\x00\x07\x08\x0b\r\x7f\x9b"),
        *((chr(code), f"\\u{code:04x}") for code in (0x61C, *range(0x202A, 0x202F), *range(0x2066, 0x206A))),
        *((chr(code), f"\\u{code:04x}") for code in (0x200B, 0x200E, 0x200F, 0x2028, 0x2029, 0xFEFF, 0xDCE9)),
        ("a\U000e0041", r"a\U000e0041"),
    ],
)
def test_what_a_terminal_would_obey_or_hide_is_escaped(text, shown):
    assert visible(text) == shown
