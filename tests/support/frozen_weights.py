"""Trains a recipe, and prints the names of the base model's weights that are no longer what was loaded, as JSON."""

import json

import torch

from sft.config.settings import read_settings
from sft.data.dataset import load_dataset
from sft.models.loading import load_model, load_tokenizer
from sft.training import launch
from sft.training.trainer import RecipeTrainer


def main(arguments: list[str]) -> None:
    recipe = launch.start(read_settings(arguments))
    tokenizer = load_tokenizer(recipe.model.model_name_or_path)
    packs, card = load_dataset(recipe, tokenizer)
    loaded = frozen_bits(load_model(recipe.model))
    trainer = RecipeTrainer(recipe, load_model(recipe.model), tokenizer, packs, None, {}, card)
    trainer.train()
    trained = frozen_bits(trainer.base)
    names = loaded.keys() | trained.keys()
    print(json.dumps([name for name in names if not torch.equal(loaded[name], trained[name])]))


def frozen_bits(model) -> dict[str, torch.Tensor]:
    """A model's own weights as bytes, without an adapter's."""
    weights = ((name.replace("base_layer.", ""), weight) for name, weight in model.named_parameters())
    return {name: weight.detach().clone().view(torch.uint8) for name, weight in weights if "lora_" not in name}
