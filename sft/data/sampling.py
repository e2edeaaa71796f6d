"""Which rows of a training file its weight takes: 1 every row once, 0.3 a random three tenths, 2 every row twice."""

import random
from collections.abc import Callable, Sequence
from pathlib import Path

from sft.core import files
from sft.core.errors import UserError
from sft.data import formats


def row_starts(path: Path, on_bad: Callable = formats.stop_at_bad_line) -> list[int]:
    """Where each good row of a JSONL file begins, in bytes.

    Raises:
        UserError: the file cannot be read, or holds no good row.
    """
    starts = []
    for number, start, raw in files.located_lines(path):
        try:
            formats.canonical_row(formats.parse_line(raw))
        except formats.BadRow as problem:
            on_bad(path, number, problem, raw)
        else:
            starts.append(start)
    if not starts:
        raise UserError(f"{path}: holds no row to take: put one JSON object on each line")
    return starts


def draw(rows: Sequence[int], weight: float, dice: random.Random) -> list[int]:
    """Every row floor(weight) times and a random sample for the rest; round(weight * rows) in all."""
    whole, rest = divmod(round(weight * len(rows)), len(rows))
    return [*rows] * whole + dice.sample(rows, rest)
