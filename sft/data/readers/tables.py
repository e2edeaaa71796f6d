"""Reads the rows of Parquet files, data set folders and hub data sets.

Out: each row as one line of JSON, numbered from 1. What JSON has no form for is written as text: dates as in ISO 8601,
bytes as UTF-8 or, if they are none, as {"base64": ...}; an empty cell is no key.
"""

import base64
import io
import json
import math
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from sft.core.errors import UserError
from sft.core.paths import FILE_NAME
from sft.core.text import one_line_message
from sft.data.rows.json_line import BadLine, BadRow, named

if TYPE_CHECKING:
    import pyarrow

ROWS_AT_ONCE = 1000
# Bytes of each column of a Parquet file in memory at once.
BUFFER = 1 << 20
# Characters of a library's message that are shown.
SHOWN = 300


def parquet_rows(path: str, file: BinaryIO) -> Iterator[tuple[int, bytes]]:
    """Yield (number from 1, one line of JSON) for each row of a Parquet file.

    Raises:
        UserError: the file is damaged.
    """
    import pyarrow
    from pyarrow import parquet

    try:
        with tempfile.TemporaryFile() as whole:
            if not isinstance(file, io.BufferedReader) or not file.seekable():
                # What is compressed can be gone through in one direction only.
                shutil.copyfileobj(file, whole)
                file = whole
            rows = parquet.ParquetFile(file, buffer_size=BUFFER, pre_buffer=False)
            yield from _numbered(rows.iter_batches(ROWS_AT_ONCE))
    except (OSError, pyarrow.ArrowException) as problem:
        raise UserError(
            f"{path}: cannot be read as Parquet ({one_line_message(problem, SHOWN)}): save it anew"
        ) from None


def data_set_rows(name: str, loaded: Any) -> Iterator[tuple[int, bytes]]:
    """Yield (number from 1, one line of JSON) for each row of a data set that was loaded.

    Raises:
        UserError: it cannot be read.
    """
    with _naming_faults(name):
        yield from _numbered(_batches(loaded))


def load(name: str) -> Any:
    """The data set of a folder, or of an id on the hub, memory-mapped or streamed.

    `NAME:SPLIT` and `NAME:CONFIG:SPLIT` name a part of it; without, it is `train`, or the only one.

    Raises:
        UserError: there is no such data set or part, it cannot be read, or some of a folder's files would be left out.
    """
    import datasets

    path, config, split = parts_of(name)
    with _naming_faults(name):
        if (Path(path) / "dataset_info.json").exists() or (Path(path) / "dataset_dict.json").exists():
            loaded = datasets.load_from_disk(path)
        else:
            if Path(path).is_dir() and not config:
                _refuse_left_out(path)
            # A folder's files are read as they are; those of the hub are kept, and need no network the next time.
            loaded = datasets.load_dataset(path, config, streaming=Path(path).is_dir())
    if not hasattr(loaded, "keys"):
        return loaded
    chosen = split or ("train" if "train" in loaded else None) or (next(iter(loaded)) if len(loaded) == 1 else None)
    if chosen not in loaded:
        raise UserError(
            f"{name}: has the parts {named(map(str, loaded))}: name one, such as {path}:{next(iter(loaded))}"
        )
    return loaded[chosen]


@contextmanager
def _naming_faults(name: str) -> Iterator[None]:
    try:
        yield
    except UserError:
        raise
    except Exception as problem:  # whatever the libraries below raise: it is the data set's fault, or the network's
        raise UserError(
            f"{name}: cannot be read as a data set ({one_line_message(problem, SHOWN)}): name a data file, a data set "
            "folder, or a hub id such as org/name:train"
        ) from None


def _refuse_left_out(folder: str) -> None:
    """Raise `UserError` where a data file of the folder is in no part of the data set.

    Only files of one kind are read, and where one is called test, only those whose names tell their part.
    """
    import datasets

    builder = datasets.load_dataset_builder(folder)
    if len(builder.builder_configs) > 1:  # as its README.md has them
        return
    read = {os.path.realpath(path) for paths in (builder.config.data_files or {}).values() for path in paths}
    there = [path for path in sorted(Path(folder).rglob("*")) if FILE_NAME.search(path.name) and path.is_file()]
    if left_out := [str(path.relative_to(folder)) for path in there if os.path.realpath(path) not in read]:
        raise UserError(
            f"{folder}: as a data set of {named(os.path.relpath(path, os.path.realpath(folder)) for path in read)} "
            f"would leave out {named(left_out)}: name the files one by one, or keep files of one kind in a folder"
        )


def parts_of(name: str) -> tuple[str, str | None, str | None]:
    """The folder or id, the configuration and the split of NAME, NAME:SPLIT or NAME:CONFIG:SPLIT."""
    if Path(name).exists():
        return name, None, None
    path, *rest = name.split(":")
    if len(rest) > 2:
        raise UserError(f"{name}: write it as NAME:SPLIT or NAME:CONFIG:SPLIT")
    return path, rest[0] if len(rest) == 2 else None, rest[-1] if rest else None


def _batches(loaded: Any) -> "Iterator[pyarrow.RecordBatch]":
    for table in loaded.with_format("arrow").iter(ROWS_AT_ONCE):
        yield from table.to_batches()


def _numbered(batches: "Iterable[pyarrow.RecordBatch]") -> Iterator[tuple[int, bytes]]:
    number = 0
    for batch in batches:
        for line in _lines(batch):
            number += 1
            yield number, line


def _lines(batch: "pyarrow.RecordBatch") -> Iterator[bytes]:
    """The rows of a batch as JSON; where Python has no value for something, as text, or a bad line."""
    try:
        rows = batch.to_pylist()
    except (ValueError, OverflowError, NotImplementedError):
        if batch.num_rows > 1:
            for number in range(batch.num_rows):
                yield from _lines(batch.slice(number, 1))
            return
        yield from _line_of_odd_row(batch)
        return
    for row in rows:
        yield json.dumps(_plain(row), ensure_ascii=False).encode("utf-8", "surrogatepass") + b"\n"


def _line_of_odd_row(batch: "pyarrow.RecordBatch") -> Iterator[bytes]:
    import pyarrow

    row, odd = {}, []
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        try:
            try:
                [row[name]] = column.to_pylist()
            except (ValueError, OverflowError, NotImplementedError):
                [row[name]] = column.cast(pyarrow.string()).to_pylist()
        except (ValueError, OverflowError, NotImplementedError, pyarrow.ArrowException):
            odd.append(name)
    line = json.dumps(_plain(row), ensure_ascii=False).encode("utf-8", "surrogatepass") + b"\n"
    yield BadLine(line, BadRow(f"{named(odd)} holds what cannot be shown as text: drop the column")) if odd else line


def _plain(value: Any) -> Any:
    """The value as JSON has it; a table writes null, or NaN, where a row has no such key."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items() if not _is_missing(item)}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, bytes):
        try:
            return value.decode("utf-8")
        except UnicodeDecodeError:
            return {"base64": base64.b64encode(value).decode()}
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if value is None or isinstance(value, (str, bool, int, float)) else _text(value)


def _is_missing(value: Any) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value))


def _text(value: Any) -> str:
    """A date, time or duration as text."""
    return value.isoformat() if hasattr(value, "isoformat") else str(value)
