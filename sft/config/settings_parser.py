"""Parses the keys of a recipe, from its lines and from the command line, by the fields of dataclasses.

Takes the real dataclasses, or those that `declared_groups` reads from the stack's source: these need no import of
torch, and leave open what only the stack can decide.
"""

import argparse
import json
import re
from dataclasses import fields
from functools import partial
from typing import get_args, get_origin, get_type_hints

from trl import TrlParser

from sft.config.aliases import did_you_mean, elsewhere, refuse_unknown_fields
from sft.config.own_keys import OwnKeys
from sft.config.stack_keys import Computed, declared
from sft.config.usage import usage
from sft.core.console import is_main_process
from sft.core.errors import UserError

# Of a value's choices, as many are shown; what people write for short.
SHOWN_CHOICES = 8
SHORT = {
    "bf16": "bfloat16",
    "fp16": "float16",
    "half": "float16",
    "fp32": "float32",
    "adam": "adamw_torch",
    "adamw": "adamw_torch",
}
# Keys whose mapping may be in a file; the text of any other is JSON.
IN_A_FILE = {"deepspeed", "fsdp_config", "accelerator_config"}
# Keys whose value is a dataclass of the stack: in a recipe a mapping of its fields, on the command line JSON.
NESTED = {"parallelism_config": ("accelerate", "ParallelismConfig")}


def declared_groups() -> tuple[type, ...]:
    """The dataclasses whose fields are the keys of a recipe, the stack's as its source declares them."""
    return OwnKeys, declared("trl", "ModelConfig"), declared("trl", "SFTConfig")


class SettingsParser(TrlParser):
    """TRL's parser, with errors raised as `UserError` instead of a page of usage."""

    def __init__(self, groups: tuple[type, ...]):
        super().__init__(groups, prog="train_sft.py", allow_abbrev=False)
        self.add_argument("recipe", help="path of the recipe, such as recipes/demo.yaml")
        # Every kind of value a key may have; argparse itself knows of one a key.
        self.kinds = {
            key: {get_origin(kind) or kind for kind in (hint, *get_args(hint))}
            for group in self.dataclass_types
            for key, hint in get_type_hints(group).items()
        }
        for action in self._actions:
            if action.dest in NESTED:
                action.type = partial(_read_fields, action.dest)
            elif action.const is True and action.type is str:
                action.type = _switch_or_text
            elif self._takes_mapping(action.dest):
                action.type = str  # the text of one, see `mapping_of`

    def error(self, message: str):
        message = re.sub(r"argument --([^/:]+)[^:]*", r"\1", message)
        if choice := re.fullmatch(r"(\w+): invalid choice: '(.*)' \(choose from .*\)", message):
            key, value = choice.groups()
            message = f"{key}: {_no_choice(value, [str(choice) for choice in self.action_of(key).choices])}"
        raise UserError(f"command line: {message}")

    def print_help(self, file=None):
        if is_main_process():
            super().print_help(file)

    def format_help(self) -> str:
        return f"{usage(self)}\n"

    def action_of(self, key: str) -> argparse.Action | None:
        action = self._option_string_actions.get(f"--{key}")
        return action if action is not None and action.dest == key and key != "help" else None

    def settings(self) -> list[str]:
        return sorted({action.dest for action in self._actions} - {"help", "recipe", "local_rank"})

    def unknown(self, key: str) -> str:
        """What to say of a key that is no setting."""
        key = key.replace("-", "_")
        if advice := elsewhere(key):
            return f"{key}: {advice}"
        return f"{key}: no such setting{did_you_mean(key, self.settings())}"

    def value_of(self, key: str, value: object) -> object:
        """Check and convert one YAML value as the command line would.

        Raises:
            ValueError: the value does not fit the key; says what would.
        """
        action = self.action_of(key)
        if value is None and type(None) not in self.kinds[key] and not isinstance(action.default, Computed):
            raise ValueError(f"no value; leave the line out for the default, {action.default}")
        if action.nargs == "+" and value is not None:
            items = value if isinstance(value, list) else [value]
            if any(item in (None, "") for item in items):
                raise ValueError("an item is empty; leave it out")
            return [self._scalar(action, item) for item in items]
        if key in NESTED and value is not None:
            return _fields_of(key, value)
        if value is None or (isinstance(value, (list, dict)) and type(value) in self.kinds[key]):
            return value
        return self._scalar(action, value)

    def mapping_of(self, key: str, value: object) -> object:
        """The mapping that a text stands for where the key takes one, as on the command line; else the value.

        Raises:
            ValueError: the text is no JSON object, and the key takes no other text.
        """
        if not isinstance(value, str) or not self._takes_mapping(key):
            return value
        if key in IN_A_FILE and not value.lstrip().startswith(("{", "[")):
            return value
        try:
            read = json.loads(value)
        except ValueError as problem:
            raise ValueError(f"{value}: not JSON ({problem}); write a mapping, {{name: value}}") from None
        if not isinstance(read, dict):
            raise ValueError(f"{value}: JSON, but no object; write a mapping, {{name: value}}")
        return read

    def _takes_mapping(self, key: str) -> bool:
        kinds = self.kinds.get(key, set())
        return dict in kinds and list not in kinds

    def _scalar(self, action: argparse.Action, value: object) -> object:
        if isinstance(value, (list, dict)):
            raise ValueError(f"a {'list' if isinstance(value, list) else 'mapping'} does not fit here")
        if action.choices and str(value) not in map(str, action.choices):
            raise ValueError(_no_choice(str(value), [str(choice) for choice in action.choices]))
        try:
            converted = self._get_value(action, str(value))
            self._check_value(action, converted)
        except (argparse.ArgumentError, argparse.ArgumentTypeError) as problem:
            raise ValueError(str(problem).partition(": ")[2] or str(problem)) from None
        return converted


def _no_choice(value: str, choices: list[str]) -> str:
    """What to say of a value that is none of the choices."""
    near = SHORT.get(value.lower())
    advice = f"; did you mean {near}?" if near in choices else did_you_mean(value, choices)
    many = f"one of {', '.join(choices[:SHOWN_CHOICES])}{', ...' if len(choices) > SHOWN_CHOICES else ''}"
    return f"{value!r} is not {many}{advice}"


def _switch_or_text(text: str) -> bool | str | None:
    """The value of a key such as `fsdp`, which is turned on by `true` and takes older words besides."""
    return {"true": True, "false": None}.get(text.lower(), text)


def _read_fields(key: str, text: str) -> dict:
    """As `_fields_of`, of a value on the command line."""
    try:
        return _fields_of(key, json.loads(text))
    except json.JSONDecodeError as problem:
        raise argparse.ArgumentTypeError(f"not JSON ({problem})") from None
    except ValueError as problem:
        raise argparse.ArgumentTypeError(str(problem)) from None


def _fields_of(key: str, value: object) -> dict:
    """The value of a key that is a dataclass, as a mapping of its fields.

    Raises:
        ValueError: it is no mapping, or names what is no field.
    """
    known = [field.name for field in fields(declared(*NESTED[key]))]
    if not isinstance(value, dict):
        raise ValueError(f"a mapping of {', '.join(known)}, such as {{{known[0]}: 2}}")
    refuse_unknown_fields(value, known)
    return value
