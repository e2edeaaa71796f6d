"""The text of `train_sft.py --help`: how it is called, what a recipe is, and every key that may stand in one.

In: the parser of the keys. Knows nothing about what they do beyond the help that comes with them.
"""

import dataclasses
import re
import shutil
import textwrap
from argparse import Action
from inspect import cleandoc, formatannotation
from typing import TYPE_CHECKING, Any, get_type_hints

from sft.config.aliases import RENAMED

if TYPE_CHECKING:
    from sft.config.settings_parser import SettingsParser

USAGE = "usage: train_sft.py RECIPE [--key value ...]"
RECIPE = """\
A recipe is one training run: a YAML file with a line `key: value` for each setting, such as recipes/demo.yaml. Any key
may follow on the command line and then counts instead: --lora_r 32. `--dry_run true` checks everything, prints the plan
and ends. DeepSpeed, torchrun and accelerate start it as well: deepspeed train_sft.py RECIPE."""
INDENT = "    "


def usage(parser: "SettingsParser") -> str:
    width = min(shutil.get_terminal_size().columns, 120)
    known = set(parser.settings()) - RENAMED.keys()
    paragraphs = [USAGE, textwrap.fill(RECIPE, width)]
    for group in parser.dataclass_types:
        kinds = get_type_hints(group)
        package = group.__module__.partition(".")[0]
        lines = [f"{package}.{group.__name__}: {cleandoc(group.__doc__).splitlines()[0]}"]
        for field in dataclasses.fields(group):
            if field.name in known:
                lines.append(_declaration(field, kinds[field.name]))
                lines.append(_explanation(parser.action_of(field.name), width))
        paragraphs.append("\n".join(lines))
    return "\n\n".join(paragraphs)


def _declaration(field: dataclasses.Field, kind: Any) -> str:
    """A key as a dataclass declares it, such as `lora_r: int = 16`."""
    without_modules = re.sub(r"[\w.]+\.", "", formatannotation(kind))
    default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
    return f"{field.name}: {without_modules} = {default!r}"


def _explanation(action: Action, width: int) -> str:
    """What a key is for, and the values that it takes where there are but some."""
    # For argparse, a % begins the name of one of its own values.
    text = (action.help or "").replace("%%", "%")
    if action.choices:
        text += f" One of: {', '.join(map(str, action.choices))}."
    return textwrap.fill(text, width, initial_indent=INDENT, subsequent_indent=INDENT)
