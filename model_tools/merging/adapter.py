"""Reads an adapter folder strictly, where PEFT passes over what it does not know: what its config says, its weights.

In: a folder. Out: PEFT's config and tensors by the names of the file. Knows nothing about the base model.
"""

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path

import peft
import torch
from peft import PeftConfig, PeftType
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

from model_tools.checkpoints.model_folder import ADAPTER_FILE, read_adapter_config
from model_tools.checkpoints.trained_adapter import UNEXPECTED, read_weights, require_weights
from sft.core.errors import UserError
from sft.core.text import one_line_message

# What PEFT writes for a setting that is off. A setting that it does not know does no harm as long as it is off.
OFF: tuple = (None, False, "", [], {})


@dataclass(frozen=True)
class Adapter:
    """An adapter folder and how strongly it counts; 1 is as it was trained."""

    folder: Path
    weight: float = 1.0

    @property
    def config(self) -> PeftConfig:
        """PEFT's configuration, read anew each time: PEFT writes into the one it is given.

        Raises:
            UserError: see `read_config`.
        """
        return read_config(self.folder)

    def tensors(self) -> dict[str, torch.Tensor]:
        """Its weights, by the names of its file.

        Raises:
            UserError: there is no file of weights, or it is damaged, or holds more than data.
        """
        return read_weights(require_weights(self.folder))


def read_config(folder: Path) -> PeftConfig:
    """PEFT's config of an adapter folder.

    Raises:
        UserError: it is damaged, of a kind or with a setting that the installed PEFT does not know, or PEFT refuses it.
    """
    path, said = folder / ADAPTER_FILE, read_adapter_config(folder)
    kind = said.get("peft_type")
    if not kind:
        raise UserError(f"{path}: names no peft_type, such as LORA: copy it again, or write the adapter again")
    if not isinstance(kind, str) or kind not in PEFT_TYPE_TO_CONFIG_MAPPING:
        raise UserError(
            f"{path}: peft_type {kind} is none that {_versions(said)}: merge it with the PEFT that wrote it"
        )
    config_class = PEFT_TYPE_TO_CONFIG_MAPPING[PeftType(kind)]
    fields = {field.name: field for field in dataclasses.fields(config_class)}
    known = {name: value for name, value in said.items() if name in fields}
    if unknown := sorted(name for name in said.keys() - known.keys() - {"runtime_config"} if said[name] not in OFF):
        raise UserError(
            f"{path}: {unknown[0]} is a setting of {kind} that is none {_versions(said)}: merge it with the PEFT that "
            "wrote it"
        )
    if not isinstance(known.get("auto_mapping") or {}, dict):
        raise UserError(f"{path}: auto_mapping: {known['auto_mapping']!r} is no object: write the adapter again")
    for name, value in known.items():
        _refuse_another_type(path, fields[name], value)
    try:
        return config_class(**known)
    except UNEXPECTED as problem:
        reason = one_line_message(problem, 200)
        raise UserError(f"{path}: PEFT cannot use it ({reason}): copy it again, or write the adapter again") from None


def _versions(said: dict) -> str:
    wrote = said.get("peft_version")
    return f"PEFT {peft.__version__} knows (it was written by {f'PEFT {wrote}' if wrote else 'another PEFT'})"


def _refuse_another_type(path: Path, field: dataclasses.Field, value: object) -> None:
    """PEFT takes any value, and fails where it first computes with it."""
    is_bool = field.type in (bool, "bool")
    if (value is None and field.default is None) or not (is_bool or field.type in (int, float, "int", "float")):
        return
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if not (isinstance(value, bool) if is_bool else is_number):
        wanted = "neither true nor false" if is_bool else "not a finite number"
        raise UserError(f"{path}: {field.name}: {value!r} is {wanted}: copy it again, or write the adapter again")
