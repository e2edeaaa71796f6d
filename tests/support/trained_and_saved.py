"""Trains a recipe and saves what it learned; prints as JSON what became of the base model's weights meanwhile:
`changed`, the names of those that are no longer what was loaded, `bytes`, and `allocated`, bytes allocated for saving;
and `not_saved`, the names of weights of the adapter that the saved file lacks or has otherwise.
"""

import json
from pathlib import Path

import torch
from peft import get_peft_model_state_dict
from safetensors.torch import load_file
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
    folder = Path(recipe.training.output_dir, "saved")
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as saving:
        trainer.save_model(str(folder))
    allocated = sum(max(event.self_cpu_memory_usage, 0) for event in saving.events())
    size = sum(weight.numel() for weight in loaded.values())
    saved, adapter = load_file(folder / "adapter_model.safetensors"), get_peft_model_state_dict(trainer.model)
    not_saved = [name for name in adapter if name not in saved or not torch.equal(saved[name], adapter[name].cpu())]
    print(json.dumps({"changed": changed, "bytes": size, "allocated": allocated, "not_saved": not_saved}))


def frozen_bits(model) -> dict[str, torch.Tensor]:
    """A model's own weights as bytes, without an adapter's."""
    weights = {
        name.replace("base_layer.", "").replace("original_module.", ""): w for name, w in model.named_parameters()
    }
    own = {name for name in weights if "lora_" not in name and "modules_to_save" not in name}
    return {name: weights[name].detach().clone().view(torch.uint8) for name in own}
