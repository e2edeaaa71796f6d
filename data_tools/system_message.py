"""Drops, replaces or adds the system message of a row, in the row's own format.

In: the text of a file, or none. Out: the same row with this system message. Knows nothing about names.
"""

import argparse
from pathlib import Path
from typing import Any

from sft.core.errors import UserError
from sft.data.rows.json_line import BadRow
from sft.data.rows.row_shapes import list_of, shape_of, words_key

NONE = "none"


def add_argument(parser: argparse.ArgumentParser) -> None:
    """Add `--system` to a verb that writes rows."""
    parser.add_argument(
        "--system", metavar="FILE|none", help="text file to put in place of every system message; none drops them"
    )


def read(argument: str | None) -> str | None:
    """The system message that `--system FILE|none` asks for: the text of the file, or "" for none at all.

    Raises:
        UserError: the file cannot be read, is not UTF-8 or is empty.
    """
    if argument is None or argument == NONE:
        return None if argument is None else ""
    try:
        text = Path(argument).read_text(encoding="utf-8-sig").strip()
    except (OSError, UnicodeDecodeError) as problem:
        reason = getattr(problem, "strerror", "not UTF-8")
        advice = f"name a text file, or {NONE} to drop the system messages"
        raise UserError(f"{argument}: cannot be read: {reason}: {advice}") from None
    if not text:
        raise UserError(f"{argument}: empty: write the system message there, or give --system {NONE}")
    return text


def replace(row: Any, text: str) -> str | None:
    """Put the text in place of the row's system message, or drop it if the text is empty.

    The row is changed where it is. Returns what was done, "dropped", "replaced" or "added"; None for nothing.

    Raises:
        BadRow: the row is in no known format, or its turns are no list of objects.
    """
    shape = shape_of(row)
    key = shape.turns or shape.columns.question
    turns = list_of(row[key], str(key))
    column = shape.columns.system or "system"
    if not shape.turns and not isinstance(turns, list):
        return _replace_key(row, column, text)
    if not isinstance(turns, list) or not turns or not all(isinstance(turn, dict) for turn in turns):
        raise BadRow(f'"{key}" must be a list of turns')
    row[key] = turns
    if shape.name == "xtuner" and not row.get(column):
        return _replace_in_turns(turns, text)
    speaker = "role" if "role" in turns[0] else "from"
    if str(turns[0].get(speaker)).lower() == "system":
        row.pop(column, None)
        return _replace_first(turns, words_key(turns[0]), text)
    if column in row or speaker == "from":
        return _replace_key(row, column, text)
    if not text:
        return None
    turns.insert(0, {speaker: "system", words_key(turns[0]): text})
    return "added"


def _replace_first(turns: list[dict], content: str, text: str) -> str | None:
    if not text:
        del turns[0]
        return "dropped"
    before, turns[0][content] = turns[0].get(content), text
    return None if before == text else "replaced"


def _replace_in_turns(turns: list[dict], text: str) -> str | None:
    """In XTuner's form every turn may repeat the system message; the first holds it."""
    repeats = [turn.pop("system") for turn in turns[1:] if "system" in turn]
    done = _replace_key(turns[0], "system", text)
    if any(repeats) and done != "replaced":
        return "replaced" if text else "dropped"
    return done


def _replace_key(holder: dict, key: str, text: str) -> str | None:
    before = holder.get(key)
    if not text:
        holder.pop(key, None)
        return "dropped" if before else None
    if key in holder:
        holder[key] = text
    else:
        rest = dict(holder)
        holder.clear()
        holder.update({key: text, **rest})
    return None if before == text else "replaced" if before else "added"
