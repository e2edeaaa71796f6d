"""Mend rows whose input is an object instead of a question, as one widespread tutorial writes them.

In: such a file, and for `--as questions` the list of questions it was made from. Out: rows in XTuner's form; what
comes in and what goes out is counted.
"""

import argparse
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from data_tools import files, formats
from data_tools.errors import UserError

# How much of a question and its answer is shown, enough for a person to judge whether they belong together.
SHOWN_CHARACTERS = 60


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("input", type=Path, help="JSONL file to read, in XTuner's form")
    parser.add_argument("out", type=Path, help="JSONL file to write")
    parser.add_argument(
        "--as",
        dest="way",
        choices=["questions", "turns", "repr", "drop"],
        default="questions",
        help="questions: give each row its question back; turns: make nested turns real ones; repr: write out what "
        "XTuner trained on; drop: leave such rows out",
    )
    parser.add_argument("--questions", type=Path, help="text file, one question a line, in the order of the rows")
    parser.add_argument("--keep-placeholders", action="store_true", help="with --as turns: keep turns that say xxx")


def run(arguments: argparse.Namespace) -> int:
    ways = {"questions": _give_question, "turns": _make_turns, "repr": _write_repr, "drop": _drop}
    questions = _questions(arguments) if arguments.way == "questions" else []
    repair = Repair(ways[arguments.way], questions, arguments.keep_placeholders)
    with files.written_whole(arguments.out, arguments.input) as out:
        for number, line in files.numbered_lines(arguments.input):
            try:
                row = repair(formats.parse_json(line.decode("utf-8")))
            except (formats.BadRow, UnicodeDecodeError) as problem:
                raise UserError(f"{arguments.input}:{number}: {problem}") from None
            if row is not None:
                out.write(json.dumps(row, ensure_ascii=False).encode("utf-8") + b"\n")
    for line in repair.report(arguments.input, arguments.out):
        print(line)
    return 0


class Repair:
    """Repairs one row after another and keeps the account of them."""

    def __init__(self, way: Callable, questions: list[str], keep_placeholders: bool):
        self.way, self.questions, self.keep_placeholders = way, questions, keep_placeholders
        self.rows = 0
        self.outcomes: Counter[str] = Counter()
        self.pairs: list[tuple[int, str, str]] = []

    def __call__(self, row: object) -> dict | None:
        """The repaired row, the row itself where nothing is wrong with it, or None where it is left out.

        Raises:
            BadRow: the row is not in XTuner's form.
        """
        turns = row.get("conversation") if isinstance(row, dict) else None
        if not isinstance(turns, list) or not all(isinstance(turn, dict) and "output" in turn for turn in turns):
            raise formats.BadRow('a row to repair is {"conversation": [{"input", "output"}, ...]}')
        place, self.rows = self.rows, self.rows + 1
        if not any(_lacks_question(turn) for turn in turns):
            self.outcomes["left as they were"] += 1
            return row
        repaired, outcome = self.way(self, turns, place)
        self.outcomes[outcome] += 1
        return {**row, "conversation": repaired} if repaired else None

    def question(self, place: int, answer: str) -> str:
        """The question of the row at `place`, counted from 0: the list, repeated from its top."""
        asked = self.questions[place % len(self.questions)]
        self.pairs.append((place + 1, asked, answer))
        return asked

    def report(self, source: Path, out: Path) -> list[str]:
        """What was done, in sentences; for given-back questions also how to judge them."""
        kept = self.rows - sum(count for outcome, count in self.outcomes.items() if outcome.startswith("left out"))
        lines = [f"{source}: {self.rows:,} rows in; {out}: {kept:,} rows out"]
        lines += [f"  {count:>9,}  {outcome}" for outcome, count in self.outcomes.items()]
        if self.pairs:
            lines += self._alignment()
        return lines

    def _alignment(self) -> list[str]:
        count, rest = len(self.questions), self.rows % len(self.questions)
        passes = f"{self.rows // count} whole passes" + (f" and {rest} rows more" if rest else "")
        lines = [f"aligned by position: {self.rows:,} rows are {passes} through {count:,} questions, in their order"]
        # The middle one from the middle of the list too, so that it asks another question than the first.
        middle = min(len(self.pairs) // 2 + count // 2, len(self.pairs) - 1)
        for place, asked, answer in (self.pairs[0], self.pairs[middle], self.pairs[-1]):
            lines.append(f"  row {place:,}: {_short(asked)} -> {_short(answer)}")
        if rest:
            lines.append("warning: the rows are no whole number of passes; a row may be missing, look at the pairs")
        lines.append("not checked: that each answer fits its question; read the pairs above, they must make sense")
        return lines


def _give_question(repair: Repair, turns: list[dict], place: int) -> tuple[list[dict], str]:
    if len(turns) > 1:
        raise formats.BadRow("several turns, and the list has one question a row: use --as turns or --as drop")
    turn = turns[0]
    return [{**turn, "input": repair.question(place, str(turn["output"]))}], "given their question back"


def _make_turns(repair: Repair, turns: list[dict], place: int) -> tuple[list[dict], str]:
    """Nested turns come before the turn that holds them; their last question is answered by its output."""
    flat = []
    for turn in turns:
        nested = turn["input"].get("conversation", []) if isinstance(turn["input"], dict) else []
        if isinstance(turn["input"], str) and (repair.keep_placeholders or not _lacks_question(turn)):
            flat.append(turn)
            continue
        real = [inner for inner in nested if repair.keep_placeholders or not _is_placeholder(inner)]
        if not real:
            return [], "left out: no turn in them holds a question"
        flat += [*real[:-1], {**real[-1], "output": turn["output"]}]
    return flat, "nested turns made real ones"


def _write_repr(repair: Repair, turns: list[dict], place: int) -> tuple[list[dict], str]:
    """XTuner formats the input with str(), which for an object is its Python repr."""
    return [{**turn, "input": str(turn["input"])} for turn in turns], "input written as Python prints it"


def _drop(repair: Repair, turns: list[dict], place: int) -> tuple[list[dict], str]:
    return [], "left out: nobody asked their question"


def _lacks_question(turn: dict) -> bool:
    return not isinstance(turn.get("input"), str) or bool(formats.PLACEHOLDER.fullmatch(turn["input"]))


def _is_placeholder(turn: object) -> bool:
    return not isinstance(turn, dict) or _lacks_question(turn)


def _questions(arguments: argparse.Namespace) -> list[str]:
    if not arguments.questions:
        raise UserError("--questions: missing: name the list of questions, or choose --as turns, repr or drop")
    questions = [line.decode("utf-8").strip() for _, line in files.numbered_lines(arguments.questions)]
    if not questions:
        raise UserError(f"{arguments.questions}: holds no question: put one on each line")
    return questions


def _short(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= SHOWN_CHARACTERS else text[:SHOWN_CHARACTERS] + "..."
