"""Turn conversations from one format into another: messages, xtuner, sharegpt, alpaca.

In: .jsonl (also .gz, .zst), .json, .parquet or .csv. Out: JSONL. What the target cannot hold stops it, or is
counted with `--lossy`.
"""

import argparse
import csv
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from data_tools import bad_lines
from sft.core import files
from sft.core.errors import UserError
from sft.core.text import counted
from sft.core.verbs import add_output
from sft.data import formats
from sft.data.canonical import BadRow, CannotHold


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what the verb takes."""
    parser.add_argument("input", type=Path, help="file to read; named .jsonl, .json, .parquet or .csv")
    add_output(parser, "out", help="JSONL file to write")
    parser.add_argument("--to", required=True, choices=formats.FORMATS, help="format to write")
    parser.add_argument("--from", dest="form", choices=formats.FORMATS, help="format to read, if not to be detected")
    parser.add_argument("--lossy", action="store_true", help="drop what the target cannot hold, and count it")
    bad_lines.add_argument(parser)


def run(arguments: argparse.Namespace) -> int:
    """Convert the file, count what could not be held; returns the exit code."""
    rows, dropped = 0, Counter[str]()
    with (
        bad_lines.collect(arguments.skip_bad, arguments.input) as bad,
        files.atomic_write(arguments.out, arguments.input) as out,
    ):
        for number, row in parsed_rows(arguments.input, bad):
            rows += 1
            try:
                converted = convert(row, arguments.to, arguments.form, dropped if arguments.lossy else None)
            except CannotHold as problem:
                raise UserError(
                    f"{arguments.input}:{number}: {problem}: choose another --to, or --lossy to drop it"
                ) from None
            except BadRow as problem:
                bad(arguments.input, number, problem, formats.json_line(row))
                rows -= 1
                continue
            if converted is not None:
                out.write(formats.json_line(converted))
    skipped = sum(count for reason, count in dropped.items() if reason.startswith("row"))
    total = rows + bad.count
    rows_in, rows_out = counted(total, "row"), counted(rows - skipped, "row")
    print(f"{arguments.input}: {rows_in} in; {arguments.out}: {rows_out} out, as {arguments.to}")
    for reason, count in dropped.items():
        print(f"  {count:>9,}  {reason}")
    for summary in bad.summary():
        print(summary)
    return 0


def convert(row: Any, to: str, form: str | None = None, dropped: Counter[str] | None = None) -> dict | None:
    """The row in the format `to`; None where it cannot be held and `dropped` counts such rows.

    Raises:
        CannotHold: the target has no place for something in the row, and nothing may be dropped.
        BadRow: the row is in no known format, or broken.
    """
    form = form or formats.detect(row)
    canonical = formats.canonical_row(row, form)
    try:
        if extra := sorted(map(str, row.keys() - formats.FORMATS[form].keys)):
            _drop(f"key dropped: {', '.join(extra)}", f"the row also has {', '.join(extra)}", dropped)
        return formats.FORMATS[to].write(canonical)
    except CannotHold as problem:
        _drop(f"row skipped: {problem}", str(problem), dropped)
        return None


def parsed_rows(path: Path, on_bad: Callable = formats.stop_at_bad_line) -> Iterator[tuple[int, object]]:
    """Yield (number from 1, object) for each line of a JSONL or CSV file, element of an array or row of a table.

    A bad line or table row goes to `on_bad`, and is skipped if that returns.

    Raises:
        UserError: the file cannot be read or is not what its name says.
    """
    name = path.name.lower().removesuffix(".gz").removesuffix(".zst")
    readers = {".jsonl": _lines, ".json": _array, ".csv": _csv, ".parquet": _parquet}
    reader = readers.get(Path(name).suffix)
    if not reader:
        raise UserError(f"{path}: its name shows no format: call it {', '.join(readers)}, or .jsonl.gz, .jsonl.zst")
    yield from reader(path, on_bad)


def _drop(reason: str, problem: str, dropped: Counter[str] | None) -> None:
    if dropped is None:
        raise CannotHold(problem)
    dropped[reason] += 1


def _lines(path: Path, on_bad: Callable) -> Iterator[tuple[int, object]]:
    for number, raw in files.numbered_lines(path):
        try:
            row = formats.parse_line(raw)
        except BadRow as problem:
            on_bad(path, number, problem, raw)
        else:
            yield number, row


def _array(path: Path, on_bad: Callable) -> Iterator[tuple[int, object]]:
    try:
        rows = formats.parse_json(b"".join(raw for _, raw in files.numbered_lines(path)).decode("utf-8"))
    except UnicodeDecodeError:
        raise UserError(f"{path}: not UTF-8: save the file as UTF-8") from None
    except BadRow as problem:
        raise UserError(f"{path}: {problem}") from None
    if not isinstance(rows, list):
        raise UserError(f"{path}: holds no array: for one object to a line, call the file .jsonl")
    yield from enumerate(rows, start=1)


def _csv(path: Path, on_bad: Callable) -> Iterator[tuple[int, object]]:
    """Rows of text under the names of the first line; an empty cell is skipped."""
    table = None
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            table = csv.DictReader(file, strict=True)
            for row in table:
                if None in row or None in row.values():
                    problem = BadRow("has not as many cells as the first line: mend the row")
                    on_bad(path, table.line_num, problem, repr(list(row.values())).encode("utf-8"))
                else:
                    yield table.line_num, {name: cell for name, cell in row.items() if cell}
    except (csv.Error, UnicodeDecodeError) as problem:
        raise UserError(f"{path}:{table.line_num if table else 1}: not CSV in UTF-8 ({problem}): mend it") from None
    except OSError as problem:
        raise UserError(f"{path}: cannot be read: {problem.strerror}") from None


def _parquet(path: Path, on_bad: Callable) -> Iterator[tuple[int, object]]:
    import pyarrow
    from pyarrow import parquet

    try:
        number = 0
        for batch in parquet.ParquetFile(path).iter_batches():
            for row in batch.to_pylist():
                number += 1
                yield number, _without_nulls(row)
    except (OSError, pyarrow.ArrowException) as problem:
        raise UserError(f"{path}: cannot be read as Parquet ({problem})") from None


def _without_nulls(value: object) -> object:
    """A table writes null where a row has no such key."""
    if isinstance(value, dict):
        return {key: _without_nulls(item) for key, item in value.items() if item is not None}
    return [_without_nulls(item) for item in value] if isinstance(value, list) else value
