"""Trains a recipe and saves what it learned; prints as JSON what became of the base model's weights meanwhile:
`changed`, the names of those that are no longer what was loaded, `bytes`, and `allocated`, bytes allocated for saving.
"""

import json
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

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
    changed = [name for name in names if not torch.equal(loaded[name], trained[name])]
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as saving:
        trainer.save_model(str(Path(recipe.training.output_dir, "saved")))
    allocated = sum(max(event.self_cpu_memory_usage, 0) for event in saving.events())
    size = sum(weight.numel() for weight in loaded.values())
    print(json.dumps({"changed": changed, "bytes": size, "allocated": allocated}))


def frozen_bits(model) -> dict[str, torch.Tensor]:
    """A model's own weights as bytes, without an adapter's."""
    weights = ((name.replace("base_layer.", ""), weight) for name, weight in model.named_parameters())
    return {name: weight.detach().clone().view(torch.uint8) for name, weight in weights if "lora_" not in name}
