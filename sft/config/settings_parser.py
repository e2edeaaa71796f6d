"""Parses the keys of a recipe, from its lines and from the command line, by the fields of dataclasses.

In: one key with its value, or the script's arguments. Out: converted values. Also the texts of `train_sft.py --help`.
Imports nothing heavy: the stack's fields are those of `stack_keys`, so what only the stack can decide stays open.
"""

import argparse
import dataclasses
import json
import re
import shutil
import textwrap
from enum import Enum
from inspect import cleandoc, formatannotation
from typing import Any, NoReturn, get_args, get_origin, get_type_hints

from trl import TrlParser

from sft.config.aliases import RENAMED, did_you_mean, refuse_unknown_fields, replacement_advice
from sft.config.own_keys import OwnKeys
from sft.config.stack_keys import ModelConfig, ParallelismConfig, SFTConfig
from sft.core.console import is_main_process
from sft.core.errors import UserError

# The dataclasses whose fields are the keys of a recipe, with the package of each.
GROUPS: dict[Any, str] = {OwnKeys: "sft", ModelConfig: "trl", SFTConfig: "trl"}
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
# Keys whose mapping holds the fields of a dataclass.
FIELDS = {"parallelism_config": [field.name for field in dataclasses.fields(ParallelismConfig)]}

USAGE = "usage: train_sft.py RECIPE [--key value ...]"
RECIPE = """\
A recipe is one training run: a YAML file with a line `key: value` for each setting, such as recipes/demo.yaml. Any key
may follow on the command line and then counts instead: --lora_r 32. `--dry_run true` checks everything, prints the plan
and ends. DeepSpeed, torchrun and accelerate start it as well: deepspeed --quiet train_sft.py RECIPE."""
OWN_KEYS = "This repository's own keys:"
# On one line of 80 columns with its key; the whole help of each stands beside the key itself.
OWN_KEYS_IN_SHORT = {
    "train_file": "training file, or several with weights",
    "eval_file": "held-out file, for the loss eval_loss",
    "columns": "what columns of other names hold",
    "chat_template_kwargs": "arguments of the chat template",
    "loss_on": "answers, last_answer or everything",
    "split_turns": "train each answer of a row as it is asked for",
    "truncation": "of too long samples: error, drop or keep_start",
    "control_tokens": "in a row's text: warn or refuse",
    "eval_prompts": "questions asked before, during, after training",
    "eval_prompts_steps": "ask them every so many steps",
    "eval_prompts_system": "system message before each of them",
    "eval_prompts_generation": "how answers are generated: {max_new_tokens: 100}",
    "identity_name": "the name to learn; evaluations are scored by it",
    "identity_old_names": "other names that it may still give itself",
    "score_file": "questions to score with, as a YAML file",
    "score_seconds": "time limit of one scoring",
    "stop_when_identity": "end at this share of right answers, such as 0.95",
    "stop_patience": "at how many evaluations in a row",
    "early_stopping_patience": "end when eval_loss has not improved so often",
    "keep_best": "end with the best: by identity or balance",
    "resume": "an unfinished run: auto, never or a checkpoint",
    "resume_anyway": "even if settings or data have changed",
    "dry_run": "check everything, print the plan and end",
    "card": "with dry_run: plan for a GPU of so many GB",
    "save_every_minutes": "save a checkpoint after so many minutes, too",
    "on_bad_step": "such as a NaN loss: stop or warn",
    "language": "zh or en; by default that of the locale",
}
OTHER_KEYS = """\
All other keys are fields of TRL's ModelConfig and SFTConfig under their own names, such as model_name_or_path,
max_length, packing, num_train_epochs, learning_rate, per_device_train_batch_size, lora_r, load_in_4bit, output_dir.
python train_sft.py --help all shows every key with its kind, default and help. recipes/ holds recipes to copy."""
INDENT = "    "


class SettingsParser(TrlParser):
    """TRL's parser of all keys; errors are raised as `UserError` instead of a page of usage.

    Of the command line it gives only what was given there, no defaults.
    """

    def __init__(self) -> None:
        super().__init__(list(GROUPS), prog="train_sft.py", allow_abbrev=False, add_help=False)
        self.add_argument("-h", "--help", action=_Help, nargs="?", const="own")
        self.add_argument("recipe", help="path of the recipe, such as recipes/demo.yaml")
        # Every kind of value a key may have; argparse itself knows of one a key.
        self.kinds = {
            key: {get_origin(kind) or kind for kind in (hint, *get_args(hint))}
            for group in GROUPS
            for key, hint in get_type_hints(group).items()
        }
        self.defaults: dict[str, object] = {}
        for action in self._actions:
            self.defaults.setdefault(action.dest, action.default)
            action.default = argparse.SUPPRESS
            if isinstance(action.type, type) and issubclass(action.type, Enum):
                action.choices, action.type = [member.value for member in action.type], str
            elif action.const is True and action.type is str:
                action.type = _switch_or_text
            elif self.takes_mapping(action.dest):
                action.type = str  # the text of one, see `mapping_of`

    def error(self, message: str) -> NoReturn:
        """Raise argparse's error as a `UserError` that names the key."""
        message = re.sub(r"argument --([^/:]+)[^:]*", r"\1", message)
        if choice := re.fullmatch(r"(\w+): invalid choice: '(.*)' \(choose from .*\)", message):
            key, value = choice.groups()
            message = f"{key}: {_no_choice(value, self.action_of(key))}"
        raise UserError(f"command line: {message}")

    def format_help(self) -> str:
        """How the script is called, what a recipe is, and the keys of our own, a line each."""
        width, column = _width(), max(map(len, OWN_KEYS_IN_SHORT)) + 2
        own = "\n".join([OWN_KEYS, *(f"{INDENT}{key:{column}}{text}" for key, text in OWN_KEYS_IN_SHORT.items())])
        return "\n\n".join([USAGE, textwrap.fill(RECIPE, width), own, textwrap.fill(OTHER_KEYS, width)]) + "\n"

    def format_all_keys(self) -> str:
        """How the script is called, what a recipe is, and every key with its kind, default and help."""
        width = _width()
        documented = set(self.key_names()) - RENAMED.keys()
        paragraphs = [USAGE, textwrap.fill(RECIPE, width)]
        for group, package in GROUPS.items():
            kinds = get_type_hints(group)
            lines = [f"{package}.{group.__name__}: {cleandoc(group.__doc__ or '').splitlines()[0]}"]
            for field in dataclasses.fields(group):
                if field.name in documented:
                    lines.append(_declaration(field, kinds[field.name]))
                    lines.append(_explanation(self.action_of(field.name), width))
            paragraphs.append("\n".join(lines))
        return "\n\n".join(paragraphs) + "\n"

    def action_of(self, key: str) -> argparse.Action:
        """The argument of a key."""
        return self._option_string_actions[f"--{key}"]

    def key_names(self) -> list[str]:
        """All keys that a recipe may set, sorted."""
        return sorted({action.dest for action in self._actions} - {"help", "recipe", "local_rank"})

    def unknown(self, key: str) -> str:
        """What to say of a key that does not exist."""
        key = key.replace("-", "_")
        if advice := replacement_advice(key) or replacement_advice(key.lower()):
            return f"{key}: {advice}"
        return f"{key}: no such setting{did_you_mean(key, self.key_names())}"

    def value_of(self, key: str, value: object) -> object:
        """Check and convert one YAML value as the command line would.

        Raises:
            ValueError: the value does not fit the key; says what would.
        """
        action = self.action_of(key)
        if value is None and type(None) not in self.kinds[key]:
            raise ValueError(f"no value; leave the line out for the default, {self.defaults[key]}")
        if action.nargs == "+" and value is not None:
            items = value if isinstance(value, list) else [value]
            if any(item in (None, "") for item in items):
                raise ValueError("an item is empty; leave it out")
            return [self._scalar(action, item) for item in items]
        if value is None or (isinstance(value, (list, dict)) and type(value) in self.kinds[key]):
            return value
        if key in FIELDS and isinstance(value, dict):
            return value
        return self._scalar(action, value)

    def mapping_of(self, key: str, value: object) -> object:
        """The mapping that a text stands for where the key takes one, as on the command line; else the value.

        Raises:
            ValueError: the text is no JSON object, and the key takes no other text; or the mapping names what is no
                field of the key.
        """
        if isinstance(value, str) and self.takes_mapping(key):
            if key in IN_A_FILE and not value.lstrip().startswith(("{", "[")):
                return value
            value = _json_object(value)
        if key in FIELDS and isinstance(value, dict):
            refuse_unknown_fields(value, FIELDS[key])
        return value

    def takes_mapping(self, key: str) -> bool:
        """Whether the value of a key is a mapping, of which a text on the command line is the JSON."""
        kinds = self.kinds.get(key, set())
        return key in FIELDS or (dict in kinds and list not in kinds)

    def _scalar(self, action: argparse.Action, value: object) -> object:
        if isinstance(value, (list, dict)):
            raise ValueError(f"a {'list' if isinstance(value, list) else 'mapping'} does not fit here")
        if action.choices and str(value) not in map(str, action.choices):
            raise ValueError(_no_choice(str(value), action))
        try:
            converted = self._get_value(action, str(value))
            self._check_value(action, converted)
        except (argparse.ArgumentError, argparse.ArgumentTypeError) as problem:
            raise ValueError(str(problem).partition(": ")[2] or str(problem)) from None
        return converted


class _Help(argparse.Action):
    """`--help` and `--help all`, printed by the main process alone."""

    def __call__(self, parser, namespace, values, option_string=None) -> None:
        """Print what was asked for, and end."""
        if is_main_process():
            print(parser.format_all_keys() if values == "all" else parser.format_help(), end="")
        parser.exit()


def _width() -> int:
    return min(shutil.get_terminal_size().columns, 120)


def _no_choice(value: str, action: argparse.Action) -> str:
    """What to say of a value that is none of the choices."""
    choices = [str(choice) for choice in action.choices or ()]
    near = SHORT.get(value.lower())
    advice = f"; did you mean {near}?" if near in choices else did_you_mean(value, choices)
    many = f"one of {', '.join(choices[:SHOWN_CHOICES])}{', ...' if len(choices) > SHOWN_CHOICES else ''}"
    return f"{value!r} is not {many}{advice}"


def _switch_or_text(text: str) -> bool | str | None:
    """The value of a key such as `fsdp`, which is turned on by `true` and takes older words besides."""
    return {"true": True, "false": None}.get(text.lower(), text)


def _json_object(text: str) -> dict[str, Any]:
    try:
        mapping = json.loads(text)
    except ValueError as problem:
        raise ValueError(f"{text}: not JSON ({problem}); write a mapping, {{name: value}}") from None
    if not isinstance(mapping, dict):
        raise ValueError(f"{text}: JSON, but no object; write a mapping, {{name: value}}")
    return mapping


def _declaration(field: dataclasses.Field, kind: Any) -> str:
    """A key as a dataclass declares it, such as `lora_r: int = 16`."""
    without_modules = re.sub(r"[\w.]+\.", "", formatannotation(kind))
    default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
    return f"{field.name}: {without_modules} = {default!r}"


def _explanation(action: argparse.Action, width: int) -> str:
    """What a key is for, and the values that it takes where they are few."""
    # For argparse, a % begins the name of one of its own values.
    text = (action.help or "").replace("%%", "%")
    if action.choices:
        text += f" One of: {', '.join(map(str, action.choices))}."
    return textwrap.fill(text, width, initial_indent=INDENT, subsequent_indent=INDENT)
