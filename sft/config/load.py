"""Reads a recipe and builds the stack's dataclasses of it.

In: the script's arguments, or the `Settings` that were read from them. Out: a `Recipe`. Reading one changes nothing in
the process or on the disk; a process that is to train by it is prepared by `sft.training.launch`.
"""

import dataclasses
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate import ParallelismConfig
from accelerate.state import AcceleratorState, GradientState, PartialState
from transformers import GenerationConfig
from transformers.integrations import HfTrainerDeepSpeedConfig
from transformers.integrations import deepspeed as hf_deepspeed
from trl import ModelConfig, SFTConfig

from sft.config.aliases import did_you_mean
from sft.config.deepspeed import check_deepspeed, config_source
from sft.config.machine_check import refuse_contradictions, refuse_what_needs_a_gpu
from sft.config.own_keys import OwnKeys
from sft.config.parallelism import parallelism_config, refuse_what_cannot_share
from sft.config.recipe import Recipe
from sft.config.settings import HARDWARE_KEYS, Settings, read_settings
from sft.config.settings_parser import SettingsParser
from sft.core.errors import UserError
from sft.core.text import one_line_message
from sft.models import precision

# Keys that the stack refuses, or opens process groups for, where there is no GPU.
ONLY_ON_A_GPU = {"fp16", "bf16", "tf32", "deepspeed", "fsdp", "parallelism_config", "activation_offloading"}
# By which a launcher tells a process its place among others, and MPI does.
LAUNCHER_VARIABLES = {"RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "LOCAL_SIZE"}
MPI_PREFIXES = ("PMI_", "OMPI_COMM_WORLD_", "MV2_COMM_WORLD_", "MPI_LOCAL")
PROCESS_COUNTS = ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")
SHARED_STATES = [kind._shared_state for kind in (PartialState, AcceleratorState, GradientState)]

Groups = tuple[OwnKeys, ModelConfig, SFTConfig]


def load_recipe(arguments: list[str]) -> Recipe:
    """Parse `RECIPE [--key value ...]` into a checked `Recipe`.

    Raises:
        UserError: as `read_settings` and `read_recipe`.
    """
    return read_recipe(read_settings(arguments))


def read_recipe(settings: Settings) -> Recipe:
    """The recipe of settings, as it would be in a process of this run: to look at, not to train by.

    Nothing is opened or compiled, and the process is afterwards as it was; on a GPU torch makes its context, of some
    400 MB.

    Raises:
        UserError: what only the stack can tell: a value it does not take, a DeepSpeed configuration that is none, or
            settings that cannot work on this machine; names the file, line and key.
    """
    with preserved_process_state():
        settings = settings_for_this_machine(settings)
        # As the launcher has started them, on all machines.
        processes = int(next(filter(None, map(os.environ.get, PROCESS_COUNTS)), 1))
        _forget_launcher()
        groups = _groups_for_another_gpu(settings) if settings.chosen.get("card") else _groups(settings)
        _keep_own_state(groups[2], processes)
    return _recipe(settings, groups)


def settings_for_this_machine(settings: Settings) -> Settings:
    """The settings with the precision of this CPU where none was chosen.

    Raises:
        UserError: they cannot be trained on this machine or contradict each other, or DeepSpeed does not take its
            configuration; names the file, line and key.
    """
    chosen = settings.chosen
    if settings.deepspeed:
        try:
            check_deepspeed(settings.deepspeed, config_source(chosen["deepspeed"]))
        except UserError as problem:
            settings.refuse("deepspeed", str(problem).removeprefix("deepspeed: "))
    if not (torch.accelerator.is_available() or chosen.get("card")):
        refuse_what_needs_a_gpu(chosen, settings.refuse)
        if not chosen.keys() & precision.KEYS:
            chosen = chosen | precision.of_this_cpu(use_peft=bool(chosen.get("use_peft")))
    zero = (settings.deepspeed or {}).get("zero_optimization", {})
    refuse_contradictions(chosen, settings.refuse, zero_stage=zero.get("stage", 0))
    return dataclasses.replace(settings, chosen=chosen)


def build_recipe(settings: Settings) -> Recipe:
    """The recipe of settings that fit this machine, for a process that trains: in it the stack opens its process group.

    Raises:
        UserError: a value that the stack does not take; names the file, line and key.
    """
    return _recipe(settings, _groups(settings))


def read_recorded_recipe(path: Path, recorded: dict[str, Any]) -> Recipe:
    """The recipe that a run wrote down, whether its files and its hardware are here or not.

    Raises:
        UserError: it cannot be read.
    """
    parser = SettingsParser()
    names = parser.key_names()
    chosen = {key: value for key, value in recorded.items() if key in names and key not in HARDWARE_KEYS}
    try:
        # A run of an earlier version wrote a mapping from the command line as its text.
        chosen = {key: parser.mapping_of(key, value) for key, value in chosen.items()}
        with preserved_process_state():
            _forget_launcher()
            groups = _dataclasses(chosen | {"bf16": False, "use_cpu": True})
            _keep_own_state(groups[2], processes=1)
    except (ValueError, TypeError) as problem:
        raise UserError(
            f"{path}: cannot be read ({one_line_message(problem, 160)}): copy it again from the run"
        ) from None
    return Recipe(path, *groups, recorded)


@contextmanager
def preserved_process_state() -> Iterator[None]:
    """Let the stack change this process as it likes, and restore afterwards what was before.

    The stack keeps what it learns of a process in the environment, in three dictionaries of accelerate's, in a
    reference of Transformers' to the DeepSpeed configuration and in torch's settings.
    """
    environment, threads = dict(os.environ), torch.get_num_threads()
    float32_precision = torch.backends.fp32_precision  # type: ignore[attr-defined]
    states = [dict(state) for state in SHARED_STATES]
    deepspeed_reference = hf_deepspeed._hf_deepspeed_config_weak_ref
    try:
        yield
    finally:
        for name in os.environ.keys() - environment.keys():
            del os.environ[name]
        os.environ.update(environment)
        for state, before in zip(SHARED_STATES, states, strict=True):
            state.clear()
            state.update(before)
        hf_deepspeed._hf_deepspeed_config_weak_ref = deepspeed_reference
        if torch.get_num_threads() != threads:
            torch.set_num_threads(threads)
        if torch.backends.fp32_precision != float32_precision:  # type: ignore[attr-defined]
            torch.backends.fp32_precision = float32_precision  # type: ignore[attr-defined]


def _forget_launcher() -> None:
    """Make this process one of its own to the stack, which then opens no process group."""
    for name in [*os.environ]:
        if name in LAUNCHER_VARIABLES or name.startswith(MPI_PREFIXES):
            del os.environ[name]
    for state in SHARED_STATES:
        state.clear()


def _keep_own_state(training: SFTConfig, processes: int) -> None:
    """Take training arguments out of the state that the stack shares in a process, as those of one of several."""
    state = training.distributed_state
    state.__dict__ = dict(state.__dict__)
    state.num_processes = processes
    if training.deepspeed:  # as `TrainingArguments` does it
        training._n_gpu = min(training._n_gpu, 1)
        training.hf_deepspeed_config = HfTrainerDeepSpeedConfig(training.deepspeed)
        training.hf_deepspeed_config.trainer_config_process(training)


def _recipe(settings: Settings, groups: Groups) -> Recipe:
    refuse_what_cannot_share(groups[2], settings.refuse)
    return Recipe(settings.path, *groups, settings.chosen, settings.places)


def _groups(settings: Settings) -> Groups:
    """The dataclasses with the values of settings, and with ours where the stack's default would not do."""
    chosen = settings.chosen
    # Every trained weight takes part in every step, so DDP need not look for ones that do not.
    values: dict[str, Any] = {"use_cpu": not torch.accelerator.is_available(), "ddp_find_unused_parameters": False}
    if chosen.get("eval_file"):
        # The loss of a batch is one number, so that only batches of one sequence can be weighed exactly.
        values |= {"eval_strategy": "epoch", "per_device_eval_batch_size": 1}
    if chosen.get("early_stopping_patience"):
        values |= {"metric_for_best_model": "loss"}
    values |= chosen | {"deepspeed": settings.deepspeed, "parallelism_config": _parallelism_config(settings)}
    if "RANK" not in os.environ:
        # A process that is alone opens no group, and the stack would look for the one of this backend.
        values.pop("ddp_backend", None)
    try:
        return _dataclasses(values)
    except (ValueError, TypeError, KeyError) as problem:
        message = one_line_message(problem)
        key = next((key for key in sorted(chosen, key=len, reverse=True) if key in message), None)
        if key is None:
            raise UserError(f"{settings.path}: {message}") from None
        settings.refuse(key, message.removeprefix(f"{key}: "))


def _groups_for_another_gpu(settings: Settings) -> Groups:
    """The dataclasses for a GPU that is not here: what the stack takes on a GPU alone is set once it has looked."""
    chosen = settings.chosen
    later = {key: chosen[key] for key in ONLY_ON_A_GPU & chosen.keys()}
    later |= {"deepspeed": settings.deepspeed, "parallelism_config": _parallelism_config(settings)}
    here = {key: value for key, value in chosen.items() if key not in later and key != "card"}
    groups = _groups(dataclasses.replace(settings, chosen=here | {"bf16": bool(chosen.get("bf16"))}, deepspeed=None))
    run, _, training = groups
    run.card = chosen["card"]
    for key, value in later.items():
        setattr(training, key, value)
    training.bf16 = chosen.get("bf16", not training.fp16)
    return groups


def _parallelism_config(settings: Settings) -> ParallelismConfig | None:
    if not (mapping := settings.chosen.get("parallelism_config")):
        return None
    try:
        return parallelism_config(mapping, settings.chosen.get("attn_implementation"))
    except ValueError as problem:
        settings.refuse("parallelism_config", str(problem))


def _dataclasses(values: dict[str, Any]) -> Groups:
    def of(group: type) -> dict[str, Any]:
        names = {field.name for field in dataclasses.fields(group)}
        return {key: value for key, value in values.items() if key in names}

    known_fields = GenerationConfig().to_dict()
    for key in values.get("eval_prompts_generation") or ():
        if key not in known_fields:
            advice = did_you_mean(key, known_fields)
            raise ValueError(f"eval_prompts_generation: {key} is no field of Transformers' GenerationConfig{advice}")
    run, model, training = OwnKeys(**of(OwnKeys)), ModelConfig(**of(ModelConfig)), SFTConfig(**of(SFTConfig))
    target = model.lora_target_modules
    if isinstance(target, str) and re.fullmatch(r"[\w.]+", target):
        # TRL makes a text of a list of one, which PEFT would take for a pattern of the whole path to a module.
        model.lora_target_modules = [target]
    return run, model, training
