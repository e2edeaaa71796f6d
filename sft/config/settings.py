"""Reads what a person asks of a run, a recipe and a command line, before anything heavy is imported.

In: the script's arguments. Out: `Settings`; a mistake that keys and values show by themselves is a `UserError` before
that. The stack's fields are read from its source, so what only the stack can decide is left to
`sft.config.recipe`, which asks the same parser again, then with the real dataclasses.
"""

import argparse
from collections import defaultdict
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sft.config.aliases import renamed
from sft.config.inert_keys import refuse_inert_keys
from sft.config.recipe_text import read_recipe_text
from sft.config.settings_check import Refusal, refuse_what_cannot_work
from sft.config.settings_parser import SettingsParser, declared_groups
from sft.core.console import say
from sft.core.errors import UserError
from sft.core.paths import REPOSITORY, resolve_paths

HARDWARE_KEYS = {"fp16", "bf16", "tf32", "deepspeed", "fsdp", "fsdp_config", "parallelism_config"}


@dataclass
class Settings:
    """What a person asked for, as it was written: the (key, value, line) of a recipe, and the command line.

    Where nothing will be trained, what only matters to the hardware (precision, DeepSpeed) is left aside, so that a
    recipe for a GPU can be looked at on any machine. `dry_run` is the key of this name.
    """

    path: Path
    lines: list[tuple[str, object, int]]
    arguments: list[str]
    for_training: bool
    dry_run: bool = False

    def chosen(self, parser: SettingsParser) -> tuple[dict[str, Any], dict[str, str]]:
        """The keys that are set: their values, checked and converted by the parser, and the places they were set at.

        Raises:
            UserError: an unknown or repeated key, or a bad value; names the file, line and key.
        """
        chosen, places = {}, defaultdict(lambda: str(self.path))
        for key, value, line in self.lines:
            place = f"{self.path}:{line}"
            if key not in parser.settings():
                flat = "; a recipe is flat: write the keys below it at the left edge" if isinstance(value, dict) else ""
                raise UserError(f"{place}: {parser.unknown(key)}{flat}")
            try:
                value = parser.value_of(key, value)
            except ValueError as problem:
                raise UserError(f"{place}: {key}: {problem}") from None
            if key in chosen:
                raise UserError(f"{place}: {key}: set twice: keep one line")
            chosen[key], places[key] = value, place
        for key, value in _overrides(parser, self.arguments).items():
            chosen[key], places[key] = value, "command line"
        for key, value in chosen.items():
            try:
                chosen[key] = parser.mapping_of(key, value)
            except ValueError as problem:
                raise UserError(f"{places[key]}: {key}: {problem}") from None
        if not self.for_training:
            chosen = {key: value for key, value in chosen.items() if key not in HARDWARE_KEYS} | {"bf16": False}
        chosen["output_dir"] = chosen.get("output_dir") or f"work_dirs/{self.path.stem}"
        resolve_paths(chosen)
        return chosen, places


def read_settings(arguments: list[str], *, for_training: bool = True) -> Settings:
    """Read `RECIPE [--key value ...]`.

    Raises:
        UserError: no recipe, an unknown, repeated or missing key, a bad value, a file that is not there, or settings
            that contradict each other; names the file, line and key.
    """
    parser = SettingsParser(declared_groups())
    arguments = [_modern_flag(argument) for argument in arguments]
    path = _recipe_path(parser, arguments)
    settings = Settings(path, _modern_lines(path), arguments, for_training)
    chosen, places = settings.chosen(parser)
    refuse_what_cannot_work(chosen, refusal(places))
    refuse_inert_keys(chosen, refusal(places))
    return replace(settings, dry_run=chosen.get("dry_run", False))


def refusal(places: dict[str, str]) -> Refusal:
    """What raises the `UserError` that a key is wrong, with the place where it was set."""

    def refuse(key: str, problem: str):
        raise UserError(f"{places[key]}: {key}: {problem}")

    return refuse


def _modern_flag(argument: str) -> str:
    """Spell a flag as Transformers 5 does; values and current names pass unchanged."""
    if not argument.startswith("--"):
        return argument
    flag, equals, value = argument[2:].partition("=")
    key, note = renamed(flag.replace("-", "_"))
    if note:
        say(f"command line: --{flag}: {note}")
    return f"--{key if note else flag}{equals}{value}"


def _modern_lines(path: Path) -> list[tuple[str, object, int]]:
    """The lines of a recipe, each key in today's spelling."""
    lines = []
    for key, value, line in read_recipe_text(path):
        key, note = renamed(key)
        if note:
            say(f"{path}:{line}: {note}")
        lines.append((key, value, line))
    return lines


def _recipe_path(parser: SettingsParser, arguments: list[str]) -> Path:
    known, unknown = parser.parse_known_args(arguments)
    for argument in unknown:
        if argument.startswith("--"):
            raise UserError(f"command line: {parser.unknown(argument[2:].partition('=')[0])}")
    if unknown:
        raise UserError(f"command line: {unknown[0]}: one recipe at a time, then --key value pairs")
    for candidate in (Path(known.recipe), REPOSITORY / known.recipe):
        if candidate.is_file():
            return candidate
    have = ", ".join(sorted(f"recipes/{recipe.name}" for recipe in (REPOSITORY / "recipes").glob("*.yaml")))
    raise UserError(f"{known.recipe}: no such recipe; there are {have}")


def _overrides(parser: SettingsParser, arguments: list[str]) -> dict[str, Any]:
    """The keys that were given on the command line, with their values."""
    silent = SettingsParser(parser.dataclass_types)
    for action in silent._actions:
        action.default = argparse.SUPPRESS
    given = vars(silent.parse_args(arguments))
    return {key: value for key, value in given.items() if key in parser.settings()}
