"""Reads a recipe: one flat YAML file, with overrides from the command line, into checked dataclasses.

In: the script's arguments. Out: a `Recipe`. Keys are TRL's, Transformers' and PEFT's own field names,
parsed by TRL's own parser; `RunArguments` holds the few keys the stack lacks. Knows nothing about models
or data beyond where they are.
"""

import argparse
import dataclasses
import json
import os
import re
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any, NoReturn, get_args, get_origin, get_type_hints

import torch
import yaml
from transformers import GenerationConfig
from trl import ModelConfig, SFTConfig, TrlParser

from data_tools.errors import UserError
from data_tools.yaml_file import PlainLoader
from sft import launch
from sft.console import say
from sft.deepspeed_check import check_deepspeed
from sft.model_check import refuse_contradictions
from sft.spelling import RENAMED, did_you_mean, elsewhere, renamed

REPOSITORY = Path(__file__).resolve().parent.parent
PATH_KEYS = ("train_file", "eval_file", "score_file", "model_name_or_path", "deepspeed", "chat_template_path")
HARDWARE_KEYS = {"fp16", "bf16", "tf32", "deepspeed", "fsdp"}
SECRET_KEYS = {"hub_token"}


@dataclass
class RunArguments:
    """The keys of our own: what TRL, Transformers and PEFT have no field for."""

    train_file: list[dict] | str | None = field(
        default=None,
        metadata={
            "help": "JSONL training file: XTuner `conversation` or OpenAI `messages` rows. Or several, each "
            "{path, weight}: 1 takes every row once, 0.3 a random three tenths, 2 every row twice."
        },
    )
    eval_file: str | None = field(
        default=None, metadata={"help": "JSONL file that is not trained on, for the held-out loss eval_loss."}
    )
    truncation: str = field(
        default="error",
        metadata={
            "help": "What happens to a sample longer than max_length: stop, leave it out, or cut its end. "
            "Whatever is lost is counted and shown.",
            "choices": ["error", "drop", "keep_start"],
        },
    )
    eval_prompts: list[str] = field(
        default_factory=list, metadata={"help": "Questions asked before, during and after training."}
    )
    eval_prompts_steps: int = field(
        default=0, metadata={"help": "Ask the evaluation prompts every so many steps; 0 asks before and after only."}
    )
    eval_prompts_system: str | None = field(
        default=None, metadata={"help": "System message that goes before each evaluation prompt."}
    )
    eval_prompts_generation: dict[str, Any] | str | None = field(
        default=None,
        metadata={"help": "Fields of Transformers' GenerationConfig for the answers, such as {max_new_tokens: 100}."},
    )
    identity_name: str | None = field(
        default=None, metadata={"help": "The name the model is to learn; with it, every evaluation is scored."}
    )
    identity_old_names: list[str] = field(
        default_factory=list, metadata={"help": "Names it may still give itself, besides those of well-known models."}
    )
    score_file: str | None = field(
        default=None,
        metadata={"help": "YAML file of identity and ordinary questions and texts; the default is the repository's."},
    )
    score_seconds: float = field(
        default=60.0, metadata={"help": "No further questions are asked in one scoring after so many seconds."}
    )
    stop_when_identity: float | None = field(
        default=None,
        metadata={"help": "End training when this share of the identity questions is answered with the name."},
    )
    stop_patience: int = field(
        default=1, metadata={"help": "At how many evaluations in a row stop_when_identity must be reached."}
    )
    keep_best: str | None = field(
        default=None,
        metadata={
            "help": "Keep the best checkpoint and end with it: by identity, or by the balance of identity and what "
            "was kept.",
            "choices": ["identity", "balance"],
        },
    )
    resume: str = field(
        default="auto",
        metadata={
            "help": "How to begin where the run directory holds an unfinished run: go on from its newest whole "
            "checkpoint (auto), keep it aside and start anew (never), or go on from the checkpoint at a path."
        },
    )
    resume_anyway: bool = field(
        default=False, metadata={"help": "Go on from a checkpoint even if settings or data have changed since."}
    )
    dry_run: bool = field(
        default=False, metadata={"help": "Check everything, print the plan and end; no weights are loaded."}
    )
    save_every_minutes: float = field(
        default=0.0, metadata={"help": "Save a checkpoint after so many minutes without one too; 0 does not."}
    )
    on_bad_step: str = field(
        default="stop",
        metadata={
            "help": "What to do when a step shows that training is broken, such as a loss that is no number.",
            "choices": ["stop", "warn"],
        },
    )

    def __post_init__(self):
        # What `resume_from_checkpoint` of Transformers takes.
        self.resume = {"true": "auto", "false": "never"}.get(self.resume.lower(), self.resume)
        chosen = self.eval_prompts_generation or {}
        if isinstance(chosen, str):
            try:
                chosen = json.loads(chosen)
            except ValueError as problem:
                raise ValueError(f"eval_prompts_generation is not JSON: {problem}") from None
        known = GenerationConfig().to_dict()
        for key in chosen.keys() - known.keys():
            advice = did_you_mean(key, known)
            raise ValueError(f"eval_prompts_generation: {key} is no field of Transformers' GenerationConfig{advice}")
        self.eval_prompts_generation = {"max_new_tokens": 100, "do_sample": False} | chosen


@dataclass
class TrainFile:
    """One file to train on, and how often its rows are taken."""

    path: str
    weight: float = 1.0


@dataclass
class Recipe:
    """A parsed recipe: the three groups of settings, and which keys were set by a person."""

    path: Path
    run: RunArguments
    model: ModelConfig
    training: SFTConfig
    chosen: dict[str, Any]

    @property
    def name(self) -> str:
        return self.path.stem

    @property
    def train_files(self) -> list[TrainFile]:
        return _train_files(self.run.train_file)

    def to_yaml(self) -> str:
        """The whole recipe as it was resolved: what was chosen as keys, all defaults as comments."""
        settings = {
            entry.name: getattr(group, entry.name)
            for group in (self.run, self.model, self.training)
            for entry in dataclasses.fields(group)
        }
        hidden = self.chosen.keys() | SECRET_KEYS | RENAMED.keys()
        defaults = {
            key: value.value if isinstance(value, Enum) else value
            for key, value in settings.items()
            if key not in hidden and isinstance(value, (str, int, float, type(None)))
        }
        comments = "".join(f"# {line}\n" for line in _dump(defaults).splitlines())
        return f"{self.chosen_yaml()}\n# Everything else stood at its default:\n{comments}"

    def chosen_yaml(self) -> str:
        """The keys a person set, resolved, without secrets."""
        return _dump({key: value for key, value in self.chosen.items() if key not in SECRET_KEYS})


class _Parser(TrlParser):
    """TRL's parser, with errors raised as `UserError` instead of a page of usage."""

    def __init__(self):
        super().__init__((RunArguments, ModelConfig, SFTConfig), prog="train_sft.py", allow_abbrev=False)
        self.add_argument("recipe", help="path of the recipe, such as recipes/demo.yaml")
        # Every kind of value a key may have; argparse itself knows of one a key.
        self.kinds = {
            key: {get_origin(kind) or kind for kind in (hint, *get_args(hint))}
            for group in self.dataclass_types
            for key, hint in get_type_hints(group).items()
        }

    def error(self, message: str):
        message = re.sub(r"argument --([^/:]+)[^:]*", r"\1", message)
        raise UserError(f"command line: {message}")

    def action_of(self, key: str) -> argparse.Action | None:
        action = self._option_string_actions.get(f"--{key}")
        return action if action is not None and action.dest == key and key != "help" else None

    def settings(self) -> list[str]:
        return sorted({action.dest for action in self._actions} - {"help", "recipe", "local_rank"})

    def value_of(self, key: str, value: object) -> object:
        """Check and convert one YAML value as the command line would.

        Raises:
            ValueError: the value does not fit the key; says what would.
        """
        action = self.action_of(key)
        if value is None and type(None) not in self.kinds[key]:
            raise ValueError(f"no value; leave the line out for the default, {action.default}")
        if action.nargs == "+" and value is not None:
            return [self._scalar(action, item) for item in (value if isinstance(value, list) else [value])]
        if value is None or (isinstance(value, (list, dict)) and type(value) in self.kinds[key]):
            return value
        return self._scalar(action, value)

    def _scalar(self, action: argparse.Action, value: object) -> object:
        if isinstance(value, (list, dict)):
            raise ValueError(f"a {'list' if isinstance(value, list) else 'mapping'} does not fit here")
        try:
            converted = self._get_value(action, str(value))
            self._check_value(action, converted)
        except (argparse.ArgumentError, argparse.ArgumentTypeError) as problem:
            raise ValueError(str(problem).partition(": ")[2] or str(problem)) from None
        return converted


def load_recipe(arguments: list[str], *, for_training: bool = True) -> Recipe:
    """Parse `RECIPE [--key value ...]` into a checked `Recipe`.

    Where nothing will be trained, what only matters to the hardware (precision, DeepSpeed) is left aside, so that a
    recipe for a GPU can be looked at on any machine.

    Raises:
        UserError: no recipe, an unknown or repeated key, a bad value, or settings that contradict each other;
            names the file, line and key.
    """
    parser = _Parser()
    arguments = [_modern_flag(argument) for argument in arguments]
    path = _recipe_path(parser, arguments)
    chosen, places = {}, defaultdict(lambda: str(path))
    for key, value, line in _read_yaml(path):
        place = f"{path}:{line}"
        key, value = _checked(parser, place, key, value)
        if key in chosen:
            raise UserError(f"{place}: {key}: set twice: keep one line")
        chosen[key], places[key] = value, place
    for key, value in _overrides(parser, arguments).items():
        chosen[key], places[key] = value, "command line"
    if not for_training:
        chosen = {key: value for key, value in chosen.items() if key not in HARDWARE_KEYS} | {"bf16": False}
    chosen.setdefault("output_dir", f"work_dirs/{path.stem}")
    _resolve_paths(chosen)
    _refuse_what_cannot_work(chosen, places)
    if for_training:
        refuse_contradictions(chosen, _refusal(places))
    return Recipe(path, *_build(parser, path, chosen, places), chosen)


def _modern_flag(argument: str) -> str:
    """Spell a flag as Transformers 5 does; values and current names pass unchanged."""
    if not argument.startswith("--"):
        return argument
    flag, equals, value = argument[2:].partition("=")
    key, note = renamed(flag.replace("-", "_"))
    if note:
        say(f"command line: --{flag}: {note}")
    return f"--{key if note else flag}{equals}{value}"


def _recipe_path(parser: _Parser, arguments: list[str]) -> Path:
    known, unknown = parser.parse_known_args(arguments)
    for argument in unknown:
        if argument.startswith("--"):
            raise UserError(f"command line: {_unknown(parser, argument[2:].partition('=')[0])}")
    if unknown:
        raise UserError(f"command line: {unknown[0]}: one recipe at a time, then --key value pairs")
    for candidate in (Path(known.recipe), REPOSITORY / known.recipe):
        if candidate.is_file():
            return candidate
    have = ", ".join(sorted(f"recipes/{recipe.name}" for recipe in (REPOSITORY / "recipes").glob("*.yaml")))
    raise UserError(f"{known.recipe}: no such recipe; there are {have}")


def _read_yaml(path: Path) -> list[tuple[str, object, int]]:
    """The (key, value, line number) of each entry of a flat YAML mapping, in order."""
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


def _checked(parser: _Parser, place: str, key: str, value: object) -> tuple[str, object]:
    """The key in today's spelling and its converted value, or a `UserError` that starts with `place`."""
    key, note = renamed(key)
    if note:
        say(f"{place}: {note}")
    if key not in parser.settings():
        raise UserError(f"{place}: {_unknown(parser, key)}")
    try:
        return key, parser.value_of(key, value)
    except ValueError as problem:
        raise UserError(f"{place}: {key}: {problem}") from None


def _unknown(parser: _Parser, key: str) -> str:
    key = key.replace("-", "_")
    if advice := elsewhere(key):
        return f"{key}: {advice}"
    return f"{key}: no such setting{did_you_mean(key, parser.settings())}"


def _overrides(parser: _Parser, arguments: list[str]) -> dict[str, Any]:
    """The keys that were given on the command line, with their values."""
    silent = _Parser()
    for action in silent._actions:
        action.default = argparse.SUPPRESS
    given = vars(silent.parse_args(arguments))
    return {key: value for key, value in given.items() if key in parser.settings()}


def _resolve_paths(chosen: dict[str, Any]) -> None:
    """A path that is not found from the working directory is looked for in the repository."""
    for key in PATH_KEYS:
        if isinstance(chosen.get(key), str):
            chosen[key] = _found(chosen[key])
    if isinstance(chosen.get("train_file"), list):
        chosen["train_file"] = [
            entry | {"path": _found(str(entry["path"]))} if isinstance(entry, dict) and "path" in entry else entry
            for entry in chosen["train_file"]
        ]


def _found(path: str) -> str:
    # Not of pathlib: these take any text, a DeepSpeed configuration written out in the recipe too.
    in_repository = os.path.join(REPOSITORY, path)
    return in_repository if path and not os.path.exists(path) and os.path.exists(in_repository) else path


def _build(parser: _Parser, path: Path, chosen: dict[str, Any], places: dict[str, str]) -> tuple:
    launch.share_cores()
    if chosen.get("deepspeed"):
        launch.prepare_for_deepspeed()
    if chosen.get("eval_file"):
        # The loss of a batch is one number, so that only batches of one sequence can be weighed exactly.
        chosen = {"eval_strategy": "epoch", "per_device_eval_batch_size": 1} | chosen
    # Every trained weight takes part in every step, so DDP need not look for ones that do not.
    ours = {"use_cpu": not torch.accelerator.is_available(), "ddp_find_unused_parameters": False}
    parser.set_defaults_with_config(**ours | chosen)
    try:
        run, model, training, _ = parser.parse_args_into_dataclasses([str(path)], look_for_args_file=False)
    except (ValueError, TypeError, KeyError) as problem:
        message = " ".join(str(problem).split())
        key = next((key for key in sorted(chosen, key=len, reverse=True) if key in message), None)
        raise UserError(f"{places[key]}: {f'{key}: ' if key else ''}{message}") from None
    if training.deepspeed:
        launch.join_deepspeed_group(training.ddp_timeout_delta)
    return run, model, training


def _refusal(places: dict[str, str]) -> Callable[[str, str], NoReturn]:
    def refuse(key: str, problem: str) -> NoReturn:
        raise UserError(f"{places[key]}: {key}: {problem}")

    return refuse


def _refuse_what_cannot_work(chosen: dict[str, Any], places: dict[str, str]) -> None:
    refuse = _refusal(places)
    train_file, template = chosen.get("train_file"), chosen.get("chat_template_path")
    if not chosen.get("model_name_or_path"):
        refuse("model_name_or_path", "missing: name a model folder or a hub id")
    if not train_file:
        refuse("train_file", "missing: name the JSONL file to train on")
    try:
        files = _train_files(train_file)
    except ValueError as problem:
        refuse("train_file", str(problem))
    for file in files:
        if not Path(file.path).is_file():
            make = f"python -m data_tools generate --name 黄大力 --rows 1500 {file.path}"
            refuse("train_file", f"{file.path}: no such file; make one with: {make}")
    if chosen.get("packing") and chosen.get("max_length", 1) is None:
        refuse("max_length", "packing needs a length to fill; give one, or packing: false")
    for key, unit in (
        ("eval_prompts_steps", "steps, or 0 for before and after only"),
        ("save_every_minutes", "minutes"),
    ):
        if chosen.get(key, 0) < 0:
            refuse(key, f"a number of {unit}")
    _refuse_bad_evaluation(chosen, refuse)
    _refuse_bad_scoring(chosen, refuse)
    for key in ("load_in_4bit", "load_in_8bit"):
        if chosen.get(key) and not chosen.get("use_peft"):
            refuse(key, "quantised weights cannot be trained themselves; add use_peft: true")
    if template and not (Path(template).is_file() and template.endswith((".jinja", ".j2"))):
        refuse("chat_template_path", f"{template}: not a .jinja file; name one")
    if deepspeed := chosen.get("deepspeed"):
        _refuse_bad_deepspeed(deepspeed, refuse)
    if chosen.get("fp16") and not torch.accelerator.is_available():
        refuse("fp16", "needs a GPU and this machine has none; use --fp16 false --bf16 true --dtype bfloat16")


def _refuse_bad_evaluation(chosen: dict[str, Any], refuse) -> None:
    eval_file, strategy = chosen.get("eval_file"), chosen.get("eval_strategy", "no")
    if strategy != "no" and not eval_file:
        refuse("eval_strategy", "there is no held-out file to evaluate on; name one with eval_file")
    if eval_file and not Path(eval_file).is_file():
        split = "python -m data_tools split ALL.jsonl --train TRAIN.jsonl --eval EVAL.jsonl"
        refuse("eval_file", f"{eval_file}: no such file; hold one out with: {split}")
    if eval_file and chosen.get("per_device_eval_batch_size", 1) != 1:
        refuse("per_device_eval_batch_size", "must be 1, so that every held-out token weighs the same")


def _refuse_bad_scoring(chosen: dict[str, Any], refuse) -> None:
    for key in ("identity_old_names", "score_file", "stop_when_identity", "keep_best"):
        if chosen.get(key) and not chosen.get("identity_name"):
            refuse(key, "needs identity_name, the name the model is to learn")
    if (path := chosen.get("score_file")) and not Path(path).is_file():
        refuse("score_file", f"{path}: no such file; copy data_tools/bank/score.yaml and edit it")
    if not 0 < (chosen.get("stop_when_identity") or 1) <= 1:
        refuse("stop_when_identity", "a share of the questions, above 0 and at most 1, such as 0.95")
    if chosen.get("stop_patience", 1) < 1:
        refuse("stop_patience", "a number of evaluations, at least 1")
    if chosen.get("score_seconds", 1) <= 0:
        refuse("score_seconds", "a number of seconds above 0")
    for key in ("stop_when_identity", "keep_best"):
        if chosen.get(key) and not chosen.get("eval_prompts_steps"):
            refuse(key, "needs eval_prompts_steps: every how many steps the model is scored")
    if chosen.get("keep_best") and chosen.get("save_strategy", "steps") == "no":
        refuse("keep_best", "needs checkpoints; leave out save_strategy: no")


def _train_files(value: str | list) -> list[TrainFile]:
    """The files that `train_file` names.

    Raises:
        ValueError: an entry is not {path, weight}; says what is wrong with it.
    """
    if isinstance(value, str):
        return [TrainFile(value)]
    files = []
    for entry in value:
        if not isinstance(entry, dict) or "path" not in entry:
            raise ValueError(f"{entry}: write each file as {{path: data/a.jsonl, weight: 1.0}}")
        if unknown := entry.keys() - {"path", "weight"}:
            key = min(unknown, key=str)
            raise ValueError(f"{key}: no key of a file{did_you_mean(str(key), ('path', 'weight'))}")
        weight = entry.get("weight", 1.0)
        if isinstance(weight, bool) or not isinstance(weight, (int, float)) or not 0 < weight < float("inf"):
            raise ValueError(f"{entry['path']}: weight {weight}: must be a number above 0, such as 0.3")
        files.append(TrainFile(str(entry["path"]), float(weight)))
    return files


def _refuse_bad_deepspeed(config: str | dict, refuse) -> None:
    is_path = isinstance(config, str) and not config.lstrip().startswith(("{", "["))
    if is_path and not os.path.isfile(config):
        have = ", ".join(f"ds_configs/{config.name}" for config in sorted((REPOSITORY / "ds_configs").glob("*.json")))
        refuse("deepspeed", f"{config}: no such file; there are {have}")
    try:
        check_deepspeed(config)
    except UserError as problem:
        refuse("deepspeed", str(problem).removeprefix("deepspeed: "))


def _dump(mapping: dict[str, Any]) -> str:
    return yaml.safe_dump(mapping, allow_unicode=True, sort_keys=False, width=110)
