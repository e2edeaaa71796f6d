"""One row as a line of JSON: parsing it, writing it, and saying what is wrong with it.

Knows nothing about what a row holds.
"""

import json
import re
from collections.abc import Callable, Iterable
from functools import lru_cache

import orjson

NUL_BYTES = "holds NUL bytes: the file is damaged, or UTF-16; save it as UTF-8"
# As much of a key or a role as an error shows.
SHOWN_CHARACTERS = 80
_KEY = re.compile(rb'"\s*:')
# Whole numbers that are no less become floats in orjson.
_LARGE = 2.0**63


class BadRow(ValueError):
    """A row that cannot be read; the message says what and what to do, the caller adds `file:line`."""


class NotJson(BadRow):
    """A text that no JSON value can be read from."""


class BadLine(bytes):
    """What stands where a line of JSON would, if the row could be read; `problem` says why it cannot."""

    problem: BadRow

    def __new__(cls, shown: bytes, problem: BadRow) -> "BadLine":
        """A line that shows what is there, and cannot be read for this reason."""
        line = super().__new__(cls, shown)
        line.problem = problem
        return line

    def __reduce__(self) -> tuple:
        return BadLine, (bytes(self), self.problem)


def parse_line(raw: bytes) -> object:
    """The JSON value of one line of a file.

    Raises:
        BadRow: the line is not UTF-8 or not JSON, or a key stands twice in one object.
    """
    if isinstance(raw, BadLine):
        raise raw.problem
    try:
        row = orjson.loads(raw)
        if not hides_a_key(raw, row):
            return row
    except orjson.JSONDecodeError:
        pass  # Python's parser takes more, such as NaN, and says more precisely what is wrong
    try:
        return parse_json(raw.decode("utf-8"))
    except UnicodeDecodeError as problem:
        if b"\0" in raw:
            raise BadRow(NUL_BYTES) from None
        raise BadRow(
            f"not UTF-8 (byte {problem.start + 1} of the line): save the file as UTF-8{_in_gbk(raw)}"
        ) from None
    except NotJson as problem:
        if b"\0" in raw:
            raise BadRow(NUL_BYTES) from None
        if not raw.endswith(b"\n"):
            raise BadRow(f"{problem} (the line has no end: the file may be cut short)") from None
        raise


def json_line(row: object) -> bytes:
    """The row as a line of a JSONL file, as `json.dumps` writes it; text that UTF-8 cannot hold stays escaped."""
    try:
        parts: list[bytes] = []
        _write(row, parts.append)
        return b"".join([*parts, b"\n"])
    except (TypeError, RecursionError):
        pass  # such a text, or a key that is none, as in what Python printed
    try:
        return _encode(row).encode("utf-8") + b"\n"
    except UnicodeEncodeError:
        return json.dumps(row).encode("utf-8") + b"\n"


def _write(value: object, write: Callable[[bytes], None]) -> None:
    """Hand the parts of a value's text to `write`: half the time of Python's encoder where most of a row is text."""
    if type(value) is dict:
        before = b"{"
        for key, item in value.items():
            write(_written_key(before, key))
            if type(item) is str:
                write(orjson.dumps(item))
            else:
                _write(item, write)
            before = b", "
        write(b"}" if value else b"{}")
    elif type(value) is list:
        before = b"["
        for item in value:
            write(before)
            _write(item, write)
            before = b", "
        write(b"]" if value else b"[]")
    else:
        write(orjson.dumps(value) if type(value) is str else _encode(value).encode())


@lru_cache(maxsize=1024)
def _written_key(before: bytes, key: object) -> bytes:
    if type(key) is not str:
        raise TypeError
    return before + orjson.dumps(key) + b": "


def hides_a_key(raw: bytes, row: object) -> bool:
    """Whether the line of which orjson made this row may hold a key twice, or what Python's parser reads otherwise."""
    try:
        texts, keys = _counted([row])
    except (OverflowError, RecursionError):
        return True
    # Where every quote of the line is one of a text's two, no key is hidden; nor where no more stand before a colon.
    return raw.count(b'"') != 2 * texts and len(_KEY.findall(raw)) != keys


def _counted(value: dict | list) -> tuple[int, int]:
    """How many texts a value holds, keys included, and how many of these.

    Raises:
        OverflowError: it holds a number that may have been a larger integer.
    """
    keys = len(value) if type(value) is dict else 0
    texts = keys
    for item in value.values() if type(value) is dict else value:
        kind = type(item)
        if kind is str:
            texts += 1
        elif kind is dict or kind is list:
            texts_of_item, keys_of_item = _counted(item)
            texts, keys = texts + texts_of_item, keys + keys_of_item
        elif kind is float and abs(item) >= _LARGE:
            raise OverflowError
    return texts, keys


def ended(line: bytes) -> bytes:
    """The line with its line feed, which the last line of a file may lack."""
    return line if line.endswith(b"\n") else line + b"\n"


def parse_json(text: str) -> object:
    """The JSON value of a text; a repeated key is an error, since JSON would keep only the last."""
    try:
        # Only `loads` says of a byte order mark what it is.
        return json.loads(text) if text.startswith("\ufeff") else _decode(text)
    except json.JSONDecodeError as problem:
        why, _ = fault_of(problem)
        raise NotJson(why if ": " in why else f"{why}: one JSON object to a line") from None
    except RecursionError:
        raise BadRow("nested too deeply: a row is one flat conversation") from None
    except BadRow:
        raise
    except ValueError:
        raise BadRow("holds a number of thousands of digits: write it as text") from None


def fault_of(problem: json.JSONDecodeError) -> tuple[str, int]:
    """What is wrong with a JSON text and what to do about it, and where in the text, in characters."""
    text, place = problem.doc, problem.pos
    if comment := comment_at(text, place):
        return comment, place
    before, here = text[:place].rstrip(), text[place:].lstrip()[:1]
    if before.endswith(",") and here in ("}", "]"):
        # The comma may stand on an earlier line.
        return "a comma stands before the closing bracket: take it away", len(before) - 1
    why = f"not JSON ({problem.msg}, column {problem.colno})"
    if problem.msg.startswith("Illegal trailing comma"):  # as Python says from 3.13 on
        why = "a comma stands before the closing bracket: take it away"
    elif problem.msg == "Extra data" and here == ",":
        why = "a comma stands after the object: take it away; one JSON object to a line"
    elif here == "'":
        why = "not JSON (single quotes): JSON's quotes are double, such as Python's json.dumps writes"
    elif here and here in "“”‘’：，｛｝":
        why = f'not JSON ({here} is Chinese punctuation): JSON has " : , and {{}}'
    elif re.match(r"(?:True|False|None)\b", text[place:]):
        why = "not JSON (Python's True, False or None): write true, false or null"
    return why, place


def _in_gbk(raw: bytes) -> str:
    try:
        raw.decode("gb18030")
        return ", if it is in GBK with: iconv -f GB18030 -t UTF-8"
    except UnicodeDecodeError:
        return ""


def comment_at(text: str, place: int) -> str | None:
    """What to do about a comment that begins at a place, or None."""
    begin = text[place:].lstrip()[:2]
    if begin in ("//", "/*") or begin[:1] == "#":
        return "a comment begins here, and JSON has none: take it away"
    return None


def named(keys: Iterable[str]) -> str:
    """Keys on one short line, whatever they are made of."""
    line = ", ".join(keys)
    line = line if line.isprintable() else repr(line)[1:-1]
    return line if len(line) <= SHOWN_CHARACTERS else line[:SHOWN_CHARACTERS] + "..."


def _refuse_repeated_keys(pairs: list[tuple[str, object]]) -> dict:
    row = dict(pairs)
    if len(row) < len(pairs):
        names = [name for name, _ in pairs]
        repeated = next(name for name in names if names.count(name) > 1)
        raise BadRow(f'the key "{named([repeated])}" stands twice in one object: keep one')
    return row


# Made once: `json.loads` and `json.dumps` make one a call where they are not used as they come.
_decode = json.JSONDecoder(object_pairs_hook=_refuse_repeated_keys).decode
_encode = json.JSONEncoder(ensure_ascii=False).encode
