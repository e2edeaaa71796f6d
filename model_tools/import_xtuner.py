"""Write the recipe that an XTuner config comes to, and say what of it has no counterpart.

In: an XTuner config for text SFT (QLoRA, LoRA or full), or mmengine's dump of one. Out: a recipe in YAML. The config is
read, never run. What counts is what XTuner's runner takes, such as `train_dataloader`; names at the top of a config are
only where it comes from.
"""

import argparse
import math
from pathlib import Path
from typing import Any

import yaml

from model_tools.xtuner.config import Config, read_config
from model_tools.xtuner.data import read_data
from model_tools.xtuner.draft import Draft, Part
from model_tools.xtuner.model import read_model
from model_tools.xtuner.optimizer import read_length, read_optimizer
from model_tools.xtuner.runtime import read_runtime
from model_tools.xtuner.schedule import read_schedule
from model_tools.xtuner.values import Unknown, name_of, shown
from sft.config.settings_check import NUMBERS
from sft.core import files
from sft.core.errors import UserError
from sft.core.text import counted, one_line
from sft.core.verbs import add_output

LOADS = "PyTorch and Transformers"

# What XTuner cannot train without.
PARTS = ("model", "train_dataloader", "optim_wrapper", "train_cfg")
OTHER_SPELLINGS = {"warm_up_ratio": "warmup_ratio"}
# The groups of a recipe and the order in them, by how keys begin; a key of no group goes with the training.
GROUPS = {
    "model": ("model_", "dtype", "load_in_", "bnb_", "use_bnb_", "attn_"),
    "adapter (LoRA)": ("use_peft", "lora_", "use_rslora", "use_dora"),
    "data": ("train_file", "max_length", "packing", "shuffle_", "train_sampling_", "data"),
    "training": (
        "num_train_epochs", "max_steps", "per_device_", "gradient_", "fp16", "bf16", "activation_", "optim",
        "learning_rate", "adam_", "weight_decay", "max_grad_norm", "warmup_", "lr_scheduler_", "seed", "", "deepspeed",
    ),
    "logs and evaluation": ("output_dir", "log", "report_to", "run_name", "save_", "eval_"),
}  # fmt: skip


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the verb's arguments to its parser."""
    parser.add_argument("config", type=Path, help="XTuner config, such as internlm2_5_chat_7b_qlora_alpaca_e3_copy.py")
    add_output(parser, "out", help="recipe to write, such as recipes/mine.yaml")


def run(arguments: argparse.Namespace) -> int:
    """Run the verb; returns its exit code."""
    config = read_config(arguments.config)
    _refuse_what_is_no_text_sft(arguments.config, config.values)
    settings, notes = recipe_of(config)
    with files.atomic_write(arguments.out, arguments.config) as file:
        file.write(_recipe_text(arguments.config.name, settings, notes).encode("utf-8"))
    print(f"{arguments.out}: {counted(len(settings), 'setting')} from {arguments.config}")
    for note in notes:
        print(f"  {note}")
    return 0


def _refuse_what_is_no_text_sft(path: Path, config: dict[str, Any]) -> None:
    if config.get("framework", "mmengine") != "mmengine":
        raise UserError(f"{path}: is for Transformers' Trainer (framework); its training_args are keys of a recipe")
    for name in PARTS:
        value = config.get(name)
        if isinstance(value, Unknown):
            advice = "only running the config would tell; write it out as dict(...)"
            raise UserError(f"{path}: {name} = {shown(value)} ({value.place}): {advice}")
        if not isinstance(value, dict):
            raise UserError(f"{path}: sets no {name}: is it a whole XTuner config for text?")
        kind = name_of(value.get("type"))
        if name == "model" and kind == "from_pretrained":
            advice = "XTuner trains dict(type=SupervisedFinetune, llm=...): put it there"
            raise UserError(f"{path}: model.type = {shown(value['type'])}: {advice}")
        if name == "model" and kind not in (None, "SupervisedFinetune"):
            raise UserError(f"{path}: trains a {kind}: only text SFT (SupervisedFinetune) has a counterpart here")


def recipe_of(config: Config) -> tuple[dict[str, Any], list[str]]:
    """The recipe's keys, and a note on each thing of the config that has none."""
    draft = Draft()
    whole = Part(config.values, "", draft)
    precision = read_optimizer(whole)
    length = read_length(whole)
    read_model(whole, precision)
    read_data(whole)
    read_schedule(whole, length)
    read_runtime(whole, length)
    whole.take("framework")
    _note_names_at_top(whole, config.used)
    _drop_what_no_recipe_takes(draft)
    draft.notes += config.remarks
    return draft.settings, [one_line(note) for note in dict.fromkeys(draft.notes)]


def _note_names_at_top(whole: Part, used: set[str]) -> None:
    """Names at the top of a config that say something else than what counts, or that nothing takes."""
    draft = whole.draft
    parts = {name: whole.values[name] for name in whole.taken if name in whole.values}
    # In a dump, where every value is spelled out, names at the top are no longer used by what is below.
    is_dump = not used - parts.keys()
    for name, value in whole.values.items():
        if name in parts or not value:
            continue
        if taken := draft.at_top.get(OTHER_SPELLINGS.get(name, name)):
            path, other = taken
            if not _is_same(value, other):
                instead = f"{path} = {shown(other)} counts" if other is not None else f"nothing takes it ({path})"
                draft.note(f"{whole.shown(name, value)}, at the top: {instead}")
        elif name not in used and not (is_dump and _is_within(value, parts)):
            draft.note(f"{whole.shown(name, value)}: nothing takes it")


def _is_same(value: Any, other: Any) -> bool:
    if isinstance(value, (int, float)) and isinstance(other, (int, float)):
        return math.isclose(value, other, rel_tol=1e-6)
    if isinstance(value, str) and isinstance(other, list):
        return [value] == other
    return value == other or name_of(value) == name_of(other) is not None


def _is_within(value: Any, parts: Any) -> bool:
    children = parts.values() if isinstance(parts, dict) else parts if isinstance(parts, list) else ()
    return any(child == value or _is_within(value, child) for child in children)


def _drop_what_no_recipe_takes(draft: Draft) -> None:
    """Leave out a value that the recipe's parser would refuse, with a note."""
    from sft.config.settings_parser import SettingsParser  # imports TRL, which the other verbs need not wait for

    parser = SettingsParser()
    for key, value in list(draft.settings.items()):
        try:
            parser.value_of(key, value)
            words, fits = NUMBERS.get(key, ("", lambda number: True))
            if isinstance(value, (int, float)) and not (math.isfinite(value) and fits(value)):
                raise ValueError(f"is not {words}")
        except ValueError as problem:
            del draft.settings[key]
            draft.note(f"{key}: {shown(value)}: left out, since no recipe takes it: {problem}")


def _recipe_text(name: str, settings: dict[str, Any], notes: list[str]) -> str:
    lines = [f"# From {name}, an XTuner config.\n"]
    if notes:
        lines.append("#\n# What needs a look, or has no counterpart here:\n")
    lines += [f"#   {note}\n" for note in notes]
    for group in GROUPS:
        keys = sorted((key for key in settings if _place_of(key)[0] == group), key=lambda key: _place_of(key)[1])
        if keys:
            text = yaml.safe_dump({key: settings[key] for key in keys}, allow_unicode=True, sort_keys=False, width=110)
            lines.append(f"\n# --- {group} ---\n{text}")
    return "".join(lines)


def _place_of(key: str) -> tuple[str, int]:
    """The group of a key and its place in it: where the longest beginning stands that fits."""
    fitting = [(len(start), group, place) for group, starts in GROUPS.items() for place, start in enumerate(starts)
               if key.startswith(start)]  # fmt: skip
    return max(fitting)[1:]
