"""Mix several training files by weight into one, in random order.

In: JSONL files, each with a weight: 1 takes every row once, 0.3 a random three tenths, 2 every row twice. Out: one
file whose lines are theirs, as they were.
"""

import argparse
import random
from contextlib import ExitStack
from pathlib import Path

from data_tools import bad_lines
from sft.core import files
from sft.core.errors import UserError
from sft.core.text import counted
from sft.core.verbs import add_output
from sft.data.formats import draw, row_starts


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what the verb takes."""
    add_output(parser, "out", help="JSONL file to write")
    parser.add_argument("parts", nargs="+", metavar="FILE:WEIGHT", help="such as a.jsonl:1.0 b.jsonl:0.3")
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
        drawn = []
        for path, weight in parts:
            starts = row_starts(path, bad)
            file = stack.enter_context(open(path, "rb"))
            chosen = draw(starts, weight, dice)
            drawn += [(file, start) for start in chosen]
            print(f"{path}: {counted(len(starts), 'row')}, {len(chosen):,} taken (weight {weight:g})")
        dice.shuffle(drawn)
        for file, start in drawn:
            file.seek(start)
            line = file.readline()
            out.write(line if line.endswith(b"\n") else line + b"\n")
    print(f"{arguments.out}: {counted(len(drawn), 'row')}")
    for summary in bad.summary():
        print(summary)
    return 0


def _part(text: str) -> tuple[Path, float]:
    path, colon, weight = text.rpartition(":")
    try:
        part = Path(path), float(weight)
    except ValueError:
        part = None
    if not colon or not path or part is None or not 0 < part[1] < float("inf"):
        raise UserError(f"{text}: write it as FILE:WEIGHT with a weight above 0, such as data/a.jsonl:0.3")
    if part[0].suffix in (".gz", ".zst"):
        raise UserError(f"{path}: is compressed, and mixing jumps between lines: unpack it first")
    return part
