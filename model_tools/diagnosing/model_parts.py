"""Where the parts of a model lie that is asked for a name: run, adapter, base and merged model; and their weights.

In: the paths a person gives. Out: `ModelParts`, which reads tensors one by one and only what it is asked for.
"""

import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from transformers import AutoConfig

from model_tools.checkpoints.asked import runs_of
from model_tools.checkpoints.model_folder import (
    ADAPTER_FILE,
    CONFIG_FILE,
    adapter_folder,
    config_file,
    read_adapter_config,
)
from model_tools.checkpoints.trained_adapter import read_weights, weights_file
from model_tools.merging.adapter import Adapter
from model_tools.merging.layout import Layout
from model_tools.merging.tuned_modules import TunedModules, without_weights
from sft.core.errors import UserError
from sft.evaluation.evidence import found_path
from sft.models import internlm2
from sft.models.weight_files import WeightFiles, meta_tensors

# How many of the modules that the adapter changes are looked into.
SAMPLED_MODULES = 3

internlm2.register_with_transformers()


@dataclass
class ModelParts:
    """Where the parts of the model that is asked lie; None for what there is not, or is not on this machine."""

    named: Path
    run: Path | None
    adapter: Path | None
    base_name: str | None
    base: Path | None
    merged: Path | None

    @cached_property
    def config(self) -> dict:
        """What stands in the adapter's config; empty where there is no adapter."""
        return read_adapter_config(self.adapter) if self.adapter else {}

    @cached_property
    def tensors(self) -> dict[str, torch.Tensor]:
        """The adapter's tensors by the names of its file; none where there is no adapter or no file."""
        file = weights_file(self.adapter) if self.adapter else None
        return read_weights(file) if file else {}

    @property
    def is_lora(self) -> bool:
        """Whether there is an adapter, and it is LoRA."""
        return bool(self.config.get("peft_type") == "LORA" and self.config.get("r"))

    @property
    def fitted(self) -> "tuple[StoredParameters, TunedModules] | None":
        """The base's parameters, and the modules that the adapter changes; None where it does not fit."""
        return self._laid_over_base[0]

    @property
    def misfit(self) -> str | None:
        """Why the adapter does not fit its base, if so."""
        return self._laid_over_base[1]

    @cached_property
    def _laid_over_base(self) -> "tuple[tuple[StoredParameters, TunedModules] | None, str | None]":
        is_plain = self.is_lora and not self.config.get("target_parameters")
        if not (self.adapter and is_plain and self.tensors and self.base and _is_comparable(self.base)):
            return None, None
        try:
            parameters = StoredParameters(self.base, self.adapter)
            return (parameters, TunedModules(parameters.model, [Adapter(self.adapter)])), None
        except UserError as problem:
            return None, str(problem)

    @cached_property
    def merged_parameters(self) -> "StoredParameters | None":
        """The merged folder's parameters; None where there is nothing to compare them with."""
        if self.adapter and self.merged and self.fitted and _is_comparable(self.merged):
            return StoredParameters(self.merged, self.adapter)
        return None

    @cached_property
    def changes(self) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
        """(the base's weight, what the adapter adds to it), both in float32, by the names of a few parameters."""
        if not self.fitted:
            return {}
        base, tuned = self.fitted
        modules = [name for name, needed in tuned.parameters.items() if base.sources.keys() >= set(needed)]
        changes: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
        for module in _spread(modules, SAMPLED_MODULES):
            before = {name: base.read(name) for name in tuned.parameters[module]}
            after = tuned.merge(module, {name: value.clone() for name, value in before.items()}, "cpu")
            changes |= {name: (value, after[name] - value) for name, value in before.items() if value.dim() == 2}
        return changes


class StoredParameters:
    """A folder's weights under the names of its model's parameters, read one at a time.

    `sources` maps each parameter to the stored tensors it is made of; `model` is on the meta device.
    """

    def __init__(self, folder: Path, adapter: Path):
        self.files = WeightFiles(folder)
        self.model = without_weights(AutoConfig.from_pretrained(folder), [Adapter(adapter)])
        self._layout = Layout(self.model, meta_tensors(self.files.tensors))
        self.sources = self._layout.sources

    def read(self, parameter: str) -> torch.Tensor:
        """One parameter, in float32."""
        stored = {name: self.files.read(name).float() for name in self.sources[parameter]}
        return self._layout.to_parameters(stored)[parameter]


def find_parts(named: Path, merged: Path | None, base: Path | None) -> ModelParts:
    """Find the run, the adapter and the base that go with a path.

    Raises:
        UserError: the path is neither a run nor an adapter, or a folder that was given is no model folder.
    """
    for option, folder in (("--merged", merged), ("--base", base)):
        if folder is not None and not (folder / CONFIG_FILE).is_file():
            raise UserError(f"{option} {folder}: holds no {CONFIG_FILE}: give a model folder")
    run = next(runs_of([named]), None)
    adapter = adapter_folder(named)
    if adapter is None and run != named:
        raise UserError(f"{named}: is no run directory and holds no adapter: give one, such as work_dirs/demo")
    if adapter is None:
        checkpoints = [file.parent for file in named.glob(f"checkpoint-*/{ADAPTER_FILE}")]
        adapter = max(checkpoints, key=lambda folder: folder.stat().st_mtime, default=None)
    name = str(base) if base else read_adapter_config(adapter).get("base_model_name_or_path") if adapter else None
    return ModelParts(named, run, adapter, name, base or (_local_folder(name) if name else None), merged)


def is_path(model: str) -> bool:
    """Whether a name can only be a path: a hub id is `name` or `owner/name`, and its owner is no folder here."""
    parent = Path(model).parent
    return not re.fullmatch(r"[\w.-]+(?:/[\w.-]+)?", model) or (
        str(parent) != "." and found_path(str(parent)) is not None
    )


def _local_folder(model: str) -> Path | None:
    """The folder of a model that is on this machine: by its path, or in the hub's cache."""
    folder = found_path(model)
    config = (config_file(str(folder)) if folder else None) or config_file(model)
    return config.parent if config else None


def _is_comparable(folder: Path) -> bool:
    """Whether a folder holds a model that Transformers knows, in full precision."""
    try:
        return not getattr(AutoConfig.from_pretrained(folder), "quantization_config", None)
    except (ValueError, KeyError, OSError):
        return False


def _spread(items: list, count: int) -> list:
    """So many of the items, from the first to the last."""
    if len(items) <= count:
        return items
    return [items[round(number * (len(items) - 1) / (count - 1))] for number in range(count)]
