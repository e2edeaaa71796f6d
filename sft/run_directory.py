"""The run directory: what a run writes down about itself, and what it leaves behind.

In: a recipe and what was measured. Out: `recipe.yaml`, `stack_defaults.json`, `dataset_card.json`, `environment.json`
and `final/`. Knows nothing about how training works.
"""

import dataclasses
import json
import platform
import shlex
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import psutil
import torch
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import get_last_checkpoint

from data_tools.errors import UserError
from sft import model_card
from sft.chat_eval import Answer, read_answers
from sft.clock import clock
from sft.console import say
from sft.dataset import DatasetCard
from sft.recipe import REPOSITORY, SECRET_KEYS, Recipe
from sft.trainer import RecipeTrainer

MODEL_FILES = ("*.safetensors", "*.json", "*.jinja", "*.model", "*.txt")
PACKAGES = ("torch", "transformers", "trl", "peft", "bitsandbytes", "datasets", "accelerate", "deepspeed", "tokenizers")


def open_run(recipe: Recipe, card: DatasetCard) -> None:
    """Make the run directory and write the recipe, the dataset card and the environment into it.

    An earlier run found there is moved aside to `<directory>.1`, `.2`, ... unless this run resumes it. Called by
    the main process alone.

    Raises:
        UserError: the directory cannot be written.
    """
    folder = Path(recipe.training.output_dir)
    try:
        if folder.is_dir() and any(folder.iterdir()) and not recipe.training.resume_from_checkpoint:
            _move_aside(folder)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "recipe.yaml").write_text(recipe.to_yaml(), encoding="utf-8")
        _write_json(folder / "stack_defaults.json", stack_defaults(recipe))
        _write_json(folder / "dataset_card.json", card.to_dict())
        _write_json(folder / "environment.json", environment())
    except OSError as problem:
        raise UserError(f"output_dir: {problem.filename or folder}: {problem.strerror}: name another folder") from None


def checkpoint_to_resume(recipe: Recipe) -> str | None:
    """The checkpoint that `resume_from_checkpoint` names; `true` means the newest of the run directory.

    Raises:
        UserError: there is no such checkpoint.
    """
    wanted, folder = recipe.training.resume_from_checkpoint, recipe.training.output_dir
    if not wanted:
        return None
    if wanted.lower() == "true":
        wanted = get_last_checkpoint(folder) if Path(folder).is_dir() else None
    if not wanted or not Path(wanted).is_dir():
        raise UserError(f"resume_from_checkpoint: {wanted or folder}: holds no checkpoint; leave it out to start anew")
    return wanted


@clock.spent_on("saving")
def save_final(trainer: RecipeTrainer, card: DatasetCard, answers: list[Answer]) -> Path:
    """Write `final/`: the adapter in PEFT's format (or the model), the tokenizer and a model card.

    With `keep_best` it holds the best checkpoint's, which need not be the last one's.
    """
    final = Path(trainer.args.output_dir) / "final"
    best = trainer.state.best_model_checkpoint if trainer.recipe.run.keep_best else None
    if best and trainer.state.best_global_step != trainer.state.global_step:
        if trainer.is_world_process_zero():
            _copy_model(Path(best), final)
            answers = read_answers(final.parent, trainer.state.best_global_step)
            say(f"best checkpoint: step {trainer.state.best_global_step:,} of {trainer.state.global_step:,}")
    else:
        trainer.save_model(str(final))
    if trainer.is_world_process_zero():
        # A pickle of all arguments, tokens for hubs included; nothing that loads the adapter reads it.
        (final / "training_args.bin").unlink(missing_ok=True)
        model_card.write(trainer.recipe, final, card, answers)
    return final


def environment() -> dict:
    """Versions, commit, hardware and command line of this run; no environment variables, which may hold secrets."""
    return {
        "command": _command_line(sys.argv),
        "python": platform.python_version(),
        "packages": {name: metadata.version(name) for name in PACKAGES},
        "commit": _commit(),
        "platform": platform.platform(),
        "processor": platform.processor() or platform.machine(),
        "cores": psutil.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "gpus": [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())],
    }


def stack_defaults(recipe: Recipe) -> dict:
    """What each key that a person set would be had nobody set it."""
    known = {}
    for group in (recipe.run, recipe.model, recipe.training):
        for entry in dataclasses.fields(group):
            makes_its_own = entry.default_factory is not dataclasses.MISSING
            known[entry.name] = entry.default_factory() if makes_its_own else entry.default
    return {key: getattr(known[key], "value", known[key]) for key in recipe.chosen}


def _copy_model(checkpoint: Path, final: Path) -> None:
    """Copy what `save_model` wrote into a checkpoint, and not what only resuming needs."""
    final.mkdir(exist_ok=True)
    for pattern in MODEL_FILES:
        for file in checkpoint.glob(pattern):
            if file.name != TRAINER_STATE_NAME:
                shutil.copyfile(file, final / file.name)


def _move_aside(folder: Path) -> None:
    number = 1
    while (aside := folder.with_name(f"{folder.name}.{number}")).exists():
        number += 1
    folder.rename(aside)
    say(f"{folder} held an earlier run; it is now {aside}")


def _write_json(path: Path, content: dict) -> None:
    path.write_text(json.dumps(content, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")


def _command_line(words: list[str]) -> str:
    """The words as a shell takes them, the values of secret settings hidden."""
    shown, is_value = [], False
    for word in words:
        flag, equals, _ = word.partition("=")
        is_secret = flag.removeprefix("--").replace("-", "_") in SECRET_KEYS
        shown.append("***" if is_value else f"{flag}=***" if is_secret and equals else word)
        is_value = is_secret and not equals
    return shlex.join(shown)


def _commit() -> str | None:
    """The repository's commit, with `+changes` where tracked files differ from it; None outside git."""
    described = subprocess.run(
        ["git", "describe", "--always", "--abbrev=40", "--dirty=+changes", "--exclude=*"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
    )
    return described.stdout.strip() or None
