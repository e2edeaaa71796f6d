"""Reads a DeepSpeed configuration and refuses what DeepSpeed or Transformers would stumble over after the model is in.

In: a path, JSON text or a mapping, as the recipe's `deepspeed` has it. Out: the configuration as plain data. Which keys
there are is asked of the installed DeepSpeed and Transformers, not listed here. Reading alone imports nothing heavy.
"""

import copy
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from sft.config.aliases import did_you_mean
from sft.core.errors import UserError
from sft.core.paths import REPOSITORY
from sft.core.text import one_line_message

if TYPE_CHECKING:
    from pydantic import BaseModel
    from transformers import PreTrainedConfig, TrainingArguments

AUTO = "auto"
# By accelerate, whatever the recipe says: `Accelerator._prepare_deepspeed`.
FILLED_LATER = {"zero_optimization.stage3_gather_16bit_weights_on_model_save"}
# Read by `deepspeed.initialize` itself and not by the parser of its configuration.
READ_ELSEWHERE = {"data_parallel_size", "sequence_parallel_size"}
# The parser wants these to agree; without those that are "auto" they cannot.
BATCH_KEYS = ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps")


def read_config(written: str | dict) -> tuple[dict[str, Any], str]:
    """The configuration that a path, JSON text or a mapping stands for, as a new mapping, and how errors name it.

    Raises:
        UserError: no such file, not JSON, JSON but no object, or an empty one.
    """
    source = config_source(written)
    if isinstance(written, dict):
        config = copy.deepcopy(written)
    else:
        # Not of pathlib: text that is too long for a name makes its `is_file` fail.
        if source == written and not os.path.isfile(written):
            shipped = sorted(path.name for path in (REPOSITORY / "ds_configs").glob("*.json"))
            names = ", ".join(f"ds_configs/{name}" for name in shipped)
            raise UserError(f"{source}: no such file; there are {names}")
        try:
            config = json.loads(Path(written).read_text(encoding="utf-8-sig") if source == written else written)
        except UnicodeDecodeError:
            raise UserError(f"{source}: not UTF-8: save it as UTF-8") from None
        except ValueError as problem:
            raise UserError(f"{source}: not JSON: {problem}") from None
    if not isinstance(config, dict):
        raise UserError(f"{source}: JSON, but no object: it must be {{...}}, such as ds_configs/zero2.json")
    if not config:
        raise UserError(f"{source}: is empty; name a configuration, such as ds_configs/zero2.json, or leave it out")
    return config, source


def config_source(written: str | dict) -> str:
    """How errors name a configuration: its file, or the key in which it is written out."""
    is_inline = isinstance(written, dict) or written.lstrip().startswith(("{", "["))
    return "deepspeed" if is_inline else str(written)


def check_deepspeed(config: dict[str, Any], source: str) -> None:
    """See that DeepSpeed's own parser accepts every key and value of a configuration but "auto".

    Raises:
        UserError: a key DeepSpeed does not know or has removed; a value it does not take. Names the source and the key.
    """
    from deepspeed.runtime.config import DeepSpeedConfig
    from deepspeed.runtime.precision_config import DeepSpeedBF16Config, DeepSpeedFP16Config
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

    for key, model in {
        "zero_optimization": DeepSpeedZeroConfig,
        "fp16": DeepSpeedFP16Config,
        "bf16": DeepSpeedBF16Config,
    }.items():
        if key in config:
            _check_section(config[key], model, source, key)
    recorder = _LookupRecorder(_without_auto({key: value for key, value in config.items() if key not in BATCH_KEYS}))
    recorder["train_micro_batch_size_per_gpu"] = 1
    try:
        DeepSpeedConfig(recorder)
    except Exception as problem:  # of many kinds, KeyError and AssertionError too; all say that a value does not do
        raise UserError(f"{source}: {one_line_message(problem, 300)}") from None
    known_keys = recorder.names | READ_ELSEWHERE
    for key in config:
        if key not in known_keys:
            raise UserError(f"{source}: {key}: DeepSpeed knows no such key{did_you_mean(key, known_keys)}")
    if "zero_optimization" not in config:
        raise UserError(f'{source}: zero_optimization: missing: write a stage, such as {{"stage": 2}}')
    if not config.keys() & {"train_batch_size", "train_micro_batch_size_per_gpu"}:
        raise UserError(f"{source}: train_micro_batch_size_per_gpu: missing: write {AUTO!r} to follow the recipe")


def check_deepspeed_fits(
    training: "TrainingArguments", written: str | dict | None, model_config: "PreTrainedConfig", total_steps: int
) -> None:
    """Refuse a configuration that contradicts the recipe, or keeps an "auto" that nobody fills in.

    Transformers itself compares and fills in, on a copy; in a run it does so when the model is loaded. `written` is the
    recipe's own value of `deepspeed`, by which errors name the configuration.

    Raises:
        UserError: names the source and the keys.
    """
    if not (training.deepspeed and written):
        return
    source = config_source(written)
    resolved = copy.deepcopy(training.hf_deepspeed_config)
    try:
        resolved.trainer_config_finalize(training, _Shaped(model_config), total_steps)
    except ValueError:
        if not resolved.mismatches:
            raise
        # Such as "- ds gradient_clipping=0.5 vs hf max_grad_norm=1.0".
        theirs, _, ours = resolved.mismatches[0].removeprefix("- ds ").partition(" vs hf ")
        raise UserError(f"{source}: {theirs}, but the recipe has {ours}: write {AUTO!r} there to follow it") from None
    for key in _auto_keys(resolved.config):
        if key not in FILLED_LATER:
            raise UserError(
                f"{source}: {key}: Transformers does not fill in {AUTO!r} here: write a value, or leave it out"
            )


class _Shaped:
    """All that Transformers looks at in a model to fill in bucket sizes."""

    def __init__(self, config: "PreTrainedConfig"):
        self.config = config


class _LookupRecorder(dict):
    """A mapping that records which names DeepSpeed looks up in it, there or not: these are the keys it knows.

    No list of its top-level keys exists to be asked: `DeepSpeedConfig` is no pydantic model, and of the some hundred
    constants in `deepspeed.runtime.constants` and elsewhere nothing says which are keys at the top. It reads every
    unknown key as if it were not there.
    """

    def __init__(self, entries: dict[str, Any]) -> None:
        super().__init__(entries)
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

    def key_names(self):
        # DeepSpeed looks names up in `keys()` as well.
        return self

    def __copy__(self):
        return self


def _check_section(section: object, model: type["BaseModel"], source: str, key: str) -> None:
    from pydantic import ValidationError

    if not isinstance(section, dict):
        raise UserError(f"{source}: {key}: must be an object, {{...}}")
    if section.get("stage", 0) not in (0, 1, 2, 3):
        raise UserError(f"{source}: {key}.stage: {section['stage']!r}: ZeRO has the stages 0, 1, 2 and 3")
    try:
        model(**_without_auto(section))
    except ValidationError as problem:
        error = problem.errors()[0]
        path = [str(part) for part in error["loc"]]
        if error["type"] == "extra_forbidden":
            message = f"DeepSpeed knows no such key{did_you_mean(path[-1], _names_at(model, path[:-1]))}"
        else:
            message = f"{error['input']!r}: {error['msg'][:1].lower()}{error['msg'][1:]}"
        raise UserError(f"{source}: {'.'.join([key, *path])}: {message}") from None
    except Exception as problem:  # DeepSpeed's own checks of keys that have been replaced
        raise UserError(f"{source}: {key}: {one_line_message(problem, 300)}") from None


def _names_at(model: type["BaseModel"], path: list[str]) -> set[str]:
    """The keys that may stand in a section, or in the part of it that `path` leads to."""
    for part in path:
        field = next(field for name, field in model.model_fields.items() if part in (name, field.alias))
        model = next(kind for kind in (field.annotation, *get_args(field.annotation)) if hasattr(kind, "model_fields"))
    return {field.alias or name for name, field in model.model_fields.items()}


def _without_auto(section: dict) -> dict:
    return {
        key: _without_auto(value) if isinstance(value, dict) else value
        for key, value in section.items()
        if value != AUTO
    }


def _auto_keys(section: dict, above: str = "") -> Iterable[str]:
    for key, value in section.items():
        if value == AUTO:
            yield f"{above}{key}"
        elif isinstance(value, dict):
            yield from _auto_keys(value, f"{above}{key}.")
