"""Writes canonical rows in the formats that others read, `FORMATS`; `row_shapes` reads them.

Knows nothing about files, tokens or templates.
"""

import json
from collections.abc import Callable, Iterator

from sft.data.rows.canonical import CannotHold
from sft.data.rows.row_shapes import XTUNER_MARK


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


# By name, how a canonical row is written in it.
FORMATS: dict[str, Callable[[dict], dict]] = {
    "xtuner": _to_xtuner,
    "messages": lambda row: row,
    "sharegpt": _to_sharegpt,
    "alpaca": _to_alpaca,
}
