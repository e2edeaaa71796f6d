"""Recipes on models that are nothing but a configuration, for what is known before a weight is loaded."""

import json

import pytest

from sft.config.load import read_recorded_recipe
from sft.config.settings import read_settings


@pytest.fixture
def read(tmp_path, train_file):
    """A recipe of the repository on a model that is nothing but a configuration, with settings on top."""

    def read(name: str, config: dict, **keys):
        (tmp_path / "config.json").write_text(json.dumps(config))
        paths = ["--model_name_or_path", str(tmp_path), "--train_file", str(train_file)]
        settings = read_settings([f"recipes/{name}.yaml", *paths], for_training=False)
        recipe = read_recorded_recipe(settings.path, settings.chosen)
        # A GPU's settings cannot be parsed where there is none.
        for key, value in keys.items():
            parts = (recipe.model, recipe.training, recipe.run)
            setattr(next(part for part in parts if hasattr(part, key)), key, value)
        return recipe

    return read
