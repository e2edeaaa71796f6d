"""Reads a recipe to look at what it says, not to train by: nothing of the stack is imported.

In: a script's arguments. Out: a `Recipe` whose keys stand in the dataclasses of `stack_keys`, which have the stack's
fields and defaults. What only the stack can refuse is not refused here.
"""

import dataclasses
from collections.abc import Collection
from typing import Any

from sft.config import stack_keys
from sft.config.own_keys import OwnKeys
from sft.config.recipe import Recipe
from sft.config.settings import read_settings


class _ViewedTraining(stack_keys.SFTConfig):
    """Training settings as one process by itself has them."""

    world_size = 1


def view_recipe(arguments: list[str], reads: Collection[str]) -> Recipe:
    """Read `RECIPE [--key value ...]` as `train_sft.py` does; only the files of the keys in `reads` must be there.

    Raises:
        UserError: as `read_settings`.
    """
    settings = read_settings(arguments, for_training=False, reads=reads)
    groups = (OwnKeys, stack_keys.ModelConfig, _ViewedTraining)
    run, model, training = (_filled(group, settings.chosen) for group in groups)
    return Recipe(settings.path, run, model, training, settings.chosen, settings.places)


def _filled(group: type, chosen: dict[str, Any]) -> Any:
    """A dataclass with what was chosen of its fields."""
    names = {field.name for field in dataclasses.fields(group)}
    return group(**{key: value for key, value in chosen.items() if key in names})
