"""The canonical row: builds and checks the messages and tools that rows of every format become.

In: what a turn of some format holds, and the name of its field for errors. Out: messages of role and content; an
assistant's may have reasoning_content, tool_calls and loss as well, a tool's name and tool_call_id. Knows nothing about
the formats, files or templates.
"""

import itertools
import re
from collections.abc import Iterable, Iterator

from sft.data.rows.json_line import BadRow, NotJson, named, parse_json

# Spellings of an assistant's reasoning, the canonical one first.
REASONING = ("reasoning_content", "reasoning", "thinking")
# Advice for rows without a question.
GIVE_BACK = "write the questions there as text; python -m data_tools repair can give them back"
PLACEHOLDER = re.compile(r"\s*x{3,}\s*", re.IGNORECASE)

_MEDIA = {"image": "an image", "audio": "audio", "video": "a video"}


class CannotHold(BadRow):
    """A row that a format has no place for."""


class NoQuestion(BadRow):
    """A row whose input is an object or a placeholder, so that nobody asked the question; `what` says just that."""

    @property
    def what(self) -> str:
        """The message without what to do, which depends on the format."""
        return str(self.args[0])

    def __str__(self) -> str:
        return f"{self.what}: {GIVE_BACK}"


def parse_field(value: object, field: str) -> object:
    """The JSON value of a field that may hold it as text."""
    if not isinstance(value, str):
        return value
    try:
        return parse_json(value)
    except NotJson as problem:
        raise BadRow(f"{field} is {str(problem).partition(':')[0]}: write JSON there") from None
    except BadRow as problem:
        raise BadRow(f"{field}: {problem}") from None


def message(role: str, content: object, field: str) -> dict:
    """A message of role and content, which must be text, and of a user more than white space or xxx."""
    if role == "user" and isinstance(content, (dict, list)):
        raise NoQuestion(f"{field} is {kind(content)}, not the user's words")
    content = text(content, field)
    if role == "user" and PLACEHOLDER.fullmatch(content):
        raise NoQuestion(f"{field} is the placeholder {content.strip()[:9]!r}")
    if role == "user" and not content.strip():
        raise BadRow(f"{field} is empty: write the user's question there")
    return {"role": role, "content": content}


def text(value: object, field: str) -> str:
    """The value, which must be text that UTF-8 can hold."""
    if not isinstance(value, str):
        raise BadRow(f"{field} is {kind(value)}: it must be text")
    _refuse_surrogates(value, field)
    return value


class Parts:
    """What a turn's content holds: its text, and of a list of parts its reasoning and tool calls as well.

    LLaMA-Factory has the value of each under "value", OpenAI the text under "text".
    """

    def __init__(self, content: object, field: str):
        self.content, self.calls = content, list[dict]()
        self.reasoning: dict[str, str] = {}
        if not isinstance(content, list) or not content or not all(map(_is_part, content)):
            return
        texts: dict[str, list[str]] = {"text": [], "reasoning": []}
        for index, part in enumerate(content):
            where = f"{field}[{index}]"
            if part["type"] == "tool_call":
                self.calls += nested_calls(part.get("value"), f"{where}.value")
            else:
                texts["reasoning" if part["type"] == "reasoning" else "text"].append(_part_text(part, where))
        self.content = "".join(texts["text"])
        if texts["reasoning"]:
            self.reasoning["reasoning"] = "".join(texts["reasoning"])


def reasoning(turn: dict, field: str) -> str | None:
    """What an assistant's turn holds of reasoning, under any of its spellings."""
    given = {name: text(turn[name], f"{field}.{name}") for name in REASONING if turn.get(name) is not None}
    if len(set(given.values())) > 1:
        raise BadRow(f"{field} has {' and '.join(given)}, which differ: keep one")
    return next(iter(given.values()), None)


def loss_mark(turn: dict, names: Iterable[str], role: str, field: str) -> bool | None:
    """Whether the turn is marked, under one of the names, to carry loss; None where it is not marked.

    On a turn of anybody but the assistant, a mark that it carries none says what is so anyway: no mark is left.
    """
    marks = {name: _mark(turn[name], f"{field}.{name}") for name in names if turn.get(name) is not None}
    if len(set(marks.values())) > 1:
        raise BadRow(f"{field} has {' and '.join(marks)}, which contradict each other: keep one")
    for name, carries_loss in marks.items():
        if role == "assistant":
            return carries_loss
        if carries_loss:
            raise BadRow(
                f"{field}.{name} asks for loss on a turn of the {role}, and only the assistant's can be marked so: "
                "take the mark away; loss_on: everything in the recipe trains every token"
            )
    return None


def tool_calls(calls: object, field: str) -> list[dict]:
    """The calls as they are, a list of objects that each name a function."""
    if not isinstance(calls, list) or not calls:
        raise BadRow(f"{field} is {'empty' if calls == [] else kind(calls)}: it must be a list of tool calls")
    for index, call in enumerate(calls):
        if not isinstance(call, dict):
            raise BadRow(f"{field}[{index}] is {kind(call)}: a tool call is a JSON object")
        function = called(call)
        if not isinstance(function, dict) or not isinstance(function.get("name"), str) or not function["name"]:
            raise BadRow(f'{field}[{index}] names no function: write {{"function": {{"name": ..., "arguments": ...}}}}')
    _refuse_surrogates("".join(texts_in(calls, keys=True)), field)
    return calls


def nested_calls(value: object, field: str) -> list[dict]:
    """The calls of a list, or of its JSON text, or a single one, each in OpenAI's shape."""
    calls = parse_field(value, field)
    listed = tool_calls(calls if isinstance(calls, list) else [calls], field)
    return [call if "function" in call else _nested_call(call) for call in listed]


def called(call: dict) -> object:
    """The function of a tool call, {"name", "arguments"}: the call itself where it is flat."""
    return call.get("function", call)


def tools(value: object, field: str) -> list[dict]:
    """The tools of a list, or of a JSON text of one, each {"type": "function", "function": ...}; null is none."""
    listed = None if value == "" else parse_field(value, field)
    if listed is None:
        return []
    if not isinstance(listed, list):
        raise BadRow(f"{field} is {kind(listed)}: it must be a list of tools")
    _refuse_surrogates("".join(texts_in(listed, keys=True)), field)
    return [_tool(tool, f"{field}[{index}]") for index, tool in enumerate(listed)]


def check_order(messages: list[dict]) -> None:
    """Refuse messages out of order: user, assistant and so on, with tool messages between two of an assistant."""
    roles = [message["role"] for message in messages]
    start = 1 if roles[0] == "system" else 0
    if "system" in roles[start:]:
        raise BadRow("a system message stands after the first place: a conversation has one, at its start")
    before = "the start"
    for message in messages[start:]:
        if message["role"] not in _MAY_FOLLOW[before]:
            raise BadRow(_out_of_order(before, message["role"], roles[start:]))
        before = "a call" if "tool_calls" in message else message["role"]
    if before not in ("assistant", "a call"):
        raise BadRow(_out_of_order(before, "the end", roles[start:]))


def check_marks(messages: list[dict]) -> None:
    """Refuse a row of whose answers none carries loss."""
    for message in messages:
        if message["role"] == "assistant" and message.get("loss") is not False:
            return
    raise BadRow("every turn of the assistant is marked to carry no loss, so nothing is to be learned: drop the row")


def answered(messages: list[dict]) -> Iterator[tuple[dict, dict]]:
    """Each question with the answer that follows it at once; what comes after a tool's message is not among them."""
    for before, message in itertools.pairwise(messages):
        if (before["role"], message["role"]) == ("user", "assistant"):
            yield before, message


def texts_of(message: dict) -> Iterator[str]:
    """The texts of a canonical message: its content, its reasoning, and what its tool calls name and pass."""
    yield message["content"]
    if "reasoning_content" in message:
        yield message["reasoning_content"]
    for call in message.get("tool_calls", ()):
        yield from texts_in(called(call))


def kind(value: object) -> str:
    """What a JSON value is, in words."""
    names = {dict: "an object", list: "a list", str: "text", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")


def _is_part(part: object) -> bool:
    return isinstance(part, dict) and isinstance(part.get("type"), str)


def _part_text(part: dict, field: str) -> str:
    """LLaMA-Factory has the text under "value"."""
    if part["type"] not in ("text", "reasoning"):
        held = next((words for media, words in _MEDIA.items() if media in part["type"]), "no text")
        raise BadRow(
            f"{field} is of the type {named([part['type']])}: it holds {held}, and only text can be trained on; "
            "drop the row"
        )
    key = "value" if "value" in part and part.get("text") is None else "text"
    if key not in part:
        raise BadRow(f'{field} lacks "text"')
    if extra := sorted(name for name in part.keys() - {"type", key} if part[name] is not None):
        raise BadRow(f"{field} has {named(extra)}, which would not be trained on: only type and {key} can be")
    return text(part[key], f"{field}.{key}")


def _nested_call(call: dict) -> dict:
    """A flat call in OpenAI's shape, its arguments an object where they are the JSON text of one."""
    function = {key: value for key, value in call.items() if key != "id" and (key, value) != ("type", "function")}
    if isinstance(arguments := call.get("arguments"), str):
        try:
            parsed = parse_json(arguments)
        except BadRow:
            parsed = None
        function["arguments"] = parsed if isinstance(parsed, dict) else arguments
    nested = {"type": "function", "function": function}
    return nested | ({"id": call["id"]} if "id" in call else {})


def _mark(value: object, field: str) -> bool:
    if isinstance(value, (bool, int, float)) and value in (0, 1):
        return bool(value)
    raise BadRow(f"{field} is {named([repr(value)])}: a turn carries loss or none; write true or false, 1 or 0")


def _tool(tool: object, field: str) -> dict:
    """ShareGPT and older OpenAI files have the function itself in the list."""
    if not isinstance(tool, dict):
        raise BadRow(f"{field} is {kind(tool)}: a tool is a JSON object")
    if "function" in tool:
        return tool
    if not isinstance(tool.get("name"), str):
        raise BadRow(f'{field} names no function: write {{"type": "function", "function": {{"name": ...}}}}')
    plain = {key: value for key, value in tool.items() if (key, value) != ("type", "function")}
    return {"type": "function", "function": plain}


# What may come after a message; an assistant's that calls a tool is "a call".
_MAY_FOLLOW = {
    "the start": ("user",),
    "user": ("assistant",),
    "assistant": ("user",),
    "a call": ("tool",),
    "tool": ("tool", "assistant"),
}


def _out_of_order(before: str, role: str, turns: list[str]) -> str:
    if before == "a call":
        return (
            f"a tool message comes after an assistant's that calls a tool; found {role}: write what the tool answered"
        )
    if before == "tool":
        return f"an assistant message comes after a tool's; found {role}: write what the assistant answered"
    if role == "tool":
        after = "it comes after an assistant's with tool_calls, in sharegpt a function_call"
        return f"a tool message stands where no tool was called: {after}"
    return f"user and assistant must take turns, user first, assistant last; found {', '.join(turns) or 'none'}"


def _refuse_surrogates(text: str, field: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise BadRow(f"{field} holds half of a surrogate pair: write the whole character") from None


def texts_in(value: object, keys: bool = False) -> Iterator[str]:
    """The texts of a JSON value at any depth, in their order; keys only if wanted."""
    left = [value]
    while left:
        value = left.pop()
        if isinstance(value, str):
            yield value
        elif isinstance(value, dict):
            left += reversed(value.values())
            yield from value if keys else ()
        elif isinstance(value, list):
            left += reversed(value)
