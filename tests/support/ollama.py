"""What Ollama does with a Modelfile: reads it, and renders a conversation with its template.

Written after `parser/parser.go` and `template/template.go` of Ollama; of Go's templates, what such a template needs.
"""

import json
import re

ACTION = re.compile(r"\{\{ (.*?) \}\}", re.DOTALL)
WORD = re.compile(r'\(|\)|"(?:\\.|[^"\\])*"|[^\s()]+')


def read_modelfile(text: str) -> list[tuple[str, str]]:
    """Each instruction with its value, by the parser's states; a parameter's name is the instruction."""
    commands, position = [], 0
    while position < len(text):
        if text[position] in " \t\r\n":
            position += 1
        elif text[position] == "#":
            position = (text + "\n").index("\n", position)
        else:
            name, position = _word(text, position)
            if name == "PARAMETER":
                name, position = _word(text, position)
            value, position = _value(text, position)
            commands.append((name, value))
    return commands


def _word(text: str, position: int) -> tuple[str, int]:
    end = text.index(" ", position)
    return text[position:end], end + 1


def _value(text: str, position: int) -> tuple[str, int]:
    """Letter by letter up to the end of a line where no quotes are open; what cannot be printed is left out."""
    held = ""
    for place in range(position, len(text)):
        letter = text[place]
        if letter in " \t\r\n":
            unquoted = _unquoted(held.strip())
            if unquoted is not None and letter in "\r\n":
                return unquoted, place
            held += letter
        elif letter.isprintable():
            held += letter
    unquoted = _unquoted(held.strip())
    assert unquoted is not None, "unexpected end of file"
    return unquoted, len(text)


def _unquoted(text: str) -> str | None:
    for quotes in ('"""', '"'):
        if text.startswith(quotes):
            is_closed = len(text) >= 2 * len(quotes) and text.endswith(quotes)
            return text[len(quotes) : -len(quotes)] if is_closed else None
    return text


def render(template: str, messages: list[dict[str, str]]) -> str:
    """The prompt that Ollama makes of messages."""
    system = "\n\n".join(message["content"] for message in messages if message["role"] == "system")
    scope = {"$": {"Messages": messages, "System": system}, ".": {"Messages": messages, "System": system}}
    nodes, rest = _parse(ACTION.split(template), 0)
    assert rest == len(ACTION.split(template)), "an end without its beginning"
    return _run(nodes, scope)


def _parse(pieces: list[str], place: int) -> tuple[list, int]:
    """Nodes up to the action that ends them: texts, outputs, branches and ranges."""
    nodes: list = []
    while place < len(pieces):
        if place % 2 == 0:
            nodes.append(("text", pieces[place]))
            place += 1
            continue
        action = pieces[place]
        if action == "end" or action.startswith("else"):
            return nodes, place
        if action.startswith("if "):
            node, place = _branch(pieces, place, action[3:])
            nodes.append(node)
        elif action == "range $i, $_ := .Messages":
            body, place = _parse(pieces, place + 1)
            assert pieces[place] == "end"
            nodes.append(("range", body))
        else:
            nodes.append(("output", action))
        place += 1
    return nodes, place


def _branch(pieces: list[str], place: int, condition: str) -> tuple[tuple, int]:
    then, place = _parse(pieces, place + 1)
    otherwise: list = []
    if pieces[place].startswith("else if "):
        node, place = _branch(pieces, place, pieces[place][len("else if ") :])
        otherwise = [node]
    elif pieces[place] == "else":
        otherwise, place = _parse(pieces, place + 1)
    assert pieces[place] == "end"
    return ("if", condition, then, otherwise), place


def _run(nodes: list, scope: dict) -> str:
    written = ""
    for kind, *parts in nodes:
        if kind == "text":
            written += parts[0]
        elif kind == "output":
            written += str(_value_of(parts[0], scope))
        elif kind == "if":
            written += _run(parts[1] if _value_of(parts[0], scope) else parts[2], scope)
        else:
            for index, message in enumerate(scope["$"]["Messages"]):
                fields = {"Role": message["role"], "Content": message["content"]}
                written += _run(parts[0], scope | {"$i": index, ".": fields})
    return written


def _value_of(expression: str, scope: dict):
    value, rest = _call(WORD.findall(expression), scope)
    assert not rest, expression
    return value


def _call(words: list[str], scope: dict):
    values = []
    while words and words[0] != ")":
        word, *words = words
        if word == "(":
            value, words = _call(words, scope)
            words = words[1:]
            values.append(value)
        else:
            values.append(_operand(word, scope))
    return (values[0](*values[1:]) if callable(values[0]) else values[0]), words


def _operand(word: str, scope: dict):
    functions = {"eq": lambda one, other: one == other, "not": lambda one: not one, "len": len, "slice": _slice}
    if word in functions:
        return functions[word]
    if word[0] == '"':
        return json.loads(re.sub(r"\\U([0-9a-f]{8})", lambda found: json.dumps(chr(int(found[1], 16)))[1:-1], word))
    if word.isdecimal():
        return int(word)
    if word.startswith(("$.", ".")):
        return scope["$" if word[0] == "$" else "."][word.removeprefix("$")[1:]]
    return scope[word]


def _slice(items: list, start: int) -> list:
    return items[start:]
