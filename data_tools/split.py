"""Split a training file in two, so that no question of the one is asked in the other.

In: a data file. Out: two files that together hold every row once, JSON lines as they were. Questions are compared
without case, spaces and punctuation.
"""

import argparse
import random
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from data_tools import bad_lines, inputs
from sft.core import files
from sft.core.errors import UserError
from sft.core.text import counted, normalise
from sft.core.verbs import add_output
from sft.data.readers.row_file import RowFile
from sft.data.rows import formats
from sft.data.rows.json_line import ended


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what the verb takes."""
    inputs.add_arguments(parser)
    add_output(parser, "--train", required=True, help="file for the larger part")
    add_output(parser, "--eval", required=True, help="file for the part held out")
    parser.add_argument("--ratio", type=float, default=0.05, help="share of rows to hold out")
    parser.add_argument("--by", choices=["question"], default="question", help="what may not stand in both parts")
    parser.add_argument("--seed", type=int, default=0)
    bad_lines.add_argument(parser)


def run(arguments: argparse.Namespace) -> int:
    """Write the two files and their shares; returns the exit code."""
    if not 0 < arguments.ratio < 1:
        raise UserError("--ratio: must lie between 0 and 1, such as 0.05")
    with ExitStack() as stack:
        bad = stack.enter_context(bad_lines.collect(arguments.skip_bad, arguments.input))
        file = inputs.row_file(arguments.input, arguments)
        groups = group_rows(file, bad)
        held_out = choose_groups(list(groups.values()), arguments.ratio, arguments.seed)
        outs = {
            path: stack.enter_context(files.atomic_write(path, arguments.input))
            for path in (arguments.train, arguments.eval)
        }
        counts: Counter[Path] = Counter()
        for number, line in file.lines():
            if number in groups:
                path = arguments.eval if groups[number] in held_out else arguments.train
                outs[path].write(ended(line))
                counts[path] += 1
    total = len(groups)
    print(f"{file.described()}: {counted(total + bad.count, 'row')} in")
    for path in (arguments.train, arguments.eval):
        print(f"{path}: {counted(counts[path], 'row')} out ({counts[path] / total:.1%})")
    for summary in bad.summary():
        print(summary)
    together = counted(len(set(groups.values())), "group")
    print(f"no question stands in both; rows that share questions went together, in {together}")
    return 0


def group_rows(file: RowFile, on_bad: Callable = formats.stop_at_bad_line) -> dict[int, int]:
    """By line number the group of each row; rows that share a question, directly or through others, share a group."""
    parents: dict[int, int] = {}
    first_rows: dict[str, int] = {}
    for row, canonical in formats.read_rows(file, on_bad):
        parents[row] = row
        for message in canonical["messages"]:
            if message["role"] == "user":
                other = first_rows.setdefault(normalise(message["content"]), row)
                parents[_root(parents, row)] = _root(parents, other)
    return {row: _root(parents, row) for row in parents}


def choose_groups(groups: list[int], ratio: float, seed: int) -> set[int]:
    """Groups drawn at random until they hold `ratio` of the rows, never more than it takes and never all.

    Raises:
        UserError: there are not two groups.
    """
    sizes = Counter(groups)
    if len(sizes) < 2:
        raise UserError("every row shares its questions with every other, so none can be held out")
    wanted, rows = max(round(len(groups) * ratio), 1), 0
    drawn: set[int] = set()
    for group in random.Random(seed).sample(sorted(sizes), len(sizes)):
        if rows >= wanted or len(drawn) == len(sizes) - 1:
            break
        if rows + sizes[group] <= wanted or not drawn:
            drawn.add(group)
            rows += sizes[group]
    return drawn


def _root(parents: dict[int, int], row: int) -> int:
    while parents[row] != row:
        parents[row] = parents[parents[row]]
        row = parents[row]
    return row
