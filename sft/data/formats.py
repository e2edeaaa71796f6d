"""Reads training files: JSONL in, canonical rows {"messages": [{"role", "content", ...}]} out; draws rows by weight.

`row_shapes` turns every foreign shape into the canonical one, and back; here every error gets its `file:line`. Imports
no torch; knows nothing about tokens, templates or models.
"""

import itertools
import json
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NoReturn

from sft.core import files
from sft.core.errors import UserError
from sft.data.canonical import BadRow, NoQuestion, NotJson, check_marks, check_order, kind, named, parse_json
from sft.data.row_shapes import FORMATS

NO_ROW = "holds no row: put one JSON object on each line"
NUL_BYTES = "holds NUL bytes: the file is damaged, or UTF-16; save it as UTF-8"


def stop_at_bad_line(path: str | Path, number: int, problem: BadRow, raw: bytes) -> NoReturn:
    """The default for `on_bad` of every reader: `UserError` with the line's place."""
    raise UserError(f"{path}:{number}: {problem}") from None


def read_rows(path: str | Path, on_bad: Callable = stop_at_bad_line) -> Iterator[tuple[int, dict]]:
    """Yield (line number from 1, canonical row) for every row of a JSONL file.

    Blank lines hold no row. The format (one of `FORMATS`) is found per row. A bad line goes to `on_bad`, and is
    skipped if that returns.

    Raises:
        UserError: the file cannot be read or holds no row, or a line is bad: names the first such line.
    """
    lines = files.numbered_lines(path)
    first = next(lines, None)
    if first is None:
        raise UserError(f"{path}: {NO_ROW}")
    yield from canonical_rows(path, itertools.chain([first], lines), on_bad)


def canonical_rows(
    path: str | Path, lines: Iterable[tuple[int, bytes]], on_bad: Callable = stop_at_bad_line
) -> Iterator[tuple[int, dict]]:
    """As `read_rows`, of lines that were read from the file already."""
    for number, raw in lines:
        try:
            row = canonical_row(parse_line(raw))
        except NoQuestion as problem:
            if on_bad is stop_at_bad_line:
                problem = NoQuestion(f"{problem} ({count_rows_without_question(path):,} such rows in the file)")
            on_bad(path, number, problem, raw)
        except BadRow as problem:
            on_bad(path, number, problem, raw)
        else:
            yield number, row


def parse_line(raw: bytes) -> object:
    """The JSON value of one line of a file.

    Raises:
        BadRow: the line is not UTF-8 or not JSON, or a key stands twice in one object.
    """
    try:
        return parse_json(raw.decode("utf-8"))
    except UnicodeDecodeError as problem:
        if b"\0" in raw:
            raise BadRow(NUL_BYTES) from None
        raise BadRow(f"not UTF-8 (byte {problem.start + 1} of the line): save the file as UTF-8") from None
    except NotJson as problem:
        if b"\0" in raw:
            raise BadRow(NUL_BYTES) from None
        if raw.lstrip().startswith(b"["):
            advice = "name the file .json, and python -m data_tools convert makes JSONL of it"
            raise BadRow(f"a JSON array begins here, where one row stands on each line: {advice}") from None
        if not raw.endswith(b"\n"):
            raise BadRow(f"{problem} (the line has no end: the file may be cut short)") from None
        raise


def json_line(row: object) -> bytes:
    """The row as a line of a JSONL file; text that UTF-8 cannot hold stays escaped."""
    try:
        return json.dumps(row, ensure_ascii=False).encode("utf-8") + b"\n"
    except UnicodeEncodeError:
        return json.dumps(row).encode("utf-8") + b"\n"


def canonical_row(row: object, form: str | None = None) -> dict:
    """Turn a parsed row of a known format, found by its keys or given, into {"messages": [...]}, and "tools" if any.

    Raises:
        BadRow: no known format, a turn that is missing, empty where it may not be, or out of order, or something that
            training could not honour.
    """
    form = form or detect(row)
    if not isinstance(row, dict) or FORMATS[form].key not in row:
        raise BadRow(f'not {form}: the row lacks "{FORMATS[form].key}"')
    canonical = FORMATS[form].read(row)
    check_order(canonical["messages"])
    check_marks(canonical["messages"])
    return canonical


def detect(row: object) -> str:
    """The name of the row's format, by the one key that only it has.

    Raises:
        BadRow: the row has none of these keys, or several.
    """
    if not isinstance(row, dict):
        raise BadRow(f"a row is a JSON object, this is {kind(row)}: write one object on each line")
    matches = [name for name, form in FORMATS.items() if form.key in row]
    if len(matches) != 1:
        keys = ", ".join(f'"{form.key}" ({name})' for name, form in FORMATS.items())
        raise BadRow(f"expected exactly one of the keys {keys}; found {named(row) or 'none'}")
    return matches[0]


def unused_keys(row: dict) -> list[str]:
    """The keys of a row that its format has no use for, so that they are not trained on."""
    return sorted(row.keys() - FORMATS[detect(row)].keys)


def count_rows_without_question(path: str | Path) -> int:
    """How many rows of the file have an object or a placeholder where the user's words belong."""
    count = 0
    for _, raw in files.numbered_lines(path):
        try:
            canonical_row(parse_line(raw))
        except NoQuestion:
            count += 1
        except BadRow:
            continue
    return count


def row_starts(path: Path, on_bad: Callable = stop_at_bad_line) -> list[int]:
    """Where each good row of a JSONL file begins, in bytes.

    Raises:
        UserError: the file cannot be read, or holds no good row.
    """
    starts = []
    for number, start, raw in files.located_lines(path):
        try:
            canonical_row(parse_line(raw))
        except BadRow as problem:
            on_bad(path, number, problem, raw)
        else:
            starts.append(start)
    if not starts:
        raise UserError(f"{path}: {NO_ROW}")
    return starts


def draw(rows: Sequence[int], weight: float, dice: random.Random) -> list[int]:
    """Every row floor(weight) times and a random sample for the rest; round(weight * rows) in all.

    1 takes every row once, 0.3 a random three tenths, 2 every row twice.
    """
    whole, rest = divmod(round(weight * len(rows)), len(rows))
    return [*rows] * whole + dice.sample(rows, rest)
