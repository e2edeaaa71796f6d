"""Reads a DeepSpeed configuration and refuses what DeepSpeed or Transformers would stumble over after the model is in.

In: a path, JSON text or a mapping, as the recipe's `deepspeed` has it. Out: the configuration as plain data. What is
known is asked of the installed DeepSpeed and Transformers, not listed here.
"""

import copy
import json
import os
from collections.abc import Iterable
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from transformers import PreTrainedConfig, TrainingArguments

from sft.config.aliases import did_you_mean
from sft.core.errors import UserError, one_line

AUTO = "auto"
# By accelerate, whatever the recipe says: `Accelerator._prepare_deepspeed`.
FILLED_LATER = {"zero_optimization.stage3_gather_16bit_weights_on_model_save"}
# Read by `deepspeed.initialize` itself and not by the parser of its configuration.
READ_ELSEWHERE = {"data_parallel_size", "sequence_parallel_size"}
# The parser wants these to agree; left out with the other "auto" values, they cannot.
BATCH_KEYS = ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps")


def read_config(config: str | dict) -> tuple[dict[str, Any], str]:
    """The configuration as a new mapping, and how errors name it.

    Raises:
        UserError: no such file, not JSON, or JSON but no object.
    """
    if isinstance(config, dict):
        return copy.deepcopy(config), "deepspeed"
    is_inline = config.lstrip().startswith(("{", "["))
    where = "deepspeed" if is_inline else config
    try:
        # Not of pathlib: text that is too long for a name makes its `is_file` fail.
        if not is_inline and not os.path.isfile(config):
            raise UserError(f"{config}: no such file: name a DeepSpeed configuration, such as ds_configs/zero2.json")
        text = config if is_inline else _text(config)
        read = json.loads(text)
    except UnicodeDecodeError:
        raise UserError(f"{where}: not UTF-8: save it as UTF-8") from None
    except ValueError as problem:
        raise UserError(f"{where}: not JSON: {problem}") from None
    if not isinstance(read, dict):
        raise UserError(f"{where}: JSON, but no object: it must be {{...}}, such as ds_configs/zero2.json")
    return read, where


def check_deepspeed(config: str | dict) -> dict[str, Any]:
    """The configuration, after DeepSpeed's own parser has accepted every key and value but "auto".

    Raises:
        UserError: as `read_config`; a key DeepSpeed does not know or has removed; a value it does not take. Names the
            file and the key.
    """
    from deepspeed.runtime.config import DeepSpeedConfig
    from deepspeed.runtime.precision_config import DeepSpeedBF16Config, DeepSpeedFP16Config
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

    read, where = read_config(config)
    for key, model in {
        "zero_optimization": DeepSpeedZeroConfig,
        "fp16": DeepSpeedFP16Config,
        "bf16": DeepSpeedBF16Config,
    }.items():
        if key in read:
            _check_section(read[key], model, where, key)
    asked = _Asked(_without_auto({key: value for key, value in read.items() if key not in BATCH_KEYS}))
    asked["train_micro_batch_size_per_gpu"] = 1
    try:
        DeepSpeedConfig(asked)
    except Exception as problem:  # of many kinds, KeyError and AssertionError too; all say that a value does not do
        raise UserError(f"{where}: {one_line(problem, 300)}") from None
    known = asked.names | READ_ELSEWHERE
    for key in read:
        if key not in known:
            raise UserError(f"{where}: {key}: DeepSpeed knows no such key{did_you_mean(key, known)}")
    if "zero_optimization" not in read:
        raise UserError(f'{where}: zero_optimization: missing: write a stage, such as {{"stage": 2}}')
    if not read.keys() & {"train_batch_size", "train_micro_batch_size_per_gpu"}:
        raise UserError(f"{where}: train_micro_batch_size_per_gpu: missing: write {AUTO!r} to follow the recipe")
    return read


def check_deepspeed_fits(training: TrainingArguments, model_config: PreTrainedConfig, total_steps: int) -> None:
    """Refuse a configuration that contradicts the recipe, or keeps an "auto" that nobody fills in.

    Transformers itself compares and fills in, on a copy; in a run it does so when the model is loaded.

    Raises:
        UserError: names the file and the keys.
    """
    if not training.deepspeed:
        return
    _, where = read_config(training.deepspeed)
    resolved = copy.deepcopy(training.hf_deepspeed_config)
    try:
        resolved.trainer_config_finalize(training, _Shaped(model_config), total_steps)
    except ValueError:
        if not resolved.mismatches:
            raise
        # Such as "- ds gradient_clipping=0.5 vs hf max_grad_norm=1.0".
        theirs, _, ours = resolved.mismatches[0].removeprefix("- ds ").partition(" vs hf ")
        raise UserError(f"{where}: {theirs}, but the recipe has {ours}: write {AUTO!r} there to follow it") from None
    for key in _auto_keys(resolved.config):
        if key not in FILLED_LATER:
            raise UserError(
                f"{where}: {key}: Transformers does not fill in {AUTO!r} here: write a value, or leave it out"
            )


class _Shaped:
    """All that Transformers looks at in a model to fill in bucket sizes."""

    def __init__(self, config: PreTrainedConfig):
        self.config = config


class _Asked(dict):
    """A mapping that remembers which names were looked for in it, there or not."""

    def __init__(self, *entries):
        super().__init__(*entries)
        self.names: set[str] = set()

    def __contains__(self, name):
        self.names.add(name)
        return super().__contains__(name)

    def __getitem__(self, name):
        self.names.add(name)
        return super().__getitem__(name)

    def get(self, name, default=None):
        self.names.add(name)
        return super().get(name, default)

    def keys(self):
        # DeepSpeed looks names up in `keys()` as well.
        return self

    def __copy__(self):
        return self


def _check_section(section: object, model: type[BaseModel], where: str, key: str) -> None:
    if not isinstance(section, dict):
        raise UserError(f"{where}: {key}: must be an object, {{...}}")
    if section.get("stage", 0) not in (0, 1, 2, 3):
        raise UserError(f"{where}: {key}.stage: {section['stage']!r}: ZeRO has the stages 0, 1, 2 and 3")
    try:
        model(**_without_auto(section))
    except ValidationError as problem:
        error = problem.errors()[0]
        path = [str(part) for part in error["loc"]]
        place = ".".join([key, *path])
        if error["type"] == "extra_forbidden":
            known = _names_at(model, path[:-1])
            message = f"DeepSpeed knows no such key{did_you_mean(path[-1], known)}"
        else:
            message = f"{error['input']!r}: {error['msg'][:1].lower()}{error['msg'][1:]}"
        raise UserError(f"{where}: {place}: {message}") from None
    except Exception as problem:  # DeepSpeed's own checks of keys that have been replaced
        raise UserError(f"{where}: {key}: {one_line(problem, 300)}") from None


def _names_at(model: type[BaseModel], path: list[str]) -> set[str]:
    """The keys that may stand in a section, or in the part of it that `path` leads to."""
    for part in path:
        field = next(field for name, field in model.model_fields.items() if part in (name, field.alias))
        kinds = [kind for kind in (field.annotation, *get_args(field.annotation)) if isinstance(kind, type)]
        model = next(kind for kind in kinds if issubclass(kind, BaseModel))
    return {field.alias or name for name, field in model.model_fields.items()}


def _without_auto(section: dict) -> dict:
    kept = {key: value for key, value in section.items() if value != AUTO}
    return {key: _without_auto(value) if isinstance(value, dict) else value for key, value in kept.items()}


def _auto_keys(section: dict, above: str = "") -> Iterable[str]:
    for key, value in section.items():
        if value == AUTO:
            yield f"{above}{key}"
        elif isinstance(value, dict):
            yield from _auto_keys(value, f"{above}{key}.")


def _text(path: str) -> str:
    with open(path, encoding="utf-8-sig") as file:
        return file.read()
