"""Reads the text of a recipe: flat YAML, each value as it is written, with its line.

What people write for YAML and is none is told by what it is: a full-width colon, a colon with no space behind it. Knows
nothing about which keys there are.
"""

import re
from pathlib import Path

import yaml

from sft.core.errors import UserError
from sft.core.yaml_file import PlainLoader


def read_recipe_text(path: Path) -> list[tuple[str, object, int]]:
    """The (key, value, line number) of each entry of a flat YAML mapping, in order.

    Raises:
        UserError: not UTF-8, not YAML, no mapping, or a value that YAML takes for something else than it was written
            for; names the line.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise UserError(f"{path}: not UTF-8: save the recipe as UTF-8") from None
    try:
        loader = PlainLoader(text)
        root = loader.get_single_node()
    except yaml.YAMLError as problem:
        mark = getattr(problem, "problem_mark", None)
        line = mark.line + 1 if mark else None
        if slip := _slip(text, line):
            raise UserError(f"{path}:{slip}") from None
        line, advice = _advice(text, problem, line)
        raise UserError(f"{path}{f':{line}' if line else ''}: not YAML: {advice}") from None
    if not isinstance(root, yaml.MappingNode):
        if slip := _slip(text, None):
            raise UserError(f"{path}:{slip}")
        raise UserError(f"{path}: a recipe is a list of `key: value` lines; this holds none")
    for key, value in root.value:
        if misread := _misread(key, value):
            raise UserError(f"{path}:{misread}")
    return [(key.value.strip(), _value(loader, value), key.start_mark.line + 1) for key, value in root.value]


# By the words of PyYAML, what to do about it; of those marked, at the line where it began to read what it cannot end.
ADVICE = (
    (
        "mapping values are not allowed here",
        False,
        "a colon and a space in a text make it a mapping: put the text in quotes",
    ),
    ("found unknown escape", False, "in double quotes a backslash begins an escape: put the path in single quotes"),
    ("found unexpected end of stream", True, "a quote is opened and never closed"),
    ("found unexpected document separator", True, "a quote is opened and never closed"),
    ("could not find expected ':'", True, "no `key: value`"),
    ("expected ',' or ']', but got '?'", False, "a ? inside [ ] ends nothing: put the text in quotes"),
    ("expected ',' or ']'", True, "a [ is opened and never closed, or a text in it needs quotes"),
    ("expected ',' or '}'", True, "a { is opened and never closed, or a text in it needs quotes"),
    ("found character '\\t'", False, "a tab before a key or a value: write a space"),
    ("found character '", False, "a text that begins with one of @ ` % needs quotes"),
    (
        "expected <block end>, but found '<scalar>'",
        False,
        "a text goes on behind its closing quote or ]: use other quotes",
    ),
    ("but found another document", False, "a recipe is one document: take out the second ---"),
)
INDENTED = "is indented; begin every key at the left edge"
# A line at the left edge that looks like a key and its value, and what is wrong with it.
SLIPS = (
    (re.compile(r"([\w-]+)\s*：\s*(.*)"), "a full-width colon"),
    (re.compile(r"([\w-]+)\s*:[\u3000\u00a0]\s*(.*)"), "a full-width or no-break space after the colon"),
    (re.compile(r"([\w-]+):(?!//)([^\s:].*)"), "no space after the colon"),
    (re.compile(r"([\w-]+)\s*=\s*(.*)"), "an equals sign"),
    (re.compile(r"\t+([\w-]+)\s*:\s*(.*)"), "a tab at the start"),
)


def _slip(text: str, last: int | None) -> str | None:
    """The first line, up to `last`, that is no `key: value` for a reason that people know, as `LINE: what, and how`."""
    for number, line in enumerate(text.splitlines()[:last], start=1):
        for pattern, what in SLIPS:
            if found := pattern.fullmatch(line.rstrip()):
                key, value = (part.strip() for part in found.groups())
                return f"{number}: {key}: {what}; write it as `{key}: {value}`"
    return None


def _advice(text: str, problem: yaml.YAMLError, line: int | None) -> tuple[int | None, str]:
    """The line of what is no YAML, at or before the one that reading stopped at, and what to do about it."""
    said, begun = getattr(problem, "problem", None) or str(problem), getattr(problem, "context_mark", None)
    lines = ["", *text.splitlines(), ""]
    above, here = lines[min(line or 1, len(lines) - 1) - 1 :][:2]
    if "mapping values" in said and re.match(r"\s+[\w-]+:(\s|$)", here) and not above.rstrip().endswith(":"):
        return line, INDENTED
    for words, is_from_its_beginning, advice in ADVICE:
        if words in said:
            return (begun.line + 1 if begun and is_from_its_beginning else line), advice
    return line, said


def _misread(key: yaml.Node, value: yaml.Node) -> str | None:
    """`LINE: key: what` where YAML reads something else than was meant."""
    name = key.value.strip() if isinstance(key, yaml.ScalarNode) else "?"
    items = value.value if isinstance(value, yaml.SequenceNode) else []
    for node in (value, *items):
        if what := _misread_text(node):
            return f"{node.start_mark.line + 1}: {name}: {what}"
    is_below = value.start_mark.line > key.start_mark.line
    if is_below and _is_plain(value) and re.match(r"-[^\s\d.]", value.value):
        line = value.start_mark.line + 1
        return f"{line}: {name}: no space after the -; write it as `- {value.value[1:]}`"
    is_flow = isinstance(value, yaml.SequenceNode) and value.flow_style
    for item in items:
        line = item.start_mark.line + 1
        if isinstance(item, yaml.MappingNode) and (whole := _sentence(item)):
            return f"{line}: {name}: a colon and a space make `{whole}` a mapping; put the text in quotes"
        if _is_plain(item) and is_flow and (comma := re.search("[，、]", item.value)):
            return (
                f"{line}: {name}: {comma[0]} does not part the items of a list, so `{item.value}` is one; write an "
                "ordinary comma and a space, or quotes around what is one text"
            )
        if _is_plain(item) and (below := _deeper_item(item)):
            return f"{below}: {name}: is indented further than the item above, and so one text with it"
    return None


def _misread_text(node: yaml.Node) -> str | None:
    if not re.fullmatch(r"tag:yaml\.org,2002:\w+", node.tag):
        return "a ! at the start is no text to YAML: put the text in quotes"
    if _is_plain(node) and node.value == "None":
        return "None is a word to YAML; leave the line out, or write null"
    return None


def _is_plain(node: yaml.Node) -> bool:
    """Whether it is a text without quotes."""
    return isinstance(node, yaml.ScalarNode) and node.style is None


def _deeper_item(item: yaml.ScalarNode) -> int | None:
    """The line below a text without quotes that was to be an item of its own and goes on with that text."""
    lines = (item.start_mark.buffer or "").split("\n")
    below = range(item.start_mark.line + 1, item.end_mark.line + 1)
    return next((number + 1 for number in below if lines[number].lstrip().startswith("- ")), None)


def _sentence(mapping: yaml.MappingNode) -> str | None:
    """The text that was taken for a mapping, by a key that holds a space, as no key does."""
    key = mapping.value[0][0] if mapping.value else None
    return key.value if isinstance(key, yaml.ScalarNode) and " " in key.value.strip() else None


def _value(loader: yaml.SafeLoader, node: yaml.Node) -> object:
    """A scalar as it was written, for the parser to convert: YAML itself would turn `no` into false, 2e-4 into text."""
    if isinstance(node, yaml.ScalarNode):
        return None if node.tag == "tag:yaml.org,2002:null" else node.value
    if isinstance(node, yaml.SequenceNode):
        return [_value(loader, item) for item in node.value]
    return loader.construct_object(node, deep=True)
