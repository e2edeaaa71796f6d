"""Reads YAML that people write, with the line of every part.

In: a file. Out: its value, and the nodes that know their lines. Knows nothing about what the file should hold.
"""

from pathlib import Path

import yaml

from sft.core.errors import UserError


class PlainLoader(yaml.SafeLoader):
    """Safe YAML without aliases, so that no file of a few lines can grow into gigabytes."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        """The next node.

        Raises:
            yaml.constructor.ConstructorError: it is an alias, or nested deeper than Python can descend.
        """
        if self.check_event(yaml.AliasEvent):
            mark = self.peek_event().start_mark
            raise yaml.constructor.ConstructorError(None, None, "aliases (*name) are not taken: write it out", mark)
        try:
            return super().compose_node(parent, index)
        except RecursionError:
            raise yaml.constructor.ConstructorError(None, None, "nested too deeply") from None


def read_yaml(path: Path) -> tuple[yaml.Node | None, object]:
    """The root node, which knows its lines, and the value it stands for; (None, None) for an empty file.

    Raises:
        UserError: the file cannot be read or is not YAML; names the line.
    """
    try:
        root = yaml.compose(path.read_text(encoding="utf-8-sig"), Loader=PlainLoader)
        return root, PlainLoader("").construct_object(root, deep=True) if root else None
    except (OSError, UnicodeDecodeError) as problem:
        raise UserError(f"{path}: cannot be read: {getattr(problem, 'strerror', 'not UTF-8')}: check it") from None
    except yaml.YAMLError as problem:
        mark = getattr(problem, "problem_mark", None)
        place = f"{path}:{mark.line + 1}" if mark else str(path)
        raise UserError(f"{place}: not YAML: {getattr(problem, 'problem', None) or problem}") from None
