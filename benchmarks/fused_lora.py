"""What fused LoRA layers are worth on this machine: forward and backward of the demo's packs, by turns with PEFT's.

    python -m benchmarks.fused_lora

One process and one model, the layers changed over after every six packs, so that what else the machine does falls on
both alike. Medians of all packs.
"""

import statistics
import tempfile
import time

import torch

from benchmarks.ablations import layers_of_peft
from sft.console import quiet_the_stack
from sft.dataset import load_dataset
from sft.fused_lora import fuse_lora
from sft.model import load_model, load_tokenizer
from sft.paths import REPOSITORY
from sft.recipe import load_recipe
from sft.trainer import RecipeTrainer

PACKS, TURNS = 6, 12


def main() -> None:
    quiet_the_stack()
    print("| activation_checkpointing | lora_dropout | PEFT's layers, s | fused, s | ratio |")
    print("| --- | --- | --- | --- | --- |")
    for recomputes in (False, True):
        for dropout in (0.0, 0.1):
            by_peft, fused = measure(activation_checkpointing=recomputes, lora_dropout=dropout)
            row = f"| {str(recomputes).lower()} | {dropout:g} | {by_peft:.2f} | {fused:.2f} | {fused / by_peft:.2f} |"
            print(row, flush=True)


def measure(**keys) -> tuple[float, float]:
    """Seconds of a pack with PEFT's layers and with fused ones."""
    trainer = _trainer(**keys)
    batches = [trainer._prepare_inputs(trainer.data_collator([trainer.train_dataset[pack]])) for pack in range(PACKS)]
    seconds: tuple[list[float], list[float]] = [], []
    for _ in range(TURNS):
        for change, found in zip((layers_of_peft, lambda trainer: fuse_lora(trainer.model)), seconds, strict=True):
            change(trainer)
            _step(trainer, batches[0])
            found += [_step(trainer, batch) for batch in batches]
    return statistics.median(seconds[0]), statistics.median(seconds[1])


def _trainer(**keys) -> RecipeTrainer:
    """The demo's trainer without DeepSpeed, three steps in, ready for more."""
    chosen = {"deepspeed": "", "identity_name": "", "report_to": "none", "save_strategy": "no", "max_steps": 3}
    chosen |= {"eval_prompts_steps": 0, "output_dir": tempfile.mkdtemp()} | keys
    flags = [f"--{key}={str(value).lower() if isinstance(value, bool) else value}" for key, value in chosen.items()]
    recipe = load_recipe([str(REPOSITORY / "recipes/demo.yaml"), *flags])
    tokenizer = load_tokenizer(recipe.model.model_name_or_path)
    packs, card = load_dataset(recipe, tokenizer)
    trainer = RecipeTrainer(recipe, load_model(recipe.model), tokenizer, packs, None, {}, card)
    trainer.train()
    trainer.model.train()
    return trainer


def _step(trainer: RecipeTrainer, batch: dict) -> float:
    started = time.perf_counter()
    trainer.training_step(trainer.model_wrapped, dict(batch))
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    seconds = time.perf_counter() - started
    trainer.model.zero_grad()
    return seconds


if __name__ == "__main__":
    main()
