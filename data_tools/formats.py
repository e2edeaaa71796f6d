"""Reads training files: JSONL in, canonical rows {"messages": [{"role", "content"}, ...]} out.

Every foreign shape is turned into the canonical one here and nowhere else, and every error carries
`file:line`. Knows nothing about tokens, templates or models.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path

from data_tools import files
from data_tools.errors import UserError

PLACEHOLDER = re.compile(r"\s*x{3,}\s*", re.IGNORECASE)


class BadRow(ValueError):
    """A row that cannot be read; the message says what and what to do, the caller adds `file:line`."""


class NoQuestion(BadRow):
    """A row whose input is an object or a placeholder, so that nobody asked the question."""


def read_rows(path: str | Path) -> Iterator[tuple[int, dict]]:
    """Yield (line number from 1, canonical row) for every row of a JSONL file.

    Blank lines hold no row. The format (XTuner `conversation` or OpenAI `messages`) is found per row.

    Raises:
        UserError: the file cannot be read or holds no row, or a row is bad: names the first such line.
    """
    rows = 0
    for number, line in read_lines(path):
        try:
            row = canonical_row(parse_json(line))
        except NoQuestion as problem:
            count = count_rows_without_question(path)
            mend = "write the questions there as text; python -m data_tools repair can give them back"
            raise UserError(f"{path}:{number}: {problem} ({count:,} such rows in the file): {mend}") from None
        except BadRow as problem:
            raise UserError(f"{path}:{number}: {problem}") from None
        rows += 1
        yield number, row
    if not rows:
        raise UserError(f"{path}: holds no row: put one JSON object on each line")


def read_lines(path: str | Path) -> Iterator[tuple[int, str]]:
    """Yield (line number from 1, text) for every line that is not blank; a UTF-8 BOM is taken off."""
    for number, raw in files.numbered_lines(path):
        try:
            yield number, raw.decode("utf-8")
        except UnicodeDecodeError as problem:
            place = f"byte {problem.start + 1} of the line"
            raise UserError(f"{path}:{number}: not UTF-8 ({place}): save the file as UTF-8") from None


def parse_json(line: str) -> object:
    """The JSON value of one line; a repeated key is an error, since JSON would keep only the last."""
    try:
        return json.loads(line, object_pairs_hook=_refuse_repeated_keys)
    except json.JSONDecodeError as problem:
        raise BadRow(f"not JSON ({problem.msg}, column {problem.colno}): one JSON object to a line") from None
    except RecursionError:
        raise BadRow("nested too deeply: a row is one flat conversation") from None


def canonical_row(row: object) -> dict:
    """Turn a parsed row of a known format into {"messages": [...]}.

    Raises:
        BadRow: no known format, or a turn that is missing, empty where it may not be, or out of order.
    """
    if not isinstance(row, dict):
        raise BadRow(f"a row is a JSON object, this is {_kind(row)}")
    if ("conversation" in row) == ("messages" in row):
        keys = ", ".join(map(str, row)) or "none"
        raise BadRow(f'expected exactly one of the keys "conversation" (XTuner) and "messages" (OpenAI); found {keys}')
    messages = _from_xtuner(row["conversation"]) if "conversation" in row else _from_openai(row["messages"])
    _check_order(messages)
    return {"messages": messages}


def count_rows_without_question(path: str | Path) -> int:
    """How many rows of the file have an object or a placeholder where the user's words belong."""
    count = 0
    for _, line in read_lines(path):
        try:
            canonical_row(parse_json(line))
        except NoQuestion:
            count += 1
        except BadRow:
            continue
    return count


def _from_xtuner(turns: object) -> list[dict]:
    messages = []
    for place, turn in _each(turns, "conversation"):
        if "input" not in turn or "output" not in turn:
            raise BadRow(f'{place} lacks "{"output" if "input" in turn else "input"}"')
        system = turn.get("system") or ""
        if system and not messages:
            messages.append(_message("system", system, f"{place}.system"))
        elif system and system != messages[0]["content"]:
            raise BadRow(f"{place}.system differs from the first turn's: a conversation has one system message")
        question = _message("user", turn["input"], f"{place}.input")
        messages += [question, _message("assistant", turn["output"], f"{place}.output")]
    return messages


def _from_openai(turns: object) -> list[dict]:
    messages = []
    for place, turn in _each(turns, "messages"):
        role = turn.get("role")
        if role not in ("system", "user", "assistant"):
            raise BadRow(f"{place}.role is {role!r}: use system, user or assistant")
        if "content" not in turn:
            raise BadRow(f'{place} lacks "content"')
        if turn.keys() - {"role", "content"}:
            extra = ", ".join(sorted(map(str, turn.keys() - {"role", "content"})))
            raise BadRow(f"{place} has {extra}, which would not be trained on: only role and content can be")
        messages.append(_message(role, turn["content"], f"{place}.content"))
    return messages


def _each(turns: object, key: str) -> Iterator[tuple[str, dict]]:
    if not isinstance(turns, list) or not turns:
        raise BadRow(f'"{key}" is {"empty" if turns == [] else _kind(turns)}: it must be a list of turns')
    for index, turn in enumerate(turns):
        if not isinstance(turn, dict):
            raise BadRow(f"{key}[{index}] is {_kind(turn)}: a turn is a JSON object")
        yield f"{key}[{index}]", turn


def _message(role: str, content: object, place: str) -> dict:
    if role == "user" and isinstance(content, (dict, list)):
        raise NoQuestion(f"{place} is {_kind(content)}, not the user's words")
    if not isinstance(content, str):
        raise BadRow(f"{place} is {_kind(content)}: it must be text")
    if role == "user" and PLACEHOLDER.fullmatch(content):
        raise NoQuestion(f"{place} is the placeholder {content.strip()!r}")
    if role == "user" and not content.strip():
        raise BadRow(f"{place} is empty: write the user's question there")
    if any("\ud800" <= character <= "\udfff" for character in content):
        raise BadRow(f"{place} holds half of a surrogate pair: write the whole character")
    return {"role": role, "content": content}


def _check_order(messages: list[dict]) -> None:
    roles = [message["role"] for message in messages]
    turns = roles[1:] if roles[0] == "system" else roles
    if "system" in turns:
        raise BadRow("a system message stands after the first place: a conversation has one, at its start")
    if not turns or turns != ["user", "assistant"] * (len(turns) // 2):
        raise BadRow(
            f"user and assistant must take turns, user first, assistant last; found {', '.join(turns) or 'none'}"
        )


def _refuse_repeated_keys(pairs: list[tuple[str, object]]) -> dict:
    row = dict(pairs)
    if len(row) < len(pairs):
        names = [name for name, _ in pairs]
        repeated = next(name for name in names if names.count(name) > 1)
        raise BadRow(f'the key "{repeated}" stands twice in one object: keep one')
    return row


def _kind(value: object) -> str:
    names = {dict: "an object", list: "a list", str: "text", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")
