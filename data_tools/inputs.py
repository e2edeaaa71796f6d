"""What every verb that reads a data file is told of it: its path, and which of its columns are which."""

import argparse
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TypeVar

from sft.core.errors import UserError
from sft.core.paths import is_data_set
from sft.core.workers import ProcessKilled, in_order
from sft.data.readers.row_file import RowFile
from sft.data.rows.columns import EXAMPLE, read_columns

Made = TypeVar("Made")
# Read at a time; a file that is smaller than so many bytes is done before other processes have started.
BLOCK, WORTH_PROCESSES = 1 << 19, 1 << 24
# What a verb's help says of its input.
KINDS = "data file: JSON lines or array, CSV, Parquet, gzip or zstd of these; data set folder or hub id"


def add_arguments(parser: argparse.ArgumentParser, name: str = "input") -> None:
    """Add the input and `--columns` to a verb that reads one data file."""
    parser.add_argument(name, type=Path, help=KINDS)
    add_columns(parser)


def add_columns(parser: argparse.ArgumentParser) -> None:
    """Add `--columns`."""
    parser.add_argument(
        "--columns", type=_columns, metavar="A=B,...", help=f"what columns of other names hold, such as {EXAMPLE}"
    )


def row_file(path: Path, arguments: argparse.Namespace) -> RowFile:
    """The file to read, by the columns that were named.

    Raises:
        UserError: it is a data set of the hub's that cannot be had.
    """
    if is_data_set(str(path)):
        from sft.models import hub  # a file need not wait for what asks a hub

        hub.require_data_set(str(path))
    return RowFile(path, arguments.columns)


def in_blocks(file: RowFile, work: Callable[[Iterable[tuple[int, bytes]]], Made]) -> Iterator[Made]:
    """What the work makes of the file's numbered rows, a block of them at a time, in their order.

    Of a large file it is done in as many processes as there are CPU cores, so that it can be pickled, and keeps nothing
    from one block to the next.

    Raises:
        UserError: as the work, the first of the file; or the file cannot be read, or a process was killed.
    """
    processes = len(os.sched_getaffinity(0)) if file.size() >= WORTH_PROCESSES else 1
    try:
        yield from in_order(work, file.blocks(BLOCK), processes)
    except ProcessKilled:
        raise UserError(
            f"{file.path}: a process that read it was killed, as happens when memory runs out: nothing was written; "
            "free some memory and start again"
        ) from None


def _columns(text: str) -> dict[str, str]:
    try:
        return read_columns(text)
    except ValueError as problem:
        raise argparse.ArgumentTypeError(str(problem)) from None
