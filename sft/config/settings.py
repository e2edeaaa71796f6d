"""Reads what a person asks of a run, a recipe and a command line, before anything heavy is imported.

In: the script's arguments. Out: `Settings`, resolved once; a mistake that keys, values and the disk show by themselves
is a `UserError`. What only the stack can decide is left to `sft.config.recipe`.
"""

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from sft.config.aliases import modern_name
from sft.config.deepspeed import read_config
from sft.config.recipe_text import read_recipe_text
from sft.config.settings_check import refuse_what_cannot_work
from sft.config.settings_parser import SettingsParser
from sft.config.trackers import refuse_trackers
from sft.core.console import say
from sft.core.errors import UserError
from sft.core.paths import PATH_KEYS, REPOSITORY, resolve_paths

HARDWARE_KEYS = {"fp16", "bf16", "tf32", "deepspeed", "fsdp", "fsdp_config", "parallelism_config"}
COMMAND_LINE = "command line"


@dataclass(frozen=True)
class Settings:
    """The keys a person set: their values, checked and converted, and the place where each was set.

    `deepspeed` is the DeepSpeed configuration, which `chosen` may only name; None without one.
    """

    path: Path
    chosen: dict[str, Any]
    places: dict[str, str]
    deepspeed: dict[str, Any] | None = None

    @property
    def dry_run(self) -> bool:
        """Whether the run is only to be planned."""
        return bool(self.chosen.get("dry_run"))

    @property
    def model(self) -> str:
        """The model's folder or hub id."""
        return str(self.chosen["model_name_or_path"])

    @property
    def model_revision(self) -> str:
        """The branch, tag or commit of the hub that is meant."""
        return self.chosen.get("model_revision") or "main"

    def refuse(self, key: str, problem: str) -> NoReturn:
        """Raise the `UserError` that a key is wrong, with the place where it was set."""
        raise UserError(f"{self.places.get(key, self.path)}: {key}: {problem}")


def read_settings(arguments: list[str], *, for_training: bool = True, reads: Collection[str] = PATH_KEYS) -> Settings:
    """Read `RECIPE [--key value ...]`; `reads` are the keys whose files will be read, and so must be named and there.

    Not `for_training`, what only matters to the hardware (precision, DeepSpeed) is left out, so that a recipe for a GPU
    can be looked at on any machine.

    Raises:
        UserError: no recipe, an unknown, repeated or missing key, a bad value, a file that is not there or not JSON, or
            settings that contradict each other; names the file, line and key.
    """
    parser = SettingsParser()
    path, overrides = _read_arguments(parser, [_modern_flag(argument) for argument in arguments])
    chosen, places = _read_lines(parser, path)
    chosen |= overrides
    places |= dict.fromkeys(overrides, COMMAND_LINE)
    for key, value in chosen.items():
        try:
            chosen[key] = parser.mapping_of(key, value)
        except ValueError as problem:
            raise UserError(f"{places[key]}: {key}: {problem}") from None
    if not for_training:
        chosen = {key: value for key, value in chosen.items() if key not in HARDWARE_KEYS} | {"bf16": False}
    chosen["output_dir"] = chosen.get("output_dir") or f"work_dirs/{path.stem}"
    resolve_paths(chosen)
    settings = Settings(path, chosen, places, _read_deepspeed(chosen, places))
    refuse_what_cannot_work(chosen, settings.refuse, reads)
    if for_training and not chosen.get("card"):  # what is installed here says nothing of where that card is
        refuse_trackers(chosen.get("report_to"), settings.refuse)
    return settings


def _read_arguments(parser: SettingsParser, arguments: list[str]) -> tuple[Path, dict[str, Any]]:
    """The recipe's path, and the keys that were given on the command line, with their values."""
    given, unknown = parser.parse_known_args(arguments)
    for argument in unknown:
        if argument.startswith("--"):
            raise UserError(f"{COMMAND_LINE}: {parser.unknown(argument[2:].partition('=')[0])}")
    if unknown:
        raise UserError(f"{COMMAND_LINE}: {unknown[0]}: one recipe at a time, then --key value pairs")
    overrides = {key: value for key, value in vars(given).items() if key in parser.key_names()}
    for candidate in (Path(given.recipe), REPOSITORY / given.recipe):
        if candidate.is_file():
            return candidate, overrides
    shipped = ", ".join(sorted(f"recipes/{recipe.name}" for recipe in (REPOSITORY / "recipes").glob("*.yaml")))
    raise UserError(f"{given.recipe}: no such recipe; there are {shipped}")


def _read_lines(parser: SettingsParser, path: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """The keys that a recipe sets, with their values, and the line of each."""
    chosen: dict[str, Any] = {}
    places: dict[str, str] = {}
    for key, value, line in _modern_lines(path):
        place = f"{path}:{line}"
        if key not in parser.key_names():
            flat = "; a recipe is flat: write the keys below it at the left edge" if isinstance(value, dict) else ""
            raise UserError(f"{place}: {parser.unknown(key)}{flat}")
        try:
            value = parser.value_of(key, value)
        except ValueError as problem:
            raise UserError(f"{place}: {key}: {problem}") from None
        if key in chosen:
            raise UserError(f"{place}: {key}: set twice: keep one line")
        chosen[key], places[key] = value, place
    return chosen, places


def _modern_lines(path: Path) -> list[tuple[str, object, int]]:
    """The lines of a recipe, each key in today's spelling; all notes on older ones come before the first mistake."""
    lines = []
    for key, value, line in read_recipe_text(path):
        key, note = modern_name(key)
        if note:
            say(f"{path}:{line}: {note}")
        lines.append((key, value, line))
    return lines


def _modern_flag(argument: str) -> str:
    """Spell a flag as Transformers 5 does; values and current names pass unchanged."""
    if not argument.startswith("--"):
        return argument
    flag, equals, value = argument[2:].partition("=")
    key, note = modern_name(flag.replace("-", "_"))
    if note:
        say(f"{COMMAND_LINE}: --{flag}: {note}")
    return f"--{key if note else flag}{equals}{value}"


def _read_deepspeed(chosen: dict[str, Any], places: dict[str, str]) -> dict[str, Any] | None:
    if chosen.get("deepspeed") in (None, ""):  # an empty text, from the command line, takes it away
        return None
    try:
        config, _ = read_config(chosen["deepspeed"])
    except UserError as problem:
        raise UserError(f"{places['deepspeed']}: deepspeed: {str(problem).removeprefix('deepspeed: ')}") from None
    return config
