"""Reads a JSON array, or objects that stand one after the other over several lines, a row at a time.

In: a file's bytes. Out: each row as one line of JSON, its text unchanged but for line breaks and indentation, with the
line it begins on. What is no JSON ends the file there: nothing says where the next row would begin.
"""

import codecs
import json
import re
from collections.abc import Iterator
from typing import BinaryIO

from sft.core.errors import UserError
from sft.data.rows.json_line import comment_at, fault_of

CHUNK = 1 << 20
# A text that breaks off here may be whole once more of it is read.
MARGIN = 16
_BLANK = re.compile(r"\s*")
# Inside a JSON text a line break stands between tokens only.
_BREAKS = re.compile(r"\s*\n\s*")


def json_rows(path: str, file: BinaryIO) -> Iterator[tuple[int, bytes]]:
    """Yield (line where it begins, one line of JSON) for each element of an array, or each object of a row of them.

    Raises:
        UserError: the text is not UTF-8 or not JSON; names its line.
    """
    text = _Text(path, file)
    is_array = text.next_is("[")
    if is_array:
        text.skip()
    is_first = True
    while (character := text.peek()) and not (is_array and character == "]"):
        if is_array and not is_first:
            text.expect_comma()
        elif not is_array and character != "{":
            text.refuse("an object was expected here; rows stand one after the other, or in one array")
        yield text.row()
        is_first = False
    if is_array:
        if not character:
            text.refuse("the array has no end: the file may be cut short")
        text.skip()
        if text.peek():
            text.refuse("something stands after the array's end: keep one array in a file, or one object to a line")


def is_spread(head: bytes) -> bool:
    """Whether a text begins with a JSON object that does not end on the line it begins on."""
    text = head.decode("utf-8", "ignore").lstrip("\ufeff \t\r\n")
    try:
        json.loads(text.partition("\n")[0])
        return False
    except (ValueError, RecursionError):
        pass
    try:
        _, end = json.JSONDecoder().raw_decode(text)
    except (ValueError, RecursionError):
        return False
    # Old Macs end lines so.
    return "\n" in text[:end] or text[end:].startswith("\r")


class _Text:
    """A file's text, as much of it at a time as the next row needs."""

    def __init__(self, path: str, file: BinaryIO):
        self._path, self._file = path, file
        self._decode = codecs.getincrementaldecoder("utf-8-sig")().decode
        self._scan = json.JSONDecoder().raw_decode
        self._text, self._at, self._line = "", 0, 1
        self._is_whole = False

    def peek(self) -> str:
        """The next character that is not blank, and becomes the place we are at; "" at the end."""
        while True:
            self._move(_BLANK.match(self._text, self._at).end())  # type: ignore[union-attr]
            if self._at < len(self._text) or not self._read():
                return self._text[self._at : self._at + 1]

    def next_is(self, character: str) -> bool:
        """Whether this is the next character that is not blank."""
        return self.peek() == character

    def skip(self) -> None:
        """Go past one character."""
        self._move(self._at + 1)

    def expect_comma(self) -> None:
        """Go past the comma between two elements.

        Raises:
            UserError: there is none, or no element after it.
        """
        if not self.next_is(","):
            self.refuse("a comma is missing before this")
        line = self._line
        self.skip()
        if self.next_is("]"):
            self.refuse("a comma stands after the last row: take it away", line)

    def row(self) -> tuple[int, bytes]:
        """The next value, as one line, and the line it begins on.

        Raises:
            UserError: it is not JSON.
        """
        self.peek()
        line, end = self._line, self._end_of_row()
        row = self._text[self._at : end]
        self._move(end)
        return line, (_BREAKS.sub("", row) if "\n" in row else row).encode("utf-8") + b"\n"

    def _end_of_row(self) -> int:
        while True:
            try:
                _, end = self._scan(self._text, self._at)
                # A number may have more digits.
                if end < len(self._text) or not self._read():
                    return end
            except json.JSONDecodeError as problem:
                why, place = fault_of(problem)
                line = self._line_at(place)
                is_broken = problem.pos < len(self._text) - MARGIN and not problem.msg.startswith("Unterminated string")
                if is_broken or not self._read():
                    self.refuse(why, line)
            except RecursionError:
                self.refuse("nested too deeply: a row is one flat conversation")
            except ValueError:
                self.refuse("holds a number of thousands of digits: write it as text")

    def refuse(self, why: str, line: int | None = None) -> None:
        """Raise `UserError` with a place: that we are at, if no line is given."""
        if line is None:
            why, line = comment_at(self._text, self._at) or why, self._line
        raise UserError(f"{self._path}:{line}: {why}") from None

    def _read(self) -> bool:
        """Read on, at least as much as there is already; False at the end of the file."""
        if self._is_whole:
            return False
        kept = self._text[self._at :]
        read = self._file.read(max(CHUNK, len(kept)))
        self._is_whole = not read
        try:
            self._text, self._at = kept + self._decode(read, self._is_whole), 0
        except UnicodeDecodeError:
            lines = self._line + kept.count("\n")
            raise UserError(f"{self._path}:{lines}: not UTF-8 from here on: save the file as UTF-8") from None
        return not self._is_whole

    def _move(self, at: int) -> None:
        self._line += self._text.count("\n", self._at, at)
        self._at = at

    def _line_at(self, position: int) -> int:
        return self._line + self._text.count("\n", self._at, position)
