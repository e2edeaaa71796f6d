"""A base model that is loaded once and trained many times in one process, each time as if it were new.

In: a model's folder. Out: trainers of recipes on it, one after the other; `give_back` undoes what the last one did to
the model. Loading 7B takes longer than what is measured of it. Knows nothing about what is measured.
"""

import gc
from pathlib import Path

import torch
from datasets import Dataset
from peft import PeftModel
from transformers import PreTrainedModel
from transformers.trainer_callback import PrinterCallback
from trl import SFTTrainer, get_peft_config

from sft.config.recipe import Recipe
from sft.config.settings import read_settings
from sft.core.paths import REPOSITORY
from sft.data.dataset import load_dataset
from sft.data.dataset_card import DatasetCard
from sft.models.loading import load_model, load_tokenizer
from sft.training import launch
from sft.training.packed_attention import attend_over_packs
from sft.training.trainer import RecipeTrainer, own_arguments

# A run that only trains: nothing is evaluated, saved or reported.
KEYS = {
    "deepspeed": "",
    "logging_steps": 1,
    "save_strategy": "no",
    "report_to": "none",
    "resume": "never",
    "identity_name": "",
    "eval_prompts_steps": 0,
}


class OneLoad:
    """recipes/huangdali.yaml with other keys, on one model."""

    def __init__(self, model: Path):
        self.model = str(model)
        self.tokenizer = load_tokenizer(self.model)
        self._base: PreTrainedModel | None = None

    def recipe(self, **keys) -> Recipe:
        """The recipe with these keys."""
        flags = [str(REPOSITORY / "recipes/huangdali.yaml")]
        for key, value in (KEYS | {"model_name_or_path": self.model} | keys).items():
            flags += [f"--{key}", str(value).lower() if isinstance(value, bool) else str(value)]
        return launch.start(read_settings(flags))

    def data(self, recipe: Recipe) -> tuple[Dataset, DatasetCard]:
        """The packs of a recipe, and their card."""
        return load_dataset(recipe, self.tokenizer)

    def trainer(self, recipe: Recipe, packs: Dataset, card: DatasetCard, *, by_trl: bool = False) -> SFTTrainer:
        """The trainer of a recipe, or TRL's own for the same keys; the last one's must have been given back."""
        base = self.base(recipe)
        if not by_trl:
            return RecipeTrainer(recipe, base, self.tokenizer, packs, None, {}, card)
        args = own_arguments(recipe.training)
        args.disable_tqdm = True
        peft = get_peft_config(recipe.model)
        trainer = SFTTrainer(base, args, train_dataset=packs, processing_class=self.tokenizer, peft_config=peft)
        trainer.remove_callback(PrinterCallback)
        return trainer

    def base(self, recipe: Recipe) -> PreTrainedModel:
        """The base model in the recipe's precision; loaded at the first call."""
        if self._base is None:
            self._base = load_model(recipe.model)
        dtype = getattr(torch, recipe.model.dtype)
        for parameter in self._base.parameters():
            if parameter.is_floating_point():
                parameter.data = parameter.data.to(dtype)
        for module in self._base.modules():
            if hasattr(module, "compute_dtype"):
                module.compute_dtype = module.weight.quant_state.dtype = dtype
        self._base.activation_checkpointing_disable()
        return self._base

    def give_back(self, trainer: SFTTrainer) -> None:
        """Take the adapter off the base model, and undo all else that the trainer did to it."""
        base = trainer.model.unload() if isinstance(trainer.model, PeftModel) else trainer.model
        attend_over_packs(base)
        for module in base.modules():
            module._compiled_call_impl = None
            module._forward_hooks.clear()
        base.__dict__.pop("forward", None)  # TRL's head, or ours
        base.base_model.__dict__.pop("forward", None)  # needed tokens alone
        for parameter in base.parameters():
            parameter.grad = None
        trainer.optimizer = trainer.lr_scheduler = None
        del trainer
        self._free()

    def forget(self) -> None:
        """Load the model again for the next trainer, since the last one may have left it in any state."""
        self._base = None
        self._free()

    @staticmethod
    def _free() -> None:
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
