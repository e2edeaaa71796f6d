"""Makes a recipe of what a person asks for: every key's value, in the dataclasses of the stack and in ours.

In: the script's arguments, or the `Settings` that were read from them. Out: a `Recipe`. Keys are TRL's, Transformers'
and PEFT's own field names, parsed by TRL's own parser; `OwnKeys` holds the few keys the stack lacks. Knows nothing
about models or data beyond where they are.
"""

import dataclasses
import os
import re
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

import torch
import yaml
from transformers.integrations import HfTrainerDeepSpeedConfig
from trl import ModelConfig, SFTConfig

from sft.config.aliases import RENAMED
from sft.config.deepspeed import check_deepspeed
from sft.config.model_check import refuse_contradictions
from sft.config.own_keys import OwnKeys, TrainFile, train_files
from sft.config.parallelism import parallelism_config, refuse_what_cannot_share
from sft.config.settings import Settings, read_settings, refusal
from sft.config.settings_check import Refusal
from sft.config.settings_parser import SettingsParser
from sft.core.errors import UserError, one_line
from sft.models import precision
from sft.training import launch

SECRET_KEYS = {"hub_token"}
# Keys that the stack refuses, or opens process groups for, where there is no GPU.
ONLY_ON_A_GPU = {"fp16", "bf16", "tf32", "deepspeed", "fsdp", "parallelism_config", "activation_offloading"}


@dataclass
class Recipe:
    """A parsed recipe: the three groups of settings, and which keys were set by a person, and where."""

    path: Path
    run: OwnKeys
    model: ModelConfig
    training: SFTConfig
    chosen: dict[str, Any]
    places: dict[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return self.path.stem

    @property
    def train_files(self) -> list[TrainFile]:
        return train_files(self.run.train_file)

    def to_yaml(self) -> str:
        """The whole recipe as it was resolved: what was chosen as keys, all defaults as comments."""
        settings = {
            entry.name: getattr(group, entry.name)
            for group in (self.run, self.model, self.training)
            for entry in dataclasses.fields(group)
        }
        hidden = self.chosen.keys() | SECRET_KEYS | RENAMED.keys()
        defaults = {
            key: _plain(value)
            for key, value in settings.items()
            if key not in hidden and isinstance(value, (str, int, float, type(None)))
        }
        comments = "".join(f"# {line}\n" for line in _dump(defaults).splitlines())
        return f"{self.chosen_yaml()}\n# Everything else stood at its default:\n{comments}"

    def chosen_yaml(self) -> str:
        """The keys a person set, resolved, without secrets."""
        return _dump({key: _plain(value) for key, value in self.chosen.items() if key not in SECRET_KEYS})


def load_recipe(arguments: list[str], *, for_training: bool = True) -> Recipe:
    """Parse `RECIPE [--key value ...]` into a checked `Recipe`; `for_training` as in `Settings`.

    Raises:
        UserError: as `read_settings` and `make_recipe`.
    """
    return make_recipe(read_settings(arguments, for_training=for_training))


def make_recipe(settings: Settings, *, starts: bool = False) -> Recipe:
    """Put settings into the stack's dataclasses.

    `starts`: this process will train by them, so it joins the process group and takes its part of the machine. Without
    it nothing is opened or compiled, and the environment stays as it was.

    Raises:
        UserError: what only the stack can tell: a value it does not take, a DeepSpeed configuration that is none, or
            settings that cannot work on this machine; names the file, line and key.
    """
    parser = SettingsParser((OwnKeys, ModelConfig, SFTConfig))
    chosen, places = settings.chosen(parser)
    if settings.for_training:
        has_gpu = torch.accelerator.is_available() or chosen.get("card")
        if not has_gpu and not chosen.keys() & precision.KEYS:
            chosen |= precision.of_this_cpu(use_peft=bool(chosen.get("use_peft")))
        _refuse_what_cannot_be_trained(chosen, refusal(places))
    build = _started if starts else _planned if chosen.get("card") else _read
    groups = build(parser, settings.path, chosen, places)
    refuse_what_cannot_share(groups[2], refusal(places))
    return Recipe(settings.path, *groups, chosen, dict(places))


def _started(parser: SettingsParser, path: Path, chosen: dict[str, Any], places: dict[str, str]) -> tuple:
    """The groups for a process that trains, with its process group open."""
    launch.limit_cpu_threads()
    launch.keep_few_kernels()
    if chosen.get("deepspeed"):
        launch.prepare_for_deepspeed()
    run, model, training = _parsed(parser, path, chosen, places)
    if training.deepspeed:
        launch.join_deepspeed_group(training.ddp_timeout_delta)
    return run, model, training


def _read(parser: SettingsParser, path: Path, chosen: dict[str, Any], places: dict[str, str]) -> tuple:
    """The groups as they would be in a process of this run, to look at."""
    with launch.knowing_no_other():
        run, model, training = _parsed(parser, path, chosen, places)
    _count_processes(training)
    return run, model, training


def _parsed(parser: SettingsParser, path: Path, chosen: dict[str, Any], places: dict[str, str]) -> tuple:
    if chosen.get("eval_file"):
        # The loss of a batch is one number, so that only batches of one sequence can be weighed exactly.
        chosen = {"eval_strategy": "epoch", "per_device_eval_batch_size": 1} | chosen
    if chosen.get("parallelism_config"):
        try:
            made = parallelism_config(chosen["parallelism_config"], chosen.get("attn_implementation"))
        except ValueError as problem:
            refusal(places)("parallelism_config", str(problem))
        chosen = chosen | {"parallelism_config": made}
    # Every trained weight takes part in every step, so DDP need not look for ones that do not.
    ours = {"use_cpu": not torch.accelerator.is_available(), "ddp_find_unused_parameters": False}
    # A process that is alone opens no group, and the stack would look for the one of this backend.
    alone = set() if "RANK" in os.environ else {"ddp_backend"}
    parser.set_defaults_with_config(**ours | {key: value for key, value in chosen.items() if key not in alone})
    try:
        run, model, training, _ = parser.parse_args_into_dataclasses([str(path)], look_for_args_file=False)
    except (ValueError, TypeError, KeyError) as problem:
        message = one_line(problem)
        key = next((key for key in sorted(chosen, key=len, reverse=True) if key in message), None)
        named = f"{key}: {message.removeprefix(f'{key}: ')}" if key else message
        raise UserError(f"{places[key]}: {named}") from None
    name = model.lora_target_modules
    if isinstance(name, str) and re.fullmatch(r"[\w.]+", name):
        # TRL makes a text of a list of one, which PEFT would take for a pattern of the whole path to a module.
        model.lora_target_modules = [name]
    return run, model, training


def _planned(parser: SettingsParser, path: Path, chosen: dict[str, Any], places: dict[str, str]) -> tuple:
    """The groups for a GPU that is not here: what the stack takes on a GPU alone is set once it has looked."""
    later = {key: chosen[key] for key in ONLY_ON_A_GPU & chosen.keys()}
    here = {key: value for key, value in chosen.items() if key not in later and key != "card"}
    run, model, training = _read(parser, path, here | {"bf16": bool(chosen.get("bf16"))}, places)
    run.card = chosen["card"]
    for key, value in later.items():
        setattr(training, key, value)
    training.bf16 = chosen.get("bf16", not training.fp16)
    _count_processes(training)
    return run, model, training


def _count_processes(training: SFTConfig) -> None:
    """Let settings that were read alone know how many processes the launcher has started, and DeepSpeed's with them."""
    training.distributed_state.num_processes = launch.processes()
    if training.deepspeed:  # as `TrainingArguments` does it
        training._n_gpu = min(training._n_gpu, 1)
        training.hf_deepspeed_config = HfTrainerDeepSpeedConfig(training.deepspeed)
        training.hf_deepspeed_config.trainer_config_process(training)


def _refuse_what_cannot_be_trained(chosen: dict[str, Any], refuse: Refusal) -> None:
    if chosen.get("deepspeed"):
        try:
            check_deepspeed(chosen["deepspeed"])
        except UserError as problem:
            refuse("deepspeed", str(problem).removeprefix("deepspeed: "))
    if not (torch.accelerator.is_available() or chosen.get("card")):
        plan = "; to plan for a GPU that is not here: --dry_run --card 24"
        if chosen.get("fp16"):
            refuse(
                "fp16", f"needs a GPU and this machine has none; use --fp16 false --bf16 true --dtype bfloat16{plan}"
            )
        if chosen.get("activation_offloading"):
            refuse(
                "activation_offloading",
                f"moves what a GPU keeps to RAM, and this machine has no GPU; leave it out{plan}",
            )
    refuse_contradictions(chosen, refuse)


def _plain(value: object) -> object:
    """A setting as YAML has it."""
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return value.value if isinstance(value, Enum) else value


def _dump(mapping: dict[str, Any]) -> str:
    return yaml.safe_dump(mapping, allow_unicode=True, sort_keys=False, width=110)
