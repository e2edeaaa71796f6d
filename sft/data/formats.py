"""Reads training files: JSONL in, canonical rows {"messages": [{"role", "content"}, ...]} out; draws rows by weight.

Every foreign shape is turned into the canonical one, and back, here and nowhere else; every error carries
`file:line`. Imports no torch; knows nothing about tokens, templates or models.
"""

import itertools
import json
import random
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from sft.core import files
from sft.core.errors import UserError

SURROGATE = re.compile("[\ud800-\udfff]")
# Advice for rows without a question.
GIVE_BACK = "write the questions there as text; python -m data_tools repair can give them back"
# As much of a key or a role as an error shows.
SHOWN_CHARACTERS = 80
NO_ROW = "holds no row: put one JSON object on each line"
NUL_BYTES = "holds NUL bytes: the file is damaged, or UTF-16; save it as UTF-8"
PLACEHOLDER = re.compile(r"\s*x{3,}\s*", re.IGNORECASE)


class BadRow(ValueError):
    """A row that cannot be read; the message says what and what to do, the caller adds `file:line`."""


class NotJson(BadRow):
    """A text that no JSON value can be read from."""


class CannotHold(BadRow):
    """A row that a format has no place for."""


class NoQuestion(BadRow):
    """A row whose input is an object or a placeholder, so that nobody asked the question."""


def stop_at_bad_line(path: str | Path, number: int, problem: BadRow, raw: bytes) -> NoReturn:
    """The default for `on_bad` of every reader: `UserError` with the line's place."""
    raise UserError(f"{path}:{number}: {problem}") from None


def read_rows(path: str | Path, on_bad: Callable = stop_at_bad_line) -> Iterator[tuple[int, dict]]:
    """Yield (line number from 1, canonical row) for every row of a JSONL file.

    Blank lines hold no row. The format (one of `FORMATS`) is found per row. A bad line goes to `on_bad`, and is
    skipped if that returns.

    Raises:
        UserError: the file cannot be read or holds no row, or a line is bad: names the first such line.
    """
    lines = files.numbered_lines(path)
    first = next(lines, None)
    if first is None:
        raise UserError(f"{path}: {NO_ROW}")
    yield from canonical_rows(path, itertools.chain([first], lines), on_bad)


def canonical_rows(
    path: str | Path, lines: Iterable[tuple[int, bytes]], on_bad: Callable = stop_at_bad_line
) -> Iterator[tuple[int, dict]]:
    """As `read_rows`, of lines that were read from the file already."""
    for number, raw in lines:
        try:
            row = canonical_row(parse_line(raw))
        except NoQuestion as problem:
            if on_bad is stop_at_bad_line:
                problem = NoQuestion(f"{problem} ({count_rows_without_question(path):,} such rows in the file)")
            on_bad(path, number, problem, raw)
        except BadRow as problem:
            on_bad(path, number, problem, raw)
        else:
            yield number, row


def parse_line(raw: bytes) -> object:
    """The JSON value of one line of a file.

    Raises:
        BadRow: the line is not UTF-8 or not JSON, or a key stands twice in one object.
    """
    try:
        return parse_json(raw.decode("utf-8"))
    except UnicodeDecodeError as problem:
        if b"\0" in raw:
            raise BadRow(NUL_BYTES) from None
        raise BadRow(f"not UTF-8 (byte {problem.start + 1} of the line): save the file as UTF-8") from None
    except NotJson as problem:
        if b"\0" in raw:
            raise BadRow(NUL_BYTES) from None
        if raw.lstrip().startswith(b"["):
            advice = "name the file .json, and python -m data_tools convert makes JSONL of it"
            raise BadRow(f"a JSON array begins here, where one row stands on each line: {advice}") from None
        if not raw.endswith(b"\n"):
            raise BadRow(f"{problem} (the line has no end: the file may be cut short)") from None
        raise


def parse_json(text: str) -> object:
    """The JSON value of a text; a repeated key is an error, since JSON would keep only the last."""
    try:
        return json.loads(text, object_pairs_hook=_refuse_repeated_keys)
    except json.JSONDecodeError as problem:
        raise NotJson(f"not JSON ({problem.msg}, column {problem.colno}): one JSON object to a line") from None
    except RecursionError:
        raise BadRow("nested too deeply: a row is one flat conversation") from None
    except BadRow:
        raise
    except ValueError:
        raise BadRow("holds a number of thousands of digits: write it as text") from None


def json_line(row: object) -> bytes:
    """The row as a line of a JSONL file; text that UTF-8 cannot hold stays escaped."""
    try:
        return json.dumps(row, ensure_ascii=False).encode("utf-8") + b"\n"
    except UnicodeEncodeError:
        return json.dumps(row).encode("utf-8") + b"\n"


def canonical_row(row: object, form: str | None = None) -> dict:
    """Turn a parsed row of a known format, found by its keys or given, into {"messages": [...]}.

    Raises:
        BadRow: no known format, or a turn that is missing, empty where it may not be, or out of order.
    """
    form = form or detect(row)
    if not isinstance(row, dict) or FORMATS[form].key not in row:
        raise BadRow(f'not {form}: the row lacks "{FORMATS[form].key}"')
    messages = FORMATS[form].read(row)
    _check_order(messages)
    return {"messages": messages}


def detect(row: object) -> str:
    """The name of the row's format, by the one key that only it has.

    Raises:
        BadRow: the row has none of these keys, or several.
    """
    if not isinstance(row, dict):
        raise BadRow(f"a row is a JSON object, this is {_kind(row)}: write one object on each line")
    matches = [name for name, form in FORMATS.items() if form.key in row]
    if len(matches) != 1:
        keys = ", ".join(f'"{form.key}" ({name})' for name, form in FORMATS.items())
        raise BadRow(f"expected exactly one of the keys {keys}; found {_named(row) or 'none'}")
    return matches[0]


def count_rows_without_question(path: str | Path) -> int:
    """How many rows of the file have an object or a placeholder where the user's words belong."""
    count = 0
    for _, raw in files.numbered_lines(path):
        try:
            canonical_row(parse_line(raw))
        except NoQuestion:
            count += 1
        except BadRow:
            continue
    return count


def row_starts(path: Path, on_bad: Callable = stop_at_bad_line) -> list[int]:
    """Where each good row of a JSONL file begins, in bytes.

    Raises:
        UserError: the file cannot be read, or holds no good row.
    """
    starts = []
    for number, start, raw in files.located_lines(path):
        try:
            canonical_row(parse_line(raw))
        except BadRow as problem:
            on_bad(path, number, problem, raw)
        else:
            starts.append(start)
    if not starts:
        raise UserError(f"{path}: {NO_ROW}")
    return starts


def draw(rows: Sequence[int], weight: float, dice: random.Random) -> list[int]:
    """Every row floor(weight) times and a random sample for the rest; round(weight * rows) in all.

    1 takes every row once, 0.3 a random three tenths, 2 every row twice.
    """
    whole, rest = divmod(round(weight * len(rows)), len(rows))
    return [*rows] * whole + dice.sample(rows, rest)


def _from_xtuner(row: dict) -> list[dict]:
    messages: list[dict] = []
    for field, turn in _each(row["conversation"], "conversation"):
        if "input" not in turn or "output" not in turn:
            raise BadRow(f'{field} lacks "{"output" if "input" in turn else "input"}"')
        system = turn.get("system") or ""
        if system and not messages:
            messages.append(_message("system", system, f"{field}.system"))
        elif system and system != messages[0]["content"]:
            raise BadRow(f"{field}.system differs from the first turn's: a conversation has one system message")
        question = _message("user", turn["input"], f"{field}.input")
        messages += [question, _message("assistant", turn["output"], f"{field}.output")]
    return messages


def _from_openai(row: dict) -> list[dict]:
    messages = []
    for field, turn in _each(row["messages"], "messages"):
        role = turn.get("role")
        if role not in ("system", "user", "assistant"):
            raise BadRow(f"{field}.role is {_named([repr(role)])}: use system, user or assistant")
        if "content" not in turn:
            raise BadRow(f'{field} lacks "content"')
        if turn.keys() - {"role", "content"}:
            extra = _named(sorted(turn.keys() - {"role", "content"}))
            raise BadRow(f"{field} has {extra}, which would not be trained on: only role and content can be")
        messages.append(_message(role, turn["content"], f"{field}.content"))
    return messages


def _from_sharegpt(row: dict) -> list[dict]:
    roles = {"system": "system", "human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant"}
    messages = [_message("system", row["system"], "system")] if row.get("system") else []
    for field, turn in _each(row["conversations"], "conversations"):
        if not isinstance(turn.get("from"), str) or turn["from"] not in roles:
            raise BadRow(f"{field}.from is {_named([repr(turn.get('from'))])}: use system, human or gpt")
        if "value" not in turn:
            raise BadRow(f'{field} lacks "value"')
        messages.append(_message(roles[turn["from"]], turn["value"], f"{field}.value"))
    return messages


def _from_alpaca(row: dict) -> list[dict]:
    """The instruction and, on a line below it, the input it is about; `history` holds earlier [question, answer]s."""
    if "output" not in row:
        raise BadRow('the row lacks "output"')
    messages = [_message("system", row["system"], "system")] if row.get("system") else []
    history = row.get("history") or []
    if not isinstance(history, list):
        raise BadRow(f"history is {_kind(history)}: it must be a list of questions and their answers")
    for index, pair in enumerate(history):
        if not isinstance(pair, list) or len(pair) != 2:
            raise BadRow(f"history[{index}] is {_kind(pair)}: it must be a list of a question and its answer")
        messages.append(_message("user", pair[0], f"history[{index}][0]"))
        messages.append(_message("assistant", pair[1], f"history[{index}][1]"))
    question = _message("user", row["instruction"], "instruction")
    if about := row.get("input"):
        question["content"] += "\n" + _message("user", about, "input")["content"]
    return [*messages, question, _message("assistant", row["output"], "output")]


def _to_xtuner(messages: list[dict]) -> dict:
    system, turns = _split_system(messages)
    _refuse_empty_system(system, "xtuner")
    conversation = [{"input": user["content"], "output": answer["content"]} for user, answer in _pairs(turns)]
    if system is not None:
        conversation[0] = {"system": system, **conversation[0]}
    return {"conversation": conversation}


def _to_sharegpt(messages: list[dict]) -> dict:
    names = {"system": "system", "user": "human", "assistant": "gpt"}
    turns = [{"from": names[message["role"]], "value": message["content"]} for message in messages]
    return {"conversations": turns}


def _to_alpaca(messages: list[dict]) -> dict:
    """Raises `CannotHold` for several turns, of which this format has one."""
    system, turns = _split_system(messages)
    _refuse_empty_system(system, "alpaca")
    if len(turns) > 2:
        raise CannotHold(f"{len(turns) // 2} turns, and alpaca holds one")
    row = {"instruction": turns[0]["content"], "input": "", "output": turns[1]["content"]}
    return row if system is None else {"system": system, **row}


def _refuse_empty_system(system: str | None, form: str) -> None:
    """An empty system message is not none: templates write their own where there is none."""
    if system == "":
        raise CannotHold(f"an empty system message, which {form} reads as none")


def _split_system(messages: list[dict]) -> tuple[str | None, list[dict]]:
    has_system = messages[0]["role"] == "system"
    return (messages[0]["content"], messages[1:]) if has_system else (None, messages)


def _pairs(turns: list[dict]) -> Iterator[tuple[dict, dict]]:
    return zip(turns[::2], turns[1::2], strict=True)


@dataclass(frozen=True)
class Format:
    """A shape rows come in: the key only it has, all keys it uses, and how it is read and written."""

    key: str
    keys: frozenset[str]
    read: Callable[[dict], list[dict]]
    write: Callable[[list[dict]], dict]


FORMATS = {
    "xtuner": Format("conversation", frozenset({"conversation"}), _from_xtuner, _to_xtuner),
    "messages": Format("messages", frozenset({"messages"}), _from_openai, lambda messages: {"messages": messages}),
    "sharegpt": Format("conversations", frozenset({"conversations", "system"}), _from_sharegpt, _to_sharegpt),
    "alpaca": Format(
        "instruction",
        frozenset({"instruction", "input", "output", "system", "history"}),
        _from_alpaca,
        _to_alpaca,
    ),
}


def _each(turns: object, key: str) -> Iterator[tuple[str, dict]]:
    if not isinstance(turns, list) or not turns:
        raise BadRow(f'"{key}" is {"empty" if turns == [] else _kind(turns)}: it must be a list of turns')
    for index, turn in enumerate(turns):
        if not isinstance(turn, dict):
            raise BadRow(f"{key}[{index}] is {_kind(turn)}: a turn is a JSON object")
        yield f"{key}[{index}]", turn


def _message(role: str, content: object, field: str) -> dict:
    if role == "user" and isinstance(content, (dict, list)):
        raise NoQuestion(f"{field} is {_kind(content)}, not the user's words: {GIVE_BACK}")
    if not isinstance(content, str):
        raise BadRow(f"{field} is {_kind(content)}: it must be text")
    if role == "user" and PLACEHOLDER.fullmatch(content):
        raise NoQuestion(f"{field} is the placeholder {content.strip()[:9]!r}: {GIVE_BACK}")
    if role == "user" and not content.strip():
        raise BadRow(f"{field} is empty: write the user's question there")
    if SURROGATE.search(content):
        raise BadRow(f"{field} holds half of a surrogate pair: write the whole character")
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
        raise BadRow(f'the key "{_named([repeated])}" stands twice in one object: keep one')
    return row


def _named(keys: Iterable[str]) -> str:
    """Keys on one short line, whatever they are made of."""
    text = ", ".join(keys)
    text = text if text.isprintable() else repr(text)[1:-1]
    return text if len(text) <= SHOWN_CHARACTERS else text[:SHOWN_CHARACTERS] + "..."


def _kind(value: object) -> str:
    names = {dict: "an object", list: "a list", str: "text", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")
