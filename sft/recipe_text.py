"""Reads the text of a recipe: flat YAML, each value as it is written, with its line.

Knows nothing about which keys there are.
"""

from pathlib import Path

import yaml

from data_tools.errors import UserError
from data_tools.yaml_file import PlainLoader


def read_recipe_text(path: Path) -> list[tuple[str, object, int]]:
    """The (key, value, line number) of each entry of a flat YAML mapping, in order.

    Raises:
        UserError: not UTF-8, not YAML, or no mapping; names the line.
    """
    try:
        loader = PlainLoader(path.read_text(encoding="utf-8-sig"))
        root = loader.get_single_node()
        if not isinstance(root, yaml.MappingNode):
            raise UserError(f"{path}: a recipe is a list of `key: value` lines; this holds none")
        return [(key.value, _value(loader, value), key.start_mark.line + 1) for key, value in root.value]
    except UnicodeDecodeError:
        raise UserError(f"{path}: not UTF-8: save the recipe as UTF-8") from None
    except yaml.YAMLError as problem:
        mark = getattr(problem, "problem_mark", None)
        place = f"{path}:{mark.line + 1}" if mark else str(path)
        raise UserError(f"{place}: not YAML: {getattr(problem, 'problem', None) or problem}") from None


def _value(loader: yaml.SafeLoader, node: yaml.Node) -> object:
    """A scalar as it was written, for the parser to convert: YAML itself would turn `no` into false, 2e-4 into text."""
    if isinstance(node, yaml.ScalarNode):
        return None if node.tag == "tag:yaml.org,2002:null" else node.value
    if isinstance(node, yaml.SequenceNode):
        return [_value(loader, item) for item in node.value]
    return loader.construct_object(node, deep=True)
