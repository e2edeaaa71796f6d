"""Several processes that compute one sequence together: what a recipe's `parallelism_config` asks for.

In: the key's mapping, or parsed training settings. Out: accelerate's own dataclass, or how processes are shared out.
"""

from __future__ import annotations

from dataclasses import fields, is_dataclass
from typing import TYPE_CHECKING, Any, get_args, get_type_hints

from sft.config.aliases import refuse_unknown_fields
from sft.config.settings_check import Refusal

if TYPE_CHECKING:
    from accelerate import ParallelismConfig
    from transformers import TrainingArguments


def parallelism_config(mapping: dict[str, Any], attn_implementation: str | None) -> ParallelismConfig:
    """accelerate's `ParallelismConfig` of a mapping of its fields; that of a handler is a mapping too.

    Sequence parallelism gets the recipe's `attn_implementation`, Transformers' default where there is none, unless
    its handler names one.

    Raises:
        ValueError: a value that accelerate does not take.
    """
    from accelerate import ParallelismConfig

    values = dict(mapping)
    if "sp_size" in values:
        values["sp_handler"] = {"sp_attn_implementation": attn_implementation or "sdpa"} | _mapping(
            values, "sp_handler"
        )
    for name, kind in get_type_hints(ParallelismConfig).items():
        value = values.get(name)
        handler = next((part for part in get_args(kind) if isinstance(part, type) and is_dataclass(part)), None)
        if name.endswith("_size") and value is not None and type(value) is not int:
            raise ValueError(f"{name}: {value}: not a number of processes")
        if handler and value is not None:
            given = _mapping(values, name)
            try:
                refuse_unknown_fields(given, [field.name for field in fields(handler)])
            except ValueError as problem:
                raise ValueError(f"{name}: {problem}") from None
            values[name] = handler(**given)
    return ParallelismConfig(**values)


def _mapping(values: dict[str, Any], name: str) -> dict[str, Any]:
    """A handler's own mapping, empty where there is none."""
    value = values.get(name) or {}
    if not isinstance(value, dict):
        raise ValueError(f"{name}: {value}: a mapping of its fields")
    return value


def refuse_what_cannot_share(training: TrainingArguments, refuse: Refusal) -> None:
    """Call `refuse(key, problem)`, which raises, where the processes of this run cannot share sequences as asked."""
    config = training.parallelism_config
    if not config:
        return
    together, processes = processes_a_sequence(training), training.world_size
    if config.tp_size > 1:
        refuse("parallelism_config", "tp_size: weights are not loaded in slices; divide them by ZeRO-3 or fsdp: true")
    if config.sp_size > 1 and not training.deepspeed:
        refuse("parallelism_config", "sp_size: sequences are shared by DeepSpeed; add deepspeed: ds_configs/zero2.json")
    if config.cp_size > 1 and not training.fsdp:
        refuse("parallelism_config", "cp_size: contexts are shared under FSDP; add fsdp: true and packing: false")
    if processes % together:
        refuse("parallelism_config", f"{together} processes share a sequence, and there are {processes}: start more")


def processes_a_sequence(training: TrainingArguments) -> int:
    """How many processes share each sequence; 1 where every process has its own."""
    config = training.parallelism_config
    return config.non_data_parallel_size if config else 1


def independent_processes(training: TrainingArguments) -> int:
    """How many processes, or groups that share a sequence, see sequences of their own."""
    return training.world_size // processes_a_sequence(training)
