"""The shapes that rows come in, `FORMATS`: how each becomes the canonical row, and is written from it.

A canonical row is {"messages": [...], "tools": [...]}, the tools only where the row has some; `canonical` says what a
message holds. Knows nothing about files, tokens or templates.
"""

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from sft.data import canonical
from sft.data.canonical import BadRow, CannotHold, kind, message, named

# What a turn may say of its loss; the second is OpenAI's, the third LLaMA-Factory's.
MARKS = ("loss", "weight", "loss_weight")
XTUNER_MARK = "output_with_loss"
# A key with one of these in its name says what to train on: not to know it is no reason to pass over it.
_SAYS_WHAT_TO_TRAIN = ("loss", "mask", "train", "weight")
_OPENAI_KEYS = {
    "system": ("role", "content"),
    "user": ("role", "content"),
    "assistant": ("role", "content", "tool_calls", "function_call", *canonical.REASONING),
    "tool": ("role", "content", "name", "tool_call_id"),
}
_PLAIN = {"role", "content"}
_OPTIONAL = {key for keys in _OPENAI_KEYS.values() for key in keys} - _PLAIN
_SHAREGPT_ROLES = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "function_call": "assistant",
    "observation": "tool",
    "tool": "tool",
}


def _from_xtuner(row: dict) -> dict:
    messages: list[dict] = []
    for field, turn in _each(row["conversation"], "conversation"):
        if "input" not in turn or "output" not in turn:
            raise BadRow(f'{field} lacks "{"output" if "input" in turn else "input"}"')
        system = turn.get("system") or ""
        if system and not messages:
            messages.append(message("system", system, f"{field}.system"))
        elif system and system != messages[0]["content"]:
            raise BadRow(f"{field}.system differs from the first turn's: a conversation has one system message")
        question = message("user", turn["input"], f"{field}.input")
        answer = message("assistant", turn["output"], f"{field}.output")
        if turn.keys() - {"system", "input", "output"}:
            _refuse_end_of_turn(turn, field)
            _add_mark(answer, turn, (XTUNER_MARK,), field)
        messages += [question, answer]
    return {"messages": messages}


def _refuse_end_of_turn(turn: dict, field: str) -> None:
    """XTuner lets a turn say what ends it."""
    if not turn.get("need_eos_token", True) and turn["need_eos_token"] is not None:
        raise BadRow(f"{field}.need_eos_token is false, and the chat template writes what ends a turn: take it away")
    if turn.get("sep"):
        raise BadRow(
            f"{field}.sep is {named([repr(turn['sep'])])}, and the chat template writes what ends a turn: empty it"
        )


def _from_openai(row: dict) -> dict:
    messages = [_openai_message(turn, field) for field, turn in _each(row["messages"], "messages")]
    lists = {name: canonical.tools(row[name], name) for name in ("tools", "functions") if name in row}
    given = [listed for listed in lists.values() if listed]
    if len(given) > 1:
        raise BadRow("the row has tools and functions, which are two names for one list: keep one")
    return _with_tools(messages, *given)


def _openai_message(turn: dict, field: str) -> dict:
    role = "tool" if turn.get("role") == "function" else turn.get("role")
    if role == "developer":
        raise BadRow(f"{field}.role is 'developer': use system")
    if not isinstance(role, str) or role not in _OPENAI_KEYS:
        raise BadRow(
            f"{field}.role is {named([repr(role)])}: use system, user or assistant, or tool for a tool's answer"
        )
    if turn.keys() == _PLAIN and isinstance(turn["content"], str):
        return message(role, turn["content"], f"{field}.content")
    # Tables have every key in every turn.
    turn = {key: value for key, value in turn.items() if key not in _OPTIONAL or not _is_none(key, value)}
    calls = _openai_calls(turn, field) if role == "assistant" else None
    content = canonical.joined_parts(turn.get("content"), f"{field}.content")
    if "content" not in turn and not calls:
        raise BadRow(f'{field} lacks "content"')
    made = message(role, "" if calls and content is None else content, f"{field}.content")
    if extra := turn.keys() - {*_OPENAI_KEYS[role], *MARKS}:
        *keys, last = _OPENAI_KEYS[role]
        only = f"only {', '.join(keys)} and {last} can be"
        raise BadRow(f"{field} has {named(sorted(extra))}, which would not be trained on: {only}")
    if role == "assistant":
        _add_reasoning(made, turn, field)
    made |= {"tool_calls": calls} if calls else {}
    _add_names(made, turn, field)
    _add_mark(made, turn, MARKS, field)
    return made


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


def _from_sharegpt(row: dict) -> dict:
    messages = [message("system", row["system"], "system")] if row.get("system") else []
    messages += [_sharegpt_message(turn, field) for field, turn in _each(row["conversations"], "conversations")]
    return _with_tools(messages, canonical.tools(row.get("tools"), "tools"))


def _sharegpt_message(turn: dict, field: str) -> dict:
    name = turn.get("from")
    if not isinstance(name, str) or name not in _SHAREGPT_ROLES:
        use = "use system, human or gpt, or function_call and observation for tools"
        raise BadRow(f"{field}.from is {named([repr(name)])}: {use}")
    if "value" not in turn:
        raise BadRow(f'{field} lacks "value"')
    role = _SHAREGPT_ROLES[name]
    if name == "function_call":
        calls = _sharegpt_calls(turn["value"], f"{field}.value")
        made = {**message(role, "", field), "tool_calls": calls}
    else:
        made = message(role, turn["value"], f"{field}.value")
    if len(turn) > 2:
        if role == "assistant":
            _add_reasoning(made, turn, field)
        _add_names(made, turn, field)
        _add_mark(made, turn, MARKS, field)
    return made


def _sharegpt_calls(value: object, field: str) -> list[dict]:
    calls = canonical.parse_field(value, field)
    listed = canonical.tool_calls(calls if isinstance(calls, list) else [calls], field)
    return [call if "function" in call else _nested_call(call) for call in listed]


def _nested_call(call: dict) -> dict:
    """A flat call in OpenAI's shape, its arguments an object where they are the JSON text of one."""
    function = {key: value for key, value in call.items() if key != "id" and (key, value) != ("type", "function")}
    if isinstance(arguments := call.get("arguments"), str):
        try:
            parsed = canonical.parse_json(arguments)
        except BadRow:
            parsed = None
        function["arguments"] = parsed if isinstance(parsed, dict) else arguments
    nested = {"type": "function", "function": function}
    return nested | ({"id": call["id"]} if "id" in call else {})


def _from_alpaca(row: dict) -> dict:
    """The instruction and, on a line below it, the input it is about; `history` holds earlier [question, answer]s."""
    if "output" not in row:
        raise BadRow('the row lacks "output"')
    messages = [message("system", row["system"], "system")] if row.get("system") else []
    history = row.get("history") or []
    if not isinstance(history, list):
        raise BadRow(f"history is {kind(history)}: it must be a list of questions and their answers")
    for index, pair in enumerate(history):
        if not isinstance(pair, list) or len(pair) != 2:
            raise BadRow(f"history[{index}] is {kind(pair)}: it must be a list of a question and its answer")
        messages.append(message("user", pair[0], f"history[{index}][0]"))
        messages.append(message("assistant", pair[1], f"history[{index}][1]"))
    question = message("user", row["instruction"], "instruction")
    if about := row.get("input"):
        question["content"] += "\n" + message("user", about, "input")["content"]
    return {"messages": [*messages, question, message("assistant", row["output"], "output")]}


def _to_xtuner(row: dict) -> dict:
    _refuse_unheld(row, "xtuner", "loss")
    system, turns = _split_system(row["messages"])
    _refuse_empty_system(system, "xtuner")
    conversation = [
        {"input": user["content"], "output": answer["content"]}
        | ({XTUNER_MARK: answer["loss"]} if "loss" in answer else {})
        for user, answer in _pairs(turns)
    ]
    if system is not None:
        conversation[0] = {"system": system, **conversation[0]}
    return {"conversation": conversation}


def _to_sharegpt(row: dict) -> dict:
    _refuse_unheld(row, "sharegpt", "loss", "tools", "tool_calls", "name", "tool_call_id")
    made: dict = {"conversations": list(map(_sharegpt_turn, row["messages"]))}
    if "tools" in row:
        made["tools"] = json.dumps(list(map(_flat_tool, row["tools"])), ensure_ascii=False)
    return made


def _sharegpt_turn(message: dict) -> dict:
    names = {"system": "system", "user": "human", "assistant": "gpt", "tool": "observation"}
    turn = {"from": names[message["role"]], "value": message["content"]}
    if "tool_calls" in message:
        if message["content"]:
            raise CannotHold("an answer in words and tool calls in one turn, of which sharegpt holds one")
        calls = json.dumps(list(map(_flat_call, message["tool_calls"])), ensure_ascii=False)
        turn = {"from": "function_call", "value": calls}
    return turn | {key: message[key] for key in ("name", "tool_call_id", "loss") if key in message}


def _flat_call(call: dict) -> dict:
    """The call as {"name", "arguments"}, as others read it too, where nothing is lost by it."""
    function = call.get("function")
    if not isinstance(function, dict) or function.keys() & {"type", "function", "id"}:
        return call
    if call.get("type") != "function" or call.keys() - {"type", "function", "id"}:
        return call
    return {**function, **({"id": call["id"]} if "id" in call else {})}


def _flat_tool(tool: dict) -> dict:
    """The tool's function, as others read it too, where nothing is lost by it."""
    function = tool["function"]
    is_plain = isinstance(function, dict) and tool == {"type": "function", "function": function} and "name" in function
    return function if is_plain and not function.keys() & {"type", "function"} else tool


def _to_alpaca(row: dict) -> dict:
    """Raises `CannotHold` for several turns, of which this format has one."""
    _refuse_unheld(row, "alpaca")
    system, turns = _split_system(row["messages"])
    _refuse_empty_system(system, "alpaca")
    if len(turns) > 2:
        raise CannotHold(f"{len(turns) // 2} turns, and alpaca holds one")
    made = {"instruction": turns[0]["content"], "input": "", "output": turns[1]["content"]}
    return made if system is None else {"system": system, **made}


def _refuse_unheld(row: dict, form: str, *held: str) -> None:
    keys = dict.fromkeys(key for message in row["messages"] for key in message)
    if unheld := [key for key in (*row, *keys) if key not in ("messages", "role", "content", *held)]:
        raise CannotHold(f"{', '.join(unheld)}, for which {form} has no place")


def _refuse_empty_system(system: str | None, form: str) -> None:
    """An empty system message is not none: templates write their own where there is none."""
    if system == "":
        raise CannotHold(f"an empty system message, which {form} reads as none")


def _split_system(messages: list[dict]) -> tuple[str | None, list[dict]]:
    has_system = messages[0]["role"] == "system"
    return (messages[0]["content"], messages[1:]) if has_system else (None, messages)


def _pairs(turns: list[dict]) -> Iterator[tuple[dict, dict]]:
    """The questions and their answers, of a row without tool messages."""
    return zip(turns[::2], turns[1::2], strict=True)


@dataclass(frozen=True)
class Format:
    """A shape rows come in: the key only it has, all keys it uses, and how it is read and written."""

    key: str
    keys: frozenset[str]
    read: Callable[[dict], dict]
    write: Callable[[dict], dict]


FORMATS = {
    "xtuner": Format("conversation", frozenset({"conversation"}), _from_xtuner, _to_xtuner),
    "messages": Format("messages", frozenset({"messages", "tools", "functions"}), _from_openai, lambda row: row),
    "sharegpt": Format("conversations", frozenset({"conversations", "system", "tools"}), _from_sharegpt, _to_sharegpt),
    "alpaca": Format(
        "instruction",
        frozenset({"instruction", "input", "output", "system", "history"}),
        _from_alpaca,
        _to_alpaca,
    ),
}


def _each(turns: object, key: str) -> Iterator[tuple[str, dict]]:
    if not isinstance(turns, list) or not turns:
        raise BadRow(f'"{key}" is {"empty" if turns == [] else kind(turns)}: it must be a list of turns')
    for index, turn in enumerate(turns):
        if not isinstance(turn, dict):
            raise BadRow(f"{key}[{index}] is {kind(turn)}: a turn is a JSON object")
        yield f"{key}[{index}]", turn


def _with_tools(messages: list[dict], tools: list[dict] | None = None) -> dict:
    return {"messages": messages, "tools": tools} if tools else {"messages": messages}


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
