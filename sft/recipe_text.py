"""Reads the text of a recipe: flat YAML, each value as it is written, with its line.

What people write for YAML and is none is told by what it is: a full-width colon, a colon with no space behind it. Knows
nothing about which keys there are.
"""

import re
from pathlib import Path

import yaml

from data_tools.errors import UserError
from data_tools.yaml_file import PlainLoader


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
        if slip := _slip(text, mark.line + 1 if mark else None):
            raise UserError(f"{path}:{slip}") from None
        place = f"{path}:{mark.line + 1}" if mark else str(path)
        said = getattr(problem, "problem", None) or str(problem)
        raise UserError(f"{place}: not YAML: {ADVICE.get(said.partition(' character')[0], said)}") from None
    if not isinstance(root, yaml.MappingNode):
        if slip := _slip(text, None):
            raise UserError(f"{path}:{slip}")
        raise UserError(f"{path}: a recipe is a list of `key: value` lines; this holds none")
    for key, value in root.value:
        if misread := _misread(key, value):
            raise UserError(f"{path}:{misread}")
    return [(key.value.strip(), _value(loader, value), key.start_mark.line + 1) for key, value in root.value]


# By the words of PyYAML, what to do about it.
ADVICE = {
    "mapping values are not allowed here": "a colon and a space in a text make it a mapping: put the text in quotes",
    "found unknown escape": "in double quotes a backslash begins an escape: put the path in single quotes",
}
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


def _misread(key: yaml.Node, value: yaml.Node) -> str | None:
    """`LINE: key: what` where YAML reads something else than was meant."""
    name = key.value.strip() if isinstance(key, yaml.ScalarNode) else "?"
    if isinstance(value, yaml.ScalarNode) and value.style is None and value.value == "None":
        return f"{value.start_mark.line + 1}: {name}: None is a word to YAML; leave the line out, or write null"
    if not isinstance(value, yaml.SequenceNode):
        return None
    for item in value.value:
        line = item.start_mark.line + 1
        if isinstance(item, yaml.MappingNode) and (whole := _sentence(item)):
            return f"{line}: {name}: a colon and a space make `{whole}` a mapping; put the text in quotes"
        is_plain = isinstance(item, yaml.ScalarNode) and item.style is None
        if value.flow_style and is_plain and (comma := re.search("[，、]", item.value)):
            return (
                f"{line}: {name}: {comma[0]} does not part the items of a list, so `{item.value}` is one; write an "
                "ordinary comma and a space, or quotes around what is one text"
            )
    return None


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
