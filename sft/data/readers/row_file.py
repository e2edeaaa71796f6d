"""A data file, whatever it is, as lines of JSON, one a row: the one reader behind every verb and every recipe.

In: a path, and columns if its own names are not known. What a file is shows in what it holds: JSON lines, a JSON array,
objects over several lines, CSV, Parquet, each also compressed with gzip or zstd; or it is a data set folder, or a hub
id. Knows nothing about what a row means.
"""

import hashlib
import io
import json
import os
import re
import shutil
import stat
import tempfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import zstandard

from sft.core import files
from sft.core.errors import UserError
from sft.core.paths import is_data_set
from sft.data.readers import csv_table, json_text, tables
from sft.data.rows.columns import EXAMPLE, can_be_read, fault_of, refuse_missing, renamed
from sft.data.rows.json_line import BadLine, BadRow, json_line, named, parse_line

Item = TypeVar("Item")
Lines = list[tuple[int, bytes]]
# So much of a file is looked at to see what it is.
HEAD = 1 << 20
# To read a file of so many bytes whole at every start, only to see that it is the same, takes longer than a moment.
LARGE = 1 << 28
JSON_LINES, JSON_ARRAY, JSON_OBJECTS, PARQUET, CSV, DATA_SET = (
    "JSON lines", "a JSON array", "JSON objects over several lines", "Parquet", "CSV", "a data set",
)  # fmt: skip
TABLES = (".csv", ".tsv")
# What the first bytes of other files say, and what to do about it.
_FOREIGN = {
    b"PK\x03\x04": "a zip archive or an Excel workbook: unpack it, or save it as CSV UTF-8",
    b"\xd0\xcf\x11\xe0": "an Excel workbook: save it as CSV UTF-8",
    b"BZh": "compressed with bzip2: unpack it",
    b"\xfd7zXZ": "compressed with xz: unpack it",
    b"SQLite format 3": "an SQLite database: export the table as CSV",
    b"%PDF": "a PDF: rows are read from JSON, CSV and Parquet",
    b"ARROW1": "an Arrow or Feather file: save it as Parquet",
    b"version https://git-lfs": "a pointer of Git LFS in place of the file: git lfs pull fetches it",
    files.GZIP: "compressed twice: unpack it once",
    files.ZSTD: "compressed twice: unpack it once",
}
_WEB_PAGE, _TAR, _TAR_AT = re.compile(rb"\s*<(?:!doctype html|html)\b", re.IGNORECASE), b"ustar", 257
# What reading raises where a file is damaged, or cut short.
_BROKEN_OFF = (EOFError, OSError, zlib.error, zstandard.ZstdError)
# What is no table, whatever its name says: an object with keys, or an array of such.
_JSON = re.compile(rb"\s*(?:\{\s*\"|\[\s*\{)")


class RowFile:
    """One data file; every reading begins at its start.

    Raises:
        UserError: columns are named that no row has a place for.
    """

    def __init__(self, path: str | Path, columns: dict[str, str] | None = None):
        self.path, self.columns = str(path), columns or {}
        if self.columns and (fault := fault_of(self.columns)):
            raise UserError(f"columns: {fault}")
        # What a pipe held, which can be read only once.
        self._piped: BinaryIO | None = None
        self._stamp: tuple[int, ...] | None = None

    def lines(self) -> Iterator[tuple[int, bytes]]:
        """Yield (line or row number from 1, the row as a line of JSON), with a progress bar on a terminal.

        Blank lines hold no row. What cannot be made such a line, as a table's row with too few cells, is a `BadLine`.

        Raises:
            UserError: the file cannot be read, or is another than when it was first read.
        """
        lines = self._lines()
        return ((number, self._renamed(line)) for number, line in lines) if self.columns else lines

    def blocks(self, size: int) -> Iterator[Iterable[tuple[int, bytes]]]:
        """As `lines`, about `size` bytes at a time, for other processes: JSON lines are told apart only there.

        Raises:
            UserError: as `lines`, once the rows before that place are out.
        """
        if self.kind != JSON_LINES or self.columns:
            return grouped(self.lines(), size)
        return self._read(lambda file: _line_blocks(self.path, file, size), items_per_update=1)

    @cached_property
    def kind(self) -> str:
        """What the file is: one of the words above.

        Raises:
            UserError: it cannot be read, or is something that holds no rows.
        """
        if is_data_set(self.path):
            return DATA_SET
        with self._opened() as (_, file):
            return _kind(self.path, _head(file))

    def summary(self) -> str:
        """What the file is, and if it is a table, what was found about it; "" for JSON lines.

        Raises:
            UserError: as `kind`; or no encoding fits.
        """
        return {JSON_LINES: "", CSV: self._table.summary() if self.kind == CSV else ""}.get(self.kind, self.kind)

    def described(self) -> str:
        """The path, and in brackets what was found, if the file is no plain JSON lines.

        Raises:
            UserError: as `summary`.
        """
        return f"{self.path} ({summary})" if (summary := self.summary()) else self.path

    def digest(self) -> str:
        """A hash of what the file holds, and of the columns if any are named.

        Raises:
            UserError: it cannot be read.
        """
        if self.kind != DATA_SET:
            with files.reading(self.path):
                digest = files.content_hash(self.path, _kept_hashes() if self.size() >= LARGE else None)
        elif os.path.isdir(self.path):
            held = sorted(path for path in Path(self.path).rglob("*") if path.is_file())
            digest = _hash([[str(path.relative_to(self.path)), files.content_hash(path)] for path in held])
        else:
            digest = self._data_set._fingerprint
        return _hash([digest, self.columns]) if self.columns else digest

    def size(self) -> int:
        """Bytes of the file, as they lie on the disk or came through a pipe; 0 for a data set.

        Raises:
            UserError: as `kind`.
        """
        if self.kind == DATA_SET:
            return 0
        return os.fstat(self._piped.fileno()).st_size if self._piped else os.path.getsize(self.path)

    @cached_property
    def _data_set(self) -> Any:
        return tables.load(self.path)

    @cached_property
    def _table(self) -> csv_table.Table:
        return csv_table.find_table(self.path, self._unpacked)

    def _check_table(self) -> None:
        """Raise `UserError` where the table lacks a column that was named, or is none but text of some other kind."""
        names = self._table.columns
        if self.columns:
            try:
                refuse_missing(names, self.columns)
            except BadRow as problem:
                raise UserError(f"{self.path}:1: {problem}") from None
        elif not _plain_name(self.path).endswith(TABLES) and names and not can_be_read(names):
            raise UserError(
                f"{self.path}:1: neither JSON nor Parquet, and as a table its first line names no question and answer, "
                f"but {named(names)}: write it as one of these, or name the columns with --columns {EXAMPLE}"
            )

    def _lines(self) -> Iterator[tuple[int, bytes]]:
        if self.kind == DATA_SET:
            yield from tables.data_set_rows(self.path, self._data_set)
            return
        if self.kind == CSV:
            self._check_table()
        yield from self._read(self._rows)

    def _read(
        self, items: Callable[[BinaryIO], Iterator[Item]], items_per_update: int = files.ITEMS_PER_UPDATE
    ) -> Iterator[Item]:
        with self._opened() as (raw, file):
            stamp = _stamp(raw)
            self._stamp = self._stamp or stamp
            yield from files.with_progress(self.path, raw, items(file), items_per_update)
            if not stamp == _stamp(raw) == self._stamp:
                raise UserError(f"{self.path}: changed while it was read: start again once it stays as it is")

    def _rows(self, file: BinaryIO) -> Iterator[tuple[int, bytes]]:
        if self.kind == CSV:
            return csv_table.csv_rows(self.path, file, self._table)
        if self.kind == PARQUET:
            return tables.parquet_rows(self.path, file)
        if self.kind == JSON_LINES:
            return files.lines_of(self.path, file)
        return json_text.json_rows(self.path, file)

    def _renamed(self, line: bytes) -> bytes:
        try:
            row = parse_line(line)
            return json_line(renamed(row, self.columns)) if isinstance(row, dict) else line
        except BadRow as problem:
            return BadLine(line, problem)

    @contextmanager
    def _opened(self) -> Iterator[tuple[BinaryIO, BinaryIO]]:
        """The file as it lies on the disk and what it holds, decompressed, both at the start."""
        with files.reading(self.path):
            if self._piped:
                self._piped.seek(0)
                yield self._piped, files.decompressed(self._piped)
                return
            with open(self.path, "rb", buffering=files.BUFFER) as raw:
                if stat.S_ISREG(os.fstat(raw.fileno()).st_mode):
                    yield raw, files.decompressed(raw)
                    return
                self._piped = tempfile.TemporaryFile()  # noqa: SIM115 (open for as long as this object is there)
                shutil.copyfileobj(raw, self._piped)
            self._piped.seek(0)
            yield self._piped, files.decompressed(self._piped)

    @contextmanager
    def _unpacked(self) -> Iterator[BinaryIO]:
        with self._opened() as (_, file):
            yield file


def grouped(lines: Iterable[tuple[int, bytes]], size: int) -> Iterator[Lines]:
    """The lines, about `size` bytes at a time; those before a place that cannot be read come out before its error."""
    group, held = [], 0
    try:
        for number, line in lines:
            group.append((number, line))
            held += len(line)
            if held >= size:
                yield group
                group, held = [], 0
    except UserError:
        if group:
            yield group
        raise
    if group:
        yield group


@dataclass(frozen=True)
class _LineBlock:
    """Whole lines as they stand in the file, and the number of the first."""

    path: str
    first: int
    content: bytes

    def __iter__(self) -> Iterator[tuple[int, bytes]]:
        return files.lines_of(self.path, io.BytesIO(self.content), self.first)


def _line_blocks(path: str, file: BinaryIO, size: int) -> Iterator[_LineBlock]:
    read, first = bytearray(), 1
    try:
        while more := file.read1(size):  # type: ignore[attr-defined]
            read += more
            if len(read) >= size and (end := read.rfind(b"\n") + 1):
                yield _LineBlock(path, first, bytes(read[:end]))
                first += read.count(b"\n", 0, end)
                del read[:end]
    except _BROKEN_OFF:
        if end := read.rfind(b"\n") + 1:
            yield _LineBlock(path, first, bytes(read[:end]))
        raise
    if read:
        yield _LineBlock(path, first, bytes(read))


def _kind(path: str, head: bytes) -> str:
    if foreign := next((what for begin, what in _FOREIGN.items() if head.startswith(begin)), None):
        raise UserError(f"{path}: {foreign}")
    if _WEB_PAGE.match(head):
        raise UserError(f"{path}: a web page in place of the file: download it anew")
    if head[_TAR_AT:].startswith(_TAR):
        raise UserError(f"{path}: a tar archive: unpack it")
    if head.startswith(b"PAR1"):
        return PARQUET
    name = _plain_name(path)
    head = head.removeprefix(b"\xef\xbb\xbf")
    if name.endswith(TABLES) and not _JSON.match(head):
        return CSV
    begin = head.lstrip()[:1]
    if begin == b"[":
        return JSON_ARRAY
    if begin == b"{":
        return JSON_OBJECTS if json_text.is_spread(head) else JSON_LINES
    return JSON_LINES if not begin or name.endswith((".json", ".jsonl", ".ndjson", ".parquet")) else CSV


def _plain_name(path: str) -> str:
    return path.lower().removesuffix(".gz").removesuffix(".zst")


def _head(file: BinaryIO) -> bytes:
    """The beginning of a file; of one that is cut short, what is there, so that its rows are read up to that place."""
    head = b""
    try:
        while len(head) < HEAD and (more := file.read1(HEAD)):  # type: ignore[attr-defined]
            head += more
    except _BROKEN_OFF:
        if not head:
            raise
    return head


def _kept_hashes() -> Path:
    """Where the hashes of large files are kept, beside what is made of them."""
    from datasets import config  # which no data verb needs

    return Path(config.HF_DATASETS_CACHE) / "sft-hashes"


def _stamp(file: BinaryIO) -> tuple[int, ...]:
    """What tells one state of an open file from another."""
    status = os.fstat(file.fileno())
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def _hash(parts: list) -> str:
    return hashlib.sha256(json.dumps(parts, ensure_ascii=False).encode("utf-8", "surrogatepass")).hexdigest()
