"""Mix several training files by weight into one, in random order.

In: data files, each with a weight: 1 takes every row once, 0.3 a random three tenths, 2 every row twice. Out: one
JSONL file of their rows, JSON lines as they were.
"""

import argparse
import io
import random
import tempfile
from array import array
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import BinaryIO

from data_tools import bad_lines, inputs
from sft.core import files
from sft.core.errors import UserError
from sft.core.text import counted
from sft.core.verbs import add_output
from sft.data.readers.row_file import RowFile
from sft.data.rows import formats
from sft.data.rows.json_line import BadRow, ended, parse_line


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what the verb takes."""
    add_output(parser, "out", help="JSONL file to write")
    parser.add_argument("parts", nargs="+", metavar="FILE:WEIGHT", help="such as a.jsonl:1.0 b.jsonl:0.3")
    inputs.add_columns(parser)
    parser.add_argument("--seed", type=int, default=0)
    bad_lines.add_argument(parser)


def run(arguments: argparse.Namespace) -> int:
    """Draw rows of every file by its weight and write them in random order; returns the exit code."""
    parts = [_part(text) for text in arguments.parts]
    paths = [path for path, _ in parts]
    dice = random.Random(arguments.seed)
    with ExitStack() as stack:
        bad = stack.enter_context(bad_lines.collect(arguments.skip_bad, *paths))
        out = stack.enter_context(files.atomic_write(arguments.out, *paths))
        # Rows are written in another order than they are read, and what they are read from may be packed, or a pipe.
        is_device = arguments.out.exists() and not arguments.out.is_file()
        rows = stack.enter_context(tempfile.TemporaryFile(dir=None if is_device else arguments.out.parent))
        drawn = array("Q")
        for path, weight in parts:
            file = inputs.row_file(path, arguments)
            starts = copy_rows(file, rows, bad)
            chosen = formats.draw(starts, weight, dice)
            drawn.extend(chosen)
            print(f"{file.described()}: {counted(len(starts), 'row')}, {len(chosen):,} taken (weight {weight:g})")
        dice.shuffle(drawn)
        for start in drawn:
            rows.seek(start)
            out.write(rows.readline())
    print(f"{arguments.out}: {counted(len(drawn), 'row')}")
    for summary in bad.summary():
        print(summary)
    return 0


def copy_rows(file: RowFile, out: BinaryIO, on_bad: Callable = formats.stop_at_bad_line) -> array:
    """Append the good rows of a file as lines to an open file; returns where each begins there, in bytes.

    Raises:
        UserError: the file cannot be read, or holds no good row.
    """
    starts = array("Q")
    begin = out.seek(0, io.SEEK_END)
    for number, line in file.lines():
        try:
            formats.canonical_row(parse_line(line))
        except BadRow as problem:
            on_bad(file.path, number, problem, line)
            continue
        starts.append(begin)
        begin += out.write(ended(line))
    if not starts:
        raise UserError(f"{file.path}: {formats.NO_ROW}")
    return starts


def _part(text: str) -> tuple[Path, float]:
    path, colon, weight = text.rpartition(":")
    try:
        part = Path(path), float(weight)
    except ValueError:
        part = None
    if not colon or not path or part is None or not 0 < part[1] < float("inf"):
        raise UserError(f"{text}: write it as FILE:WEIGHT with a weight above 0, such as data/a.jsonl:0.3")
    return part
