"""Reads tables of text, as spreadsheets write them: finds their encoding and what separates their cells.

In: a file's bytes. Out: each row as one line of JSON, its cells under the names of the first line, with the line it
begins on. Every cell is kept: columns without a name and of one name get one of their own.
"""

import codecs
import csv
import io
import itertools
import json
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import BinaryIO

from sft.core.errors import UserError
from sft.core.text import counted
from sft.data.rows.json_line import BadLine, BadRow, named

SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}
# What begins with one of these is in the encoding beside it; a spreadsheet's "Unicode text" is UTF-16.
MARKS = {codecs.BOM_UTF8: "utf-8-sig", codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}
CHUNK = 1 << 20
# So many characters of a file show what separates its cells.
SAMPLE = 1 << 16
SAMPLE_ROWS = 50
# Simplified Chinese in GBK is nearly all characters of GB 2312; text of another encoding that GBK takes as well is not.
COMMON_SHARE = 0.9
CHARACTERS_LOOKED_AT = 100_000
# A character beyond ASCII, of four bytes or of two; the common ones, punctuation among them.
_GBK = re.compile(rb"[\x80-\xff][0-9][\x80-\xff][0-9]|[\x80-\xff][\x00-\xff]")
_GB2312 = re.compile(rb"[\xa1-\xa9\xb0-\xf7][\xa1-\xfe]")


@dataclass(frozen=True)
class Table:
    """How a file is read: its encoding, its separator, the names of its columns, and what was changed about them."""

    encoding: str
    separator: str
    skipped_lines: int
    titles: int  # rows above that of the names
    header: list[str]
    columns: list[str]
    notes: list[str]

    def summary(self) -> str:
        """Such as "CSV, GB18030, separated by semicolons"."""
        encoding = {"utf-8-sig": "UTF-8", "gb18030": "GB18030", "utf-16": "UTF-16"}[self.encoding]
        return ", ".join([f"CSV, {encoding}, separated by {SEPARATORS[self.separator]}", *self.notes])


def find_table(path: str, opened: Callable[[], AbstractContextManager[BinaryIO]]) -> Table:
    """How the file is to be read; goes through the whole file for its encoding. `opened` opens it at its start.

    Raises:
        UserError: it is in none of the encodings that are known; names the line.
    """
    encoding = _encoding(path, opened)
    with opened() as file:
        text = io.TextIOWrapper(file, encoding, newline="")
        sample = text.read(SAMPLE)
        text.detach()  # which would close the file otherwise
    first, _, rest = sample.partition("\n")
    # Excel says on a line of its own what separates the cells.
    told = re.fullmatch(r"\"?sep=([,;|\t])\"?\r?", first, re.IGNORECASE)
    if told:
        separator, sample = told[1], rest
    else:
        is_whole = len(sample) < SAMPLE
        separator = max(SEPARATORS, key=lambda separator: _regularity(sample, separator, is_whole=is_whole))
    reader = csv.reader(io.StringIO(sample, newline=""), delimiter=separator)
    rows = list(itertools.islice(filter(any, reader), SAMPLE_ROWS)) or [[]]
    titles = _titles(rows)
    header = rows[titles]
    columns, notes = _named_columns(header)
    _refuse_lookalike(path, separator, columns, rows[titles + 1 :])
    notes += [f"above the columns stands {named(rows[0][:1])}"] if titles else []
    return Table(encoding, separator, int(bool(told)), titles, header, columns, notes)


def csv_rows(path: str, file: BinaryIO, table: Table) -> Iterator[tuple[int, bytes]]:
    """Yield (line where it begins, one line of JSON) for each row; a row with too many or too few cells is bad.

    Raises:
        UserError: a quote has no end; names the line where it begins.
    """
    # A cell may hold any amount of text.
    csv.field_size_limit(sys.maxsize)
    text = io.TextIOWrapper(file, table.encoding, newline="")
    for _ in range(table.skipped_lines):
        text.readline()
    reader = csv.reader(text, delimiter=table.separator, strict=True)
    begins = 1 + table.skipped_lines
    above = 1 + table.titles
    try:
        for cells in reader:
            line, begins = begins, reader.line_num + table.skipped_lines + 1
            if not any(cells):
                continue
            if above:
                above -= 1
            else:
                yield line, _row(table, cells)
    except csv.Error as problem:
        raise UserError(
            f"{path}:{begins}: not CSV ({problem}): the row that begins here has a quote that does not end, or text "
            'after one; write a quote inside a cell as ""'
        ) from None
    finally:
        text.detach()  # which would close the file otherwise


def _row(table: Table, cells: list[str]) -> bytes:
    header = table.columns
    if _bare(cells) == _bare(table.header):
        again = "the names of the columns stand here again, as where files were put one after the other: drop the line"
        return BadLine(json.dumps(cells, ensure_ascii=False).encode(), BadRow(again))
    if len(cells) > len(header) and not any(cells[len(header) :]):
        cells = cells[: len(header)]
    row = json.dumps(dict(zip(header, cells, strict=False)), ensure_ascii=False).encode("utf-8", "surrogatepass")
    if len(cells) == len(header):
        return row + b"\n"
    held = f"{counted(len(cells), 'cell')}, and the first line {counted(len(header), 'cell')}"
    return BadLine(json.dumps(cells, ensure_ascii=False).encode(), BadRow(f"holds {held}: mend the row"))


def _bare(cells: list[str]) -> list[str]:
    """The cells without what surrounds words, a byte order mark and the quotes after it among it."""
    return [cell.strip('\ufeff" ') for cell in cells]


def _titles(rows: list[list[str]]) -> int:
    """How many rows stand above the names, such as a spreadsheet's title: one cell of several is filled, the first."""
    filled = [[bool(cell.strip()) for cell in cells] for cells in rows]
    number = next((number for number, cells in enumerate(filled) if sum(cells) > 1), 0)
    return number if all(len(cells) > 1 and cells[0] for cells in filled[:number]) else 0


def _refuse_lookalike(path: str, separator: str, columns: list[str], rows: list[list[str]]) -> None:
    """Raise `UserError` for what looks like a table and is none."""
    if len(columns) == 1 and (mark := next((mark for mark in "，；｜" if mark in columns[0]), None)):
        raise UserError(f"{path}:1: the cells are separated by {mark}, which is text: use commas, and quotes around")
    if separator == "|" and rows and all(re.fullmatch(r"\s*:?-*:?\s*", cell) for cell in rows[0]):
        raise UserError(f"{path}: a table in Markdown: save it as CSV")


def _named_columns(cells: list[str]) -> tuple[list[str], list[str]]:
    """The names of the columns, each its own, and what was changed to make them so."""
    names: list[str] = []
    stripped = [cell.strip() for cell in cells]
    for number, cell in enumerate(stripped, start=1):
        name = cell or f"column {number}"
        while name in names or (name != cell and name in stripped):
            name = f"{cell or name} ({number})"
        names.append(name)
    notes = []
    if unnamed := [name for name, cell in zip(names, stripped, strict=True) if not cell]:
        notes.append(f"no name over {named(unnamed)}")
    if repeated := [name for name, count in Counter(stripped).items() if name and count > 1]:
        others = [name for name, cell in zip(names, stripped, strict=True) if cell in repeated and name != cell]
        notes.append(f"several columns are called {named(repeated)}: the later ones are read as {named(others)}")
    return names, notes


def _encoding(path: str, opened: Callable[[], AbstractContextManager[BinaryIO]]) -> str:
    """The encoding in which the whole file can be read, UTF-8 before GB18030."""
    with opened() as file:
        begin = file.read(3)
    marked = next((encoding for mark, encoding in MARKS.items() if begin.startswith(mark)), None)
    line = _first_fault(opened, marked or "utf-8-sig")
    if not line:
        return marked or "utf-8-sig"
    if marked:
        raise UserError(
            f"{path}:{line}: damaged: not {marked.upper()} from here on, as its first bytes say: save it anew"
        )
    if _looks_chinese(opened) and not _first_fault(opened, "gb18030"):
        return "gb18030"
    raise UserError(f"{path}:{line}: neither UTF-8 nor GB18030 (GBK) from here on: save the file as UTF-8")


def _first_fault(opened: Callable[[], AbstractContextManager[BinaryIO]], encoding: str) -> int:
    """The line on which the file cannot be read in this encoding; 0 where all of it can."""
    decoder, line = codecs.getincrementaldecoder(encoding)(), 1
    with opened() as file:
        while True:
            chunk = file.read(CHUNK)
            try:
                line += decoder.decode(chunk, final=not chunk).count("\n")
            except UnicodeDecodeError as problem:
                return line + problem.object[: problem.start].count(b"\n")
            if not chunk:
                return 0


def _looks_chinese(opened: Callable[[], AbstractContextManager[BinaryIO]]) -> bool:
    """Whether, read as GBK, nearly all characters beyond ASCII are the common ones of GB 2312."""
    pairs = common = 0
    with opened() as file:
        while pairs < CHARACTERS_LOOKED_AT and (chunk := file.read(CHUNK)):
            for character in _GBK.findall(chunk):
                pairs += len(character) == 2
                common += bool(_GB2312.fullmatch(character))
    return common >= COMMON_SHARE * pairs


def _regularity(sample: str, separator: str, *, is_whole: bool) -> tuple[bool, float, int]:
    """How much a text looks like a table with this separator: several columns, rows of one length, many columns."""
    reader = csv.reader(io.StringIO(sample, newline=""), delimiter=separator)
    csv.field_size_limit(sys.maxsize)
    try:
        rows = [len(cells) for cells in itertools.islice(reader, SAMPLE_ROWS) if any(cells)]
    except csv.Error:
        return False, 0.0, 0
    # The last row of a sample may be cut.
    if len(rows) > 1 and len(rows) < SAMPLE_ROWS and not is_whole:
        rows.pop()
    if not rows:
        return False, 0.0, 0
    return rows[0] > 1, sum(length == rows[0] for length in rows) / len(rows), rows[0]
