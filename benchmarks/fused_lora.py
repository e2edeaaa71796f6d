"""What fused LoRA layers are worth on this machine: forward and backward of the demo's packs, alternating with PEFT's.

    python -m benchmarks.fused_lora

One process and one model; the layers are switched after every six packs, so that other load on the machine affects both
alike. Medians of all packs, and what the first pack keeps for its backward pass.
"""

import statistics
import tempfile
import time

import torch
from torch.autograd.graph import saved_tensors_hooks

from benchmarks.ablations import use_peft_layers
from benchmarks.step_profile import wait_for_device
from sft.config.settings import read_settings
from sft.core.console import quiet_the_stack
from sft.core.paths import REPOSITORY
from sft.data.dataset import load_dataset
from sft.models.fused_lora import fuse_lora
from sft.models.loading import load_model, load_tokenizer
from sft.training import launch
from sft.training.trainer import RecipeTrainer

PACKS, TURNS = 6, 12
MIB = 2**20
LAYERS = (use_peft_layers, lambda trainer: fuse_lora(trainer.model))


def main() -> None:
    """Print a row for each way to recompute and drop out."""
    quiet_the_stack()
    print("| activation_checkpointing | lora_dropout | PEFT's layers, s | fused, s | ratio | kept, MiB | fused |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for recomputes in (False, True):
        for dropout in (0.0, 0.1):
            (by_peft, fused), kept = measure(activation_checkpointing=recomputes, lora_dropout=dropout)
            times = f"{by_peft:.2f} | {fused:.2f} | {fused / by_peft:.2f}"
            sizes = " | ".join(f"{size / MIB:.0f}" for size in kept)
            print(f"| {str(recomputes).lower()} | {dropout:g} | {times} | {sizes} |", flush=True)


def measure(**keys) -> tuple[list[float], list[int]]:
    """Median seconds of a pack with PEFT's layers and with fused ones, and the bytes that its forward pass keeps."""
    trainer = _trainer(**keys)
    batches = [trainer._prepare_inputs(trainer.data_collator([trainer.train_dataset[pack]])) for pack in range(PACKS)]
    seconds: tuple[list[float], list[float]] = ([], [])
    kept: list[int] = []
    for _ in range(TURNS):
        for change, times in zip(LAYERS, seconds, strict=True):
            change(trainer)
            _step(trainer, batches[0])
            times += [_step(trainer, batch) for batch in batches]
    for change in LAYERS:
        change(trainer)
        kept.append(_kept(trainer, batches[0]))
    return [statistics.median(times) for times in seconds], kept


def _trainer(**keys) -> RecipeTrainer:
    """The demo's trainer without DeepSpeed, three steps in, ready for more."""
    chosen = {"deepspeed": "", "identity_name": "", "report_to": "none", "save_strategy": "no", "max_steps": 3}
    chosen |= {"eval_prompts_steps": 0, "output_dir": tempfile.mkdtemp()} | keys
    flags = [f"--{key}={str(value).lower() if isinstance(value, bool) else value}" for key, value in chosen.items()]
    recipe = launch.start(read_settings([str(REPOSITORY / "recipes/demo.yaml"), *flags]))
    tokenizer = load_tokenizer(recipe.model.model_name_or_path)
    packs, card = load_dataset(recipe, tokenizer)
    trainer = RecipeTrainer(recipe, load_model(recipe.model), tokenizer, packs, None, {}, card)
    trainer.train()
    trainer.model.train()
    return trainer


def _kept(trainer: RecipeTrainer, batch: dict) -> int:
    """Bytes that autograd keeps of a forward pass, beside parameters and buffers."""
    own = {tensor.untyped_storage().data_ptr() for tensor in (*trainer.model.parameters(), *trainer.model.buffers())}
    storages = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            storages[storage.data_ptr()] = storage
        return tensor

    with saved_tensors_hooks(note, lambda tensor: tensor), trainer.compute_loss_context_manager():
        trainer.compute_loss(trainer.model, dict(batch))
    return sum(storage.nbytes() for storage in storages.values())


def _step(trainer: RecipeTrainer, batch: dict) -> float:
    started = time.perf_counter()
    trainer.training_step(trainer.model_wrapped, dict(batch))
    wait_for_device()
    seconds = time.perf_counter() - started
    trainer.model.zero_grad()
    return seconds


if __name__ == "__main__":
    main()
