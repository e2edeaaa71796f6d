"""What larger models, more cards and longer samples take: the tables of docs/scaling.md.

    python -m benchmarks.scaling

Memory is what a run's plan predicts, of models that are nothing but a configuration; speed is counted in operations.
No weights, no GPU and no network are needed, and nothing here was measured on a GPU.
"""

import json
import tempfile
from dataclasses import fields
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from trl import ModelConfig, SFTConfig

from benchmarks.operations import PEAKS, operations, sizes_of
from benchmarks.shapes import SHAPES
from sft.core.console import quiet_the_stack
from sft.data.dataset_card import DatasetCard
from sft.models.meta_model import MetaModel
from sft.training.gpu import usable_bytes
from sft.training.memory import GIB, Memory, predict_memory

MODELS = ("InternLM2.5-7B", "InternLM2.5-20B", "Llama-3-70B")
COUNTS, CARDS_GB = (1, 2, 8), (16, 24, 48, 80)
SHORT, LONG = 2048, 32768

# Ways to hold the base model, by the name the table gives them.
HALF, FOUR = {"load_in_4bit": False}, {"load_in_4bit": True, "use_bnb_nested_quant": True}
DIVISIBLE = {"bnb_4bit_quant_storage": "bfloat16"}
WAYS = {
    "16 bits": HALF | {"deepspeed": "ds_configs/zero2.json"},
    "16 bits, divided": HALF | {"deepspeed": "ds_configs/zero3.json"},
    "4 bits": FOUR | {"deepspeed": "ds_configs/zero2.json"},
    "4 bits, divided": FOUR | DIVISIBLE | {"deepspeed": "ds_configs/zero3.json"},
    "4 bits, offloaded": FOUR | {"deepspeed": "ds_configs/zero2_offload.json"},
    "4 bits, divided, offloaded": FOUR | DIVISIBLE | {"deepspeed": "ds_configs/zero3_offload.json"},
}
# The fastest first: the first that fits a card is what the table has for it.
ON_ONE = ("16 bits", "4 bits", "4 bits, offloaded")
ON_SEVERAL = ("16 bits", "16 bits, divided", "4 bits", "4 bits, divided", "4 bits, divided, offloaded")
BASE = {"lora_r": 64, "activation_checkpointing": True, "attn_implementation": "sdpa"}

# The share of a card's peak that a run is assumed to reach.
UTILISATION = 0.35
CARDS = {"RTX 4090": "RTX 4090", "A100": "A100", "H100, H200": "H100"}  # as the table calls them
SAMPLE = 512  # tokens of a sample, which alone its tokens attend to

# The best keys for a long sample, and the same run without them, beside what Unsloth's README has as the longest
# context of Llama 3.1 8B in 4 bits (LoRA r 32 on all linear layers, batch 1), measured by Unsloth: its own, and that of
# Transformers with FlashAttention-2.
BEST = {
    "activation_checkpointing": True,
    "activation_offloading": True,
    "lora_dropout": 0.0,
    "optim": "adamw_8bit",
}
PLAIN = {"activation_checkpointing": False, "optim": "adamw_torch"}
UNSLOTH = {
    8: (2_972, "out of memory"),
    12: (21_848, "932"),
    16: (40_724, "2,551"),
    24: (78_475, "5,789"),
    80: (342_733, "28,454"),
}
STEP = 256  # tokens, to which the longest context is found


def main() -> None:
    """Print the tables."""
    quiet_the_stack()
    for table in (ways(), cards_and_ways(), tokens_per_second(), longer_samples(), longest_context()):
        print("\n".join(table), end="\n\n", flush=True)


def ways() -> list[str]:
    """The recipe keys behind the names of the next table."""
    lines = ["| name | keys |", "| --- | --- |"]
    for name, keys in WAYS.items():
        shown = (f"`{key}: {str(value).lower()}`" for key, value in keys.items() if value is not False)
        lines.append(f"| {name} | {', '.join(shown)} |")
    return lines


def cards_and_ways() -> list[str]:
    """Per model and cards, the fastest way that fits, and the GiB a card it takes."""
    lines = [f"| model | cards | one sequence of {SHORT:,} tokens | of {LONG:,} |", "| --- | --- | --- | --- |"]
    for model in MODELS:
        for count in COUNTS:
            for card in CARDS_GB:
                found = [_fastest(model, count, card, tokens) for tokens in (SHORT, LONG)]
                lines.append(f"| {model} | {count} x {card} GB | {' | '.join(found)} |")
    return lines


def tokens_per_second() -> list[str]:
    """Operations a token by what they are for, and the tokens a second that come of them."""
    lines = [
        f"| model | base, TFLOP a 1,000 tokens | adapter | attention | {' | '.join(CARDS)} |",
        f"| --- | --- | --- | --- |{' --- |' * len(CARDS)}",
    ]
    for model in MODELS:
        parts = operations_a_token(model, SAMPLE)
        speeds = [f"{UTILISATION * PEAKS[card] * 1e12 / sum(parts):,.0f}" for card in CARDS.values()]
        lines.append(f"| {model} | {' | '.join(f'{part / 1e9:,.2f}' for part in parts)} | {' | '.join(speeds)} |")
    return lines


def longer_samples() -> list[str]:
    """What one sequence of so many tokens takes on one card, by the keys that matter to it."""
    kept = WAYS["4 bits"]
    runs = {
        "as it stands": kept,
        "`attn_implementation: eager`": kept | {"attn_implementation": "eager"},
        "`lora_dropout: 0`": kept | {"lora_dropout": 0.0},
        "the same, `activation_offloading: true`": kept | {"lora_dropout": 0.0, "activation_offloading": True},
        "`activation_checkpointing: false`": kept | {"activation_checkpointing": False},
    }
    lengths = (2048, 8192, 32768, 131072)
    lines = [
        f"| InternLM2.5-7B, 4 bits, 1 card | {' | '.join(f'{length:,}' for length in lengths)} |",
        f"| --- |{' --- |' * len(lengths)}",
    ]
    for name, keys in runs.items():
        sizes = (peak("InternLM2.5-7B", 1, length, **keys) / GIB for length in lengths)
        lines.append(f"| {name} | {' | '.join(f'{size:,.1f}' for size in sizes)} |")
    return lines


def longest_context() -> list[str]:
    """Beside what Unsloth publishes, the longest sample that a whole card is predicted to hold."""
    lines = [
        "| card | predicted, best keys | predicted, without them | Unsloth | Transformers + FlashAttention-2 |",
        "| --- | --- | --- | --- | --- |",
    ]
    for card, (unsloth, transformers) in UNSLOTH.items():
        found = [longest_predicted(usable_bytes(card * GIB), **FOUR, **keys, lora_r=32) for keys in (BEST, PLAIN)]
        ours = " | ".join(f"{tokens:,}" if tokens else "none" for tokens in found)
        lines.append(f"| {card} GB | {ours} | {unsloth:,} | {transformers} |")
    return lines


def peak(model: str, count: int, tokens: int, **keys) -> int:
    """The predicted peak of each of `count` cards, in bytes, of one sequence of so many tokens a step."""
    return predicted(model, count, tokens, tuple(sorted(keys.items()))).peak


@cache
def predicted(model: str, count: int, tokens: int, keys: tuple[tuple[str, Any], ...]) -> Memory:
    """What a run's plan would say; `keys` are a recipe's."""
    keys = BASE | dict(keys)
    training = SFTConfig(
        output_dir="none", max_length=tokens, per_device_train_batch_size=1, report_to="none", use_cpu=True, bf16=True
    )
    training.packing = keys.pop("packing", True)
    # What cannot be parsed without a GPU and several processes.
    training.distributed_state = SimpleNamespace(num_processes=count)
    for key in ("deepspeed", "activation_checkpointing", "activation_offloading", "optim"):
        if key in keys:
            setattr(training, key, keys.pop(key))
    hollow = hollow_model(model, tuple(sorted(keys.items())))
    run = SimpleNamespace(identity_name="", eval_prompts=[])
    recipe = SimpleNamespace(model=hollow.settings, training=training, run=run)
    return predict_memory(recipe, _card(tokens), on_gpu=True, model=hollow)


@cache
def hollow_model(model: str, keys: tuple[tuple[str, Any], ...]) -> MetaModel:
    """The model without its weights, from a configuration that is written for it."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "config.json").write_text(json.dumps(SHAPES[model] | {"dtype": "bfloat16"}), encoding="utf-8")
        settings = ModelConfig(
            model_name_or_path=folder, dtype="bfloat16", use_peft=True, lora_target_modules="all-linear", **dict(keys)
        )
        return MetaModel(settings)


def operations_a_token(model: str, sample: int) -> tuple[float, ...]:
    """Of the frozen weights, of the adapter and of attention, under activation checkpointing, all tokens supervised."""
    sizes = sizes_of(hollow_model(model, (("lora_r", BASE["lora_r"]),)))
    return tuple(part / sample for part in operations(sizes, [sample], sample, recomputes=True))


def longest_predicted(available: int, **keys) -> int:
    """The most tokens of one sample that so many bytes are predicted to hold, to a multiple of `STEP`; 0 for none."""
    short, long = 0, 2**20 // STEP
    while long - short > 1:
        middle = (short + long) // 2
        fits = peak("Llama-3.1-8B", 1, middle * STEP, packing=False, **keys) <= available
        short, long = (middle, long) if fits else (short, middle)
    return short * STEP


def _fastest(model: str, count: int, card: int, tokens: int) -> str:
    for way in ON_ONE if count == 1 else ON_SEVERAL:
        needed = peak(model, count, tokens, **WAYS[way])
        if needed <= usable_bytes(card * GIB):
            return f"{way}: {needed / GIB:.1f}"
    return "too small"


def _card(tokens: int) -> DatasetCard:
    """The card of data whose every sequence is full; of it, the prediction looks at the tokens alone."""
    counts = dict.fromkeys((field.name for field in fields(DatasetCard)), 0)
    return DatasetCard(
        **counts | dict.fromkeys(("tokens", "supervised_tokens", "longest_sample", "max_length"), tokens)
    )  # type: ignore[arg-type]


if __name__ == "__main__":
    main()
