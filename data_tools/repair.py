"""Mend rows whose input is an object instead of a question, as one widespread tutorial writes them.

In: such a file, and for `--as questions` the list of questions it was made from. Out: rows in XTuner's form; what
comes in and what goes out is counted.
"""

import argparse
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from data_tools import bad_lines, inputs
from sft.core import files
from sft.core.errors import UserError
from sft.core.text import counted, one_line
from sft.core.verbs import add_output
from sft.data.rows.canonical import PLACEHOLDER
from sft.data.rows.json_line import BadRow, ended, json_line, parse_line

# How much of a question and its answer is shown, enough for a person to judge whether they belong together.
SHOWN_CHARACTERS = 60
# So many pairs are kept while reading, of which the first, one near the middle and the last are shown.
PAIRS_KEPT = 4096


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what the verb takes."""
    inputs.add_arguments(parser)
    add_output(parser, "out", help="JSONL file to write")
    parser.add_argument(
        "--as",
        dest="way",
        choices=["questions", "turns", "repr", "drop"],
        default="questions",
        help="questions: give each row its question back; turns: make nested turns real ones; repr: write out what "
        "XTuner trained on; drop: skip such rows",
    )
    parser.add_argument("--questions", type=Path, help="text file, one question a line, in the order of the rows")
    parser.add_argument("--keep-placeholders", action="store_true", help="with --as turns: keep turns that say xxx")
    bad_lines.add_argument(parser)


def run(arguments: argparse.Namespace) -> int:
    """Repair the rows and print what became of them; returns the exit code."""
    ways = {"questions": _give_question, "turns": _make_turns, "repr": _write_repr, "drop": _drop}
    questions = _questions(arguments) if arguments.way == "questions" else []
    repair = Repair(ways[arguments.way], questions, arguments.keep_placeholders)
    file = inputs.row_file(arguments.input, arguments)
    with (
        bad_lines.collect(arguments.skip_bad, arguments.input) as bad,
        files.atomic_write(arguments.out, arguments.input, *filter(None, [arguments.questions])) as out,
    ):
        for number, line in file.lines():
            try:
                out.write(repair(line))
            except BadRow as problem:
                bad(arguments.input, number, problem, line)
    for summary in repair.report(file.described(), arguments.out, bad):
        print(summary)
    return 0


class Repair:
    """Repairs one row after another and counts what became of them."""

    def __init__(self, way: Callable, questions: list[str], keep_placeholders: bool):
        self.way, self.questions, self.keep_placeholders = way, questions, keep_placeholders
        self.rows = 0
        self.outcomes: Counter[str] = Counter()
        self._pairs: list[tuple[int, str, str]] = []
        self._stride = 1

    def __call__(self, line: bytes) -> bytes:
        """The repaired line, the line itself where nothing is wrong with it, or nothing where it is skipped.

        Raises:
            BadRow: the row is not in XTuner's form.
        """
        index, self.rows = self.rows, self.rows + 1
        row: Any = parse_line(line)
        turns = row.get("conversation") if isinstance(row, dict) else None
        if not isinstance(turns, list) or not all(_is_turn(turn) for turn in turns):
            raise BadRow('a row to repair is {"conversation": [{"input": ..., "output": ...}, ...]}: mend it')
        if not any(_lacks_question(turn) for turn in turns):
            self.outcomes["left as they were"] += 1
            return ended(line)
        repaired, outcome = self.way(self, turns, index)
        self.outcomes[outcome] += 1
        return json_line({**row, "conversation": repaired}) if repaired else b""

    def question(self, index: int, answer: str) -> str:
        """The question of the row at `index`, counted from 0: the list, repeated from its top."""
        question = self.questions[index % len(self.questions)]
        self._remember(index + 1, question, answer)
        return question

    def _remember(self, row: int, question: str, answer: str) -> None:
        """Keep pairs from all over the file for the report, evenly spread and never many, and always the last."""
        if self._pairs and self._pairs[-1][0] % self._stride:
            self._pairs.pop()
        self._pairs.append((row, question, one_line(answer, SHOWN_CHARACTERS)))
        if len(self._pairs) > PAIRS_KEPT:
            self._pairs, self._stride = [self._pairs[0], *self._pairs[2::2]], self._stride * 2

    def report(self, source: str, out: Path, bad: bad_lines.BadLines) -> list[str]:
        """What was done, in sentences; for given-back questions also how to judge them."""
        skipped = sum(count for outcome, count in self.outcomes.items() if outcome.startswith("skipped"))
        lines = [
            f"{source}: {counted(self.rows, 'row')} in; {out}: {counted(self.rows - skipped - bad.count, 'row')} out"
        ]
        lines += [f"  {count:>9,}  {outcome}" for outcome, count in self.outcomes.items()]
        lines += bad.summary()
        if self._pairs:
            lines += self._alignment()
        return lines

    def _alignment(self) -> list[str]:
        count, rest = len(self.questions), self.rows % len(self.questions)
        passes = counted(self.rows // count, "whole pass") + (f" and {counted(rest, 'row')} more" if rest else "")
        questions = counted(count, "question")
        lines = [f"aligned by position: {counted(self.rows, 'row')}, {passes} through {questions}, in their order"]
        # The middle one from the middle of the list too, so that it asks another question than the first.
        middle = self.rows // 2 + count // 2
        nearest = min(self._pairs, key=lambda pair: abs(pair[0] - 1 - middle))
        for row, question, answer in dict.fromkeys((self._pairs[0], nearest, self._pairs[-1])):
            lines.append(f"  row {row:,}: {one_line(question, SHOWN_CHARACTERS)} -> {answer}")
        if rest:
            lines.append("warning: the rows are no whole number of passes; a row may be missing, look at the pairs")
        lines.append("not checked: that each answer fits its question; read the pairs above, they must make sense")
        return lines


def _is_turn(turn: object) -> bool:
    return isinstance(turn, dict) and "input" in turn and "output" in turn


def _give_question(repair: Repair, turns: list[dict], index: int) -> tuple[list[dict], str]:
    if len(turns) > 1:
        raise BadRow("several turns, and the list has one question a row: use --as turns or --as drop")
    turn = turns[0]
    return [{**turn, "input": repair.question(index, str(turn["output"]))}], "given their question back"


def _make_turns(repair: Repair, turns: list[dict], index: int) -> tuple[list[dict], str]:
    """Nested turns come before the turn that holds them; their last question is answered by its output."""
    flat = []
    for turn in turns:
        nested = turn["input"].get("conversation", []) if isinstance(turn["input"], dict) else []
        if not isinstance(nested, list) or not all(_is_turn(inner) for inner in nested):
            raise BadRow('the nested "conversation" is no list of turns with "input" and "output": mend it')
        if isinstance(turn["input"], str) and (repair.keep_placeholders or not _lacks_question(turn)):
            flat.append(turn)
            continue
        real = [inner for inner in nested if repair.keep_placeholders or not _lacks_question(inner)]
        if not real:
            return [], "skipped: no turn in them holds a question"
        # Whatever else the turn says, such as whether it carries loss, it says of its output.
        said = {key: value for key, value in turn.items() if key not in ("system", "input")}
        flat += [*real[:-1], {**real[-1], **said}]
    return flat, "nested turns made real ones"


def _write_repr(repair: Repair, turns: list[dict], index: int) -> tuple[list[dict], str]:
    """XTuner formats the input with str(), which for an object is its Python repr."""
    return [{**turn, "input": str(turn["input"])} for turn in turns], "input written as Python prints it"


def _drop(repair: Repair, turns: list[dict], index: int) -> tuple[list[dict], str]:
    return [], "skipped: nobody asked their question"


def _lacks_question(turn: dict) -> bool:
    return not isinstance(turn.get("input"), str) or bool(PLACEHOLDER.fullmatch(turn["input"]))


def _questions(arguments: argparse.Namespace) -> list[str]:
    if not arguments.questions:
        raise UserError("--questions: missing: name the list of questions, or choose --as turns, repr or drop")
    questions = []
    for number, line in files.numbered_lines(arguments.questions):
        try:
            questions.append(line.decode("utf-8").strip())
        except UnicodeDecodeError:
            raise UserError(f"{arguments.questions}:{number}: not UTF-8: save the file as UTF-8") from None
    if not questions:
        raise UserError(f"{arguments.questions}: holds no question: put one on each line")
    return questions
