"""A recipe: every key's value, in the dataclasses of the stack and in ours.

Keys are TRL's, Transformers' and PEFT's own field names; `OwnKeys` holds the few keys the stack lacks. Knows nothing
about how it is read (`sft.config.load`), and nothing about models or data beyond where they are.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from sft.config.aliases import RENAMED
from sft.config.own_keys import DEFAULTS_BEGIN, OwnKeys, TrainFile, train_files

if TYPE_CHECKING:
    from trl import ModelConfig, SFTConfig

SECRET_KEYS = {"hub_token"}


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
        """The file's name without its ending."""
        return self.path.stem

    @property
    def train_files(self) -> list[TrainFile]:
        """The files to train on, with how often the rows of each are taken."""
        return train_files(self.run.train_file or [], self.run.columns)

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
        return f"{self.chosen_yaml()}\n{DEFAULTS_BEGIN}\n{comments}"

    def chosen_yaml(self) -> str:
        """The keys a person set, resolved, without secrets."""
        return _dump({key: _plain(value) for key, value in self.chosen.items() if key not in SECRET_KEYS})


def keeps_packed_samples_apart(training: SFTConfig) -> bool:
    """Whether samples are packed whole and laid end to end, so that none sees another; "wrapped", as XTuner, is not."""
    return training.packing and training.packing_strategy != "wrapped"


def _plain(value: object) -> object:
    """A setting as YAML has it."""
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return value.value if isinstance(value, Enum) else value


def _dump(mapping: dict[str, Any]) -> str:
    return yaml.safe_dump(mapping, allow_unicode=True, sort_keys=False, width=110)
