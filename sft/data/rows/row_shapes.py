"""Reads rows of every shape that people bring: lists of turns in their usual spellings, questions with their answers.

In: a parsed row. Out: a canonical row {"messages": [...], "tools": [...]}, the tools only where the row has some;
`canonical` says what a message holds, `columns` what a question may be called. Knows nothing about files, tokens or
templates.
"""

import ast
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache

from sft.data.rows import canonical
from sft.data.rows.canonical import NoQuestion, kind, message
from sft.data.rows.columns import MEDIA, OTHER_LISTS, Columns, find_columns, system_column
from sft.data.rows.json_line import BadRow, NotJson, named, parse_json
from sft.data.rows.unknown_format import UnknownFormat, refuse_wrapped

# Keys that hold the turns of a conversation, and the format that is known for it.
LISTS = {"conversation": "xtuner", "messages": "messages", "conversations": "sharegpt"}
# What a turn may say of its loss; the second is OpenAI's, the third LLaMA-Factory's.
MARKS = ("loss", "weight", "loss_weight")
XTUNER_MARK = "output_with_loss"
# A key with one of these in its name says what to train on: not to know it is no reason to pass over it.
_SAYS_WHAT_TO_TRAIN = ("loss", "mask", "train", "weight")
_KEYS = {
    "system": ("role", "content"),
    "user": ("role", "content"),
    "assistant": ("role", "content", "tool_calls", "function_call", *canonical.REASONING),
    "tool": ("role", "content", "name", "tool_call_id"),
}
_PLAIN = {"role", "content"}
_OPTIONAL = {key for keys in _KEYS.values() for key in keys} - _PLAIN
_ROLES = {
    **dict.fromkeys(("system",), "system"),
    **dict.fromkeys(("user", "human", "prompter"), "user"),
    **dict.fromkeys(("assistant", "gpt", "chatgpt", "bot", "chatbot", "model", "ai", "bing", "bard"), "assistant"),
    **dict.fromkeys(("tool", "function", "observation", "tool_response", "function_response"), "tool"),
    **dict.fromkeys(("function_call", "tool_call"), "call"),
}
# Where a turn has its words.
_WORDS = ("content", "value", "text")


@dataclass(frozen=True)
class Shape:
    """How one row is read: the name of its format, the key of its turns or the columns that stand for them."""

    name: str
    turns: str | None
    columns: Columns

    def read(self, row: dict) -> dict:
        """The canonical row.

        Raises:
            BadRow: something is missing, out of order, of another kind than it must be, or could not be honoured.
        """
        if not MEDIA.isdisjoint(row):
            _refuse_media(row)
        try:
            messages = self._messages(row)
        except NoQuestion as problem:
            if (self.name, self.turns) == ("xtuner", "conversation"):
                raise
            raise BadRow(f"{problem.what}: write the question there as text, or drop the row") from None
        if messages[-1]["role"] == "user" and "chosen" in row:
            raise BadRow("the row has its answer under chosen, as for preference training: put it into the turns")
        tools = _tools(row) if "tools" in row or "functions" in row else []
        canonical.check_order(messages)
        canonical.check_marks(messages)
        return {"messages": messages, "tools": tools} if tools else {"messages": messages}

    def _messages(self, row: dict) -> list[dict]:
        if self.turns is None:
            return _from_columns(row, self.columns)
        turns = list_of(row[self.turns], self.turns)
        messages = _with_calls(_READERS[self.name](turns, self.turns))
        return _with_system(row, self.columns.system, messages) if self.columns.system else messages

    def unused(self, row: dict) -> list[str]:
        """The keys of the row that hold something and are not read."""
        used = {self.turns, "tools", "functions", *vars(self.columns).values()}
        return [key for key, value in row.items() if key not in used and value not in (None, "", [], {})]


def shape_of(row: object) -> Shape:
    """The shape of a row, by its keys.

    Raises:
        BadRow: it is no object, has none of these keys, or has several lists of turns.
    """
    if not isinstance(row, dict):
        raise BadRow(f"a row is a JSON object, this is {kind(row)}: write one object on each line")
    listed = [key for key in LISTS if row.get(key) is not None] or [key for key in LISTS if key in row]
    listed = listed or [key for key in OTHER_LISTS if key in row and _turn_format(row[key])]
    if len(listed) > 1:
        raise BadRow(
            f"{named(listed)} may each be the conversation: say which with columns, such as messages={listed[0]}"
        )
    if listed:
        [key] = listed
        return _shape_of_turns(_turn_format(row[key]) or LISTS.get(key, "messages"), key, system_column(row))
    columns = find_columns(row)
    refuse_wrapped(row, vars(columns))
    if not columns.is_pair:
        raise UnknownFormat(row, vars(columns))
    pair = f"{columns.question}/{columns.answer}"
    return Shape("alpaca" if pair == "instruction/output" else pair, None, columns)


@lru_cache(maxsize=256)
def _shape_of_turns(name: str, key: str, system: str | None) -> Shape:
    return Shape(name, key, Columns(system=system))


def _turn_format(turns: object) -> str | None:
    """The format of a list of turns, by the first of them; of a text that holds such a list too."""
    if isinstance(turns, str):
        try:
            turns = list_of(turns, "")
        except BadRow:
            return None
    first = turns[0] if isinstance(turns, list) and turns else None
    if not isinstance(first, dict):
        return None
    if "role" in first:
        return "messages"
    if "from" in first:
        return "sharegpt"
    return "xtuner" if "input" in first or find_columns(first) != Columns() else None


def list_of(turns: object, key: str) -> object:
    """The turns of a list, or of a table's cell that holds one as JSON, or as Python prints it."""
    if not isinstance(turns, str) or not turns.lstrip().startswith("["):
        return turns
    try:
        return parse_json(turns)
    except NotJson as problem:
        try:
            return ast.literal_eval(turns.strip())
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            raise BadRow(f"{key} is {str(problem).partition(':')[0]}: write JSON there") from None


def _refuse_media(row: dict) -> None:
    for key in sorted(MEDIA & row.keys()):
        if row[key]:
            raise BadRow(
                f"the row has {key}, and only text can be trained on: drop the row, or the key if it says nothing"
            )


def _with_calls(messages: Iterable[dict]) -> list[dict]:
    """The messages, where a call that has a turn of its own is part of the assistant's message before it."""
    made: list[dict] = []
    for turn in messages:
        before = made[-1] if made else {}
        is_call = "tool_calls" in turn and not turn["content"] and before.get("role") == "assistant"
        if is_call and before.get("loss") == turn.get("loss"):
            made[-1] = before | {"tool_calls": [*before.get("tool_calls", ()), *turn["tool_calls"]]}
        else:
            made.append(turn)
    return made


def _with_system(row: dict, column: str | None, messages: list[dict]) -> list[dict]:
    """The messages after the system message that the row itself holds, if it holds one."""
    if column is None or not row[column]:
        return messages
    system = message("system", row[column], column)
    if messages and messages[0]["role"] == "system":
        if messages[0] != system:
            raise BadRow(f"{column} differs from the conversation's system message: a conversation has one; keep one")
        return messages
    return [system, *messages]


def _tools(row: dict) -> list[dict]:
    lists = {name: canonical.tools(row[name], name) for name in ("tools", "functions") if name in row}
    given = [listed for listed in lists.values() if listed]
    if len(given) > 1:
        raise BadRow("the row has tools and functions, which are two names for one list: keep one")
    return given[0] if given else []


def _from_xtuner(turns: object, key: str) -> Iterator[dict]:
    """Turns of a question and its answer, which are called input and output, or human and assistant."""
    system = None
    for field, turn in _each(turns, key):
        columns = _PAIR if "input" in turn and "output" in turn else find_columns(turn)
        for name, usual in ((columns.question, "input"), (columns.answer, "output")):
            if name is None:
                raise BadRow(f'{field} lacks "{usual}"')
        given = turn.get("system") or ""
        if given and system is None:
            if field != f"{key}[0]":
                raise BadRow(f"{field}.system differs from the first turn's: a conversation has one system message")
            yield message("system", given, f"{field}.system")
        elif given and given != system:
            raise BadRow(f"{field}.system differs from the first turn's: a conversation has one system message")
        system = system or given
        question = message("user", turn[columns.question], f"{field}.{columns.question}")
        answer = message("assistant", turn[columns.answer], f"{field}.{columns.answer}")
        if len(turn) > 2 + ("system" in turn):
            _refuse_end_of_turn(turn, field)
            _add_mark(answer, turn, (XTUNER_MARK,), field)
        yield question
        yield answer


_PAIR = Columns("input", "output")


def _refuse_end_of_turn(turn: dict, field: str) -> None:
    """XTuner lets a turn say what ends it."""
    if not turn.get("need_eos_token", True) and turn["need_eos_token"] is not None:
        raise BadRow(f"{field}.need_eos_token is false, and the chat template writes what ends a turn: take it away")
    if turn.get("sep"):
        raise BadRow(
            f"{field}.sep is {named([repr(turn['sep'])])}, and the chat template writes what ends a turn: empty it"
        )


def _from_openai(turns: object, key: str) -> Iterator[dict]:
    for field, turn in _each(turns, key):
        yield _openai_message(turn, field)


def _openai_message(turn: dict, field: str) -> dict:
    role, words = turn.get("role"), turn.get("content")
    if role == "developer":
        raise BadRow(f"{field}.role is 'developer': use system")
    if turn.keys() == _PLAIN and isinstance(words, str) and role in _KEYS:
        return message(role, words, f"{field}.content")
    role = _ROLES.get(role.strip().lower()) if isinstance(role, str) else None
    if role == "call":
        return _sharegpt_message({"from": "tool_call", **{key: turn[key] for key in turn if key != "role"}}, field)
    if role is None:
        raise BadRow(
            f"{field}.role is {named([repr(turn.get('role'))])}: use system, user or assistant, or tool for a tool's "
            "answer"
        )
    # Tables have every key in every turn.
    turn = {key: value for key, value in turn.items() if key not in _OPTIONAL or not _is_none(key, value)}
    said = words_key(turn)
    calls = _openai_calls(turn, field) if role == "assistant" else None
    parts = canonical.Parts(turn.get(said), f"{field}.{said}")
    if said not in turn and not calls:
        raise BadRow(f'{field} lacks "content"')
    if parts.calls:
        calls = [*(calls or []), *canonical.tool_calls(parts.calls, f"{field}.{said}")]
    content = "" if calls and parts.content is None else parts.content
    made = message(role, content, f"{field}.{said}")
    if extra := turn.keys() - {*_KEYS[role], *MARKS, said}:
        *keys, last = _KEYS[role]
        only = f"only {', '.join(keys)} and {last} can be"
        raise BadRow(f"{field} has {named(sorted(extra))}, which would not be trained on: {only}")
    if role == "assistant":
        _add_reasoning(made, turn | parts.reasoning, field)
    elif parts.calls or parts.reasoning:
        raise BadRow(f"{field}.{said} holds reasoning or tool calls, which only an assistant's turn can: mend the role")
    made |= {"tool_calls": calls} if calls else {}
    _add_names(made, turn, field)
    _add_mark(made, turn, MARKS, field)
    return made


def words_key(turn: dict) -> str:
    """The key of a turn's words, by whatever name."""
    return next(
        (key for key in _WORDS if turn.get(key) is not None), next((key for key in _WORDS if key in turn), "content")
    )


def _is_none(key: str, value: object) -> bool:
    return value is None or (key == "tool_calls" and value == [])


def _openai_calls(turn: dict, field: str) -> list[dict] | None:
    """Older files have one call under "function_call"."""
    if "tool_calls" in turn and "function_call" in turn:
        raise BadRow(f"{field} has tool_calls and function_call, which are two names for one thing: keep one")
    if "function_call" in turn:
        call = {"type": "function", "function": turn["function_call"]}
        return canonical.tool_calls([call], f"{field}.function_call")
    return canonical.tool_calls(turn["tool_calls"], f"{field}.tool_calls") if "tool_calls" in turn else None


def _from_sharegpt(turns: object, key: str) -> Iterator[dict]:
    for field, turn in _each(turns, key):
        yield _sharegpt_message(turn, field)


def _sharegpt_message(turn: dict, field: str) -> dict:
    name = turn.get("from")
    role = _ROLES.get(name.strip().lower()) if isinstance(name, str) else None
    if role is None:
        use = "use system, human or gpt, or function_call and observation for tools"
        raise BadRow(f"{field}.from is {named([repr(name)])}: {use}")
    said = words_key(turn)
    if said not in turn:
        raise BadRow(f'{field} lacks "value"')
    if role == "call":
        role, calls = "assistant", canonical.nested_calls(turn[said], f"{field}.{said}")
        made = {**message(role, "", field), "tool_calls": calls}
    else:
        made = message(role, turn[said], f"{field}.{said}")
    if len(turn) > 2:
        if role == "assistant":
            _add_reasoning(made, turn, field)
        _add_names(made, turn, field)
        _add_mark(made, turn, MARKS, field)
    return made


_READERS: dict[str, Callable[[object, str], Iterator[dict]]] = {
    "xtuner": _from_xtuner,
    "messages": _from_openai,
    "sharegpt": _from_sharegpt,
}


def _from_columns(row: dict, columns: Columns) -> list[dict]:
    """The history, the question and, on a line below it, what it is about, and the answer.

    A question that is a list of messages is TRL's conversational prompt, whose answers carry no loss.
    """
    question, answer = str(columns.question), str(columns.answer)
    messages = _history(row[columns.history], columns.history) if columns.history else []
    if prompt := _conversation(row[question]):
        turns = _from_openai(prompt, question)
        messages += [turn | {"loss": False} if turn["role"] == "assistant" else turn for turn in turns]
    else:
        messages.append(message("user", row[question], question))
        if columns.context and (about := row[columns.context]):
            messages[-1]["content"] += "\n" + message("user", about, columns.context)["content"]
    if completion := _conversation(row[answer]):
        messages += _from_openai(completion, answer)
    else:
        messages.append(message("assistant", row[answer], answer))
    return _with_system(row, columns.system, messages)


def _conversation(value: object) -> list | None:
    """The list of messages that the value is, also as the JSON text of a table's cell; None if it is none."""
    if isinstance(value, str) and value.startswith("[{"):
        try:
            value = parse_json(value)
        except BadRow:
            return None
    is_one = isinstance(value, list) and value and all(isinstance(turn, dict) and "role" in turn for turn in value)
    return value if is_one else None  # type: ignore[return-value]


def _history(history: object, field: str) -> list[dict]:
    """Earlier questions with their answers, also as the JSON text of a table's cell."""
    history = list_of(history, field) or []
    if not isinstance(history, list):
        raise BadRow(f"{field} is {kind(history)}: it must be a list of questions and their answers")
    messages = []
    for index, pair in enumerate(history):
        if not isinstance(pair, list) or len(pair) != 2:
            raise BadRow(f"{field}[{index}] is {kind(pair)}: it must be a list of a question and its answer")
        messages.append(message("user", pair[0], f"{field}[{index}][0]"))
        messages.append(message("assistant", pair[1], f"{field}[{index}][1]"))
    return messages


def _each(turns: object, key: str) -> Iterator[tuple[str, dict]]:
    if not isinstance(turns, list) or not turns:
        raise BadRow(f'"{key}" is {"empty" if turns == [] else kind(turns)}: it must be a list of turns')
    for index, turn in enumerate(turns):
        if not isinstance(turn, dict):
            raise BadRow(f"{key}[{index}] is {kind(turn)}: a turn is a JSON object")
        yield f"{key}[{index}]", turn


def _add_reasoning(made: dict, turn: dict, field: str) -> None:
    if (reasoning := canonical.reasoning(turn, field)) is not None:
        made["reasoning_content"] = reasoning


def _add_names(made: dict, turn: dict, field: str) -> None:
    """Which tool a tool's message is of, and which call it answers."""
    for key in ("name", "tool_call_id") if made["role"] == "tool" else ():
        if turn.get(key) is not None:
            made[key] = canonical.text(turn[key], f"{field}.{key}")


def _add_mark(made: dict, turn: dict, marks: Iterable[str], field: str) -> None:
    """What the turn says of its loss; of another key that seems to say so, nobody knows what it means."""
    if (carries_loss := canonical.loss_mark(turn, marks, made["role"], field)) is not None:
        made["loss"] = carries_loss
    for key in sorted(turn.keys() - {*marks}):
        if turn[key] is not None and any(word in key.lower() for word in _SAYS_WHAT_TO_TRAIN):
            raise BadRow(
                f"{field}.{named([key])} cannot be honoured: mark a turn with {next(iter(marks))}: true or false"
            )
