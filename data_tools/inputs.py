"""What every verb that reads a data file is told of it: its path, and which of its columns are which."""

import argparse
from pathlib import Path

from sft.core.paths import is_data_set
from sft.data.readers.row_file import RowFile
from sft.data.rows.columns import EXAMPLE, read_columns

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


def _columns(text: str) -> dict[str, str]:
    try:
        return read_columns(text)
    except ValueError as problem:
        raise argparse.ArgumentTypeError(str(problem)) from None
