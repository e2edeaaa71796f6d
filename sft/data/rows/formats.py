"""Reads training files: canonical rows {"messages": [{"role", "content", ...}]} out; draws rows by weight.

`RowFile` makes lines of JSON of every kind of file, `row_shapes` canonical rows of every shape; here every error gets
its `file:line`. Imports no torch; knows nothing about tokens, templates or models.
"""

import itertools
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NoReturn

from sft.core.errors import UserError
from sft.data.readers.row_file import RowFile
from sft.data.rows.canonical import NoQuestion
from sft.data.rows.json_line import BadRow, parse_line
from sft.data.rows.row_shapes import shape_of

NO_ROW = "holds no row"


def stop_at_bad_line(path: str | Path, number: int, problem: BadRow, raw: bytes) -> NoReturn:
    """The default for `on_bad` of every reader: `UserError` with the line's place."""
    raise UserError(f"{path}:{number}: {problem}") from None


def read_rows(source: str | Path | RowFile, on_bad: Callable = stop_at_bad_line) -> Iterator[tuple[int, dict]]:
    """Yield (line or row number from 1, canonical row) for every row of a data file.

    The shape is found per row. Keys of a row that are not read stand under "unused". A bad row goes to `on_bad`, and
    is skipped if that returns.

    Raises:
        UserError: the file cannot be read or holds no row, or a row is bad: names the first such line.
    """
    file = source if isinstance(source, RowFile) else RowFile(source)
    lines = file.lines()
    first = next(lines, None)
    if first is None:
        raise UserError(f"{file.path}: {NO_ROW}")
    yield from canonical_rows(file, itertools.chain([first], lines), on_bad)


def canonical_rows(
    file: RowFile, lines: Iterable[tuple[int, bytes]], on_bad: Callable = stop_at_bad_line
) -> Iterator[tuple[int, dict]]:
    """As `read_rows`, of lines that were read from the file already."""
    for number, raw in lines:
        try:
            row = parse_line(raw)
            shape = shape_of(row)
            canonical = shape.read(row)  # type: ignore[arg-type]
        except NoQuestion as problem:
            counted = ""
            if on_bad is stop_at_bad_line:
                counted = f" ({count_rows_without_question(file):,} such rows in the file)"
            on_bad(file.path, number, BadRow(f"{problem}{counted}"), raw)
        except BadRow as problem:
            on_bad(file.path, number, problem, raw)
        else:
            if len(row) > 1 and (unused := shape.unused(row)):  # type: ignore[arg-type]
                canonical["unused"] = unused
            yield number, canonical


def canonical_row(row: object) -> dict:
    """Turn a parsed row of any known shape into {"messages": [...]}, and "tools" if any.

    Raises:
        BadRow: no known shape, a turn that is missing, empty where it may not be, or out of order, or something that
            training could not honour.
    """
    return shape_of(row).read(row)  # type: ignore[arg-type]


def count_rows_without_question(file: RowFile) -> int:
    """How many rows of the file have an object or a placeholder where the user's words belong."""
    count = 0
    for _, raw in file.lines():
        try:
            canonical_row(parse_line(raw))
        except NoQuestion:
            count += 1
        except BadRow:
            continue
    return count


def draw(rows: Sequence[int], weight: float, dice: random.Random) -> list[int]:
    """Every row floor(weight) times and a random sample for the rest; round(weight * rows) in all.

    1 takes every row once, 0.3 a random three tenths, 2 every row twice.
    """
    whole, rest = divmod(round(weight * len(rows)), len(rows))
    return [*rows] * whole + dice.sample(rows, rest)
