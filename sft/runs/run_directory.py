"""The run directory: what a run writes down about itself, and what it leaves behind.

In: a recipe, its dataset card and its plan. Out: where the run begins; `recipe.yaml`, `stack_defaults.json`,
`dataset_card.json`, `environment.json` and `plan.json`. Knows nothing about how training works.
"""

import dataclasses
import os
import platform
import shlex
import subprocess
import sys
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil
import torch

from sft.config.recipe import SECRET_KEYS, Recipe
from sft.core.console import say
from sft.core.errors import UserError
from sft.core.files import exclusive_lock
from sft.core.paths import REPOSITORY
from sft.core.text import counted
from sft.data.dataset_card import DatasetCard
from sft.runs import checkpoints, run_files
from sft.runs.checkpoints import Checkpoint
from sft.runs.inputs import DATE, Digests, changes, inputs_of

PACKAGES = ("torch", "transformers", "trl", "peft", "bitsandbytes", "datasets", "accelerate", "deepspeed", "tokenizers")


@dataclass(frozen=True)
class StartPoint:
    """How a run begins: from a checkpoint (None: anew), what decides how it comes out, and lines to print."""

    checkpoint: Checkpoint | None
    inputs: dict[str, Any]
    notes: list[str]


def lock(output_dir: str) -> None:
    """Keep every other run out of a run directory until this process ends, however it ends.

    Raises:
        UserError: another run is there, or no file can be written beside the directory.
    """
    folder = Path(output_dir)
    path = folder.with_name(f".{folder.name}.lock")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = exclusive_lock(path)
        if file is None:
            owner = path.read_text(encoding="utf-8", errors="replace").strip()
            raise UserError(
                f"output_dir: {folder}: another run (process {owner}) is writing there: wait for it, or name another"
            )
        file.truncate(0)
        file.write(f"{os.getpid()}\n".encode())
    except OSError as problem:
        raise UserError(_unwritable(folder, problem)) from None


def find_start(recipe: Recipe) -> StartPoint:
    """Where this run begins, as `resume` says and as the run directory allows.

    Raises:
        UserError: there is an unfinished run of other settings or data, the named checkpoint is not whole, or it was
            written by another number of processes.
    """
    resume, folder = recipe.run.resume, Path(recipe.training.output_dir)
    inputs = inputs_of(recipe, Digests())
    if resume == "never":
        return StartPoint(None, inputs, [])
    skipped: list[str] = []
    checkpoint: Checkpoint | None
    if resume != "auto":
        checkpoint = checkpoints.verify(Path(resume))
    elif (folder / run_files.FINAL).is_dir() or not checkpoints.in_order(folder):
        return StartPoint(None, inputs, [])
    else:
        checkpoint, skipped = checkpoints.latest_valid(folder)
        if not checkpoint:
            return StartPoint(None, inputs, [f"no checkpoint to resume from: {reason}" for reason in skipped])
    notes = [f"skipped: {reason}" for reason in skipped]
    never = f"--resume never keeps {folder} aside and starts anew"
    inputs[DATE] = checkpoint.inputs.get(DATE, inputs[DATE])
    if differences := changes(checkpoint.inputs | {DATE: inputs[DATE]}, inputs):
        listed = "; ".join(differences)
        if not recipe.run.resume_anyway:
            raise UserError(
                f"{checkpoint.folder}: was written with other settings or data ({listed}): --resume_anyway resumes "
                f"with the new ones, {never}"
            )
        notes.append(f"resuming nevertheless (resume_anyway): {listed}")
    if checkpoint.inputs.get("save_only_model"):
        raise UserError(
            f"{checkpoint.folder}: holds the weights alone (save_only_model), and a run needs its optimizer's state to "
            f"resume: {never}"
        )
    if checkpoint.processes != recipe.training.world_size:
        raise UserError(
            f"{checkpoint.folder}: was written by {counted(checkpoint.processes, 'process')}, and this run has "
            f"{recipe.training.world_size}: start it with as many, or {never}"
        )
    return StartPoint(checkpoint, inputs, [*notes, f"resuming from {checkpoint.folder}"])


def open_run(recipe: Recipe, card: DatasetCard, start: StartPoint, plan: dict[str, Any]) -> None:
    """Make the run directory and write the recipe, the dataset card, the environment and last the plan into it.

    An earlier run found there is moved aside to `<directory>.1`, `.2`, ... unless this run resumes it; then what it
    recorded after the checkpoint is removed, and so is its `result.json`, which would be taken for this run's. Called
    by the main process alone.

    Raises:
        UserError: the directory cannot be written.
    """
    folder = Path(recipe.training.output_dir)
    try:
        if start.checkpoint is None and _holds_run(folder):
            _move_aside(folder)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / run_files.RESULT).unlink(missing_ok=True)
        if start.checkpoint:
            for renamed in checkpoints.clean_up(folder, start.checkpoint.folder):
                say(renamed)
            run_files.cut_back(folder, start.checkpoint.step)
        (folder / run_files.RECIPE).write_text(recipe.to_yaml(), encoding="utf-8")
        run_files.write_json(folder / run_files.STACK_DEFAULTS, stack_defaults(recipe))
        run_files.write_json(folder / run_files.CARD, card.to_dict())
        run_files.write_json(folder / run_files.ENVIRONMENT, environment())
        run_files.write_json(folder / run_files.PLAN, plan)
    except OSError as problem:
        raise UserError(_unwritable(folder, problem)) from None


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
    defaults = {}
    for group in (recipe.run, recipe.model, recipe.training):
        for entry in dataclasses.fields(group):
            makes_default = entry.default_factory
            defaults[entry.name] = entry.default if makes_default is dataclasses.MISSING else makes_default()
    return {key: getattr(defaults[key], "value", defaults[key]) for key in recipe.chosen}


def _holds_run(folder: Path) -> bool:
    """Whether a run began or ended there; what else is in a folder, such as a log that a shell writes, stays."""
    of_a_run = (run_files.RECIPE, run_files.FINAL, f"{checkpoints.PREFIX}*", checkpoints.UNFINISHED)
    return any(any(folder.glob(name)) for name in of_a_run)


def _move_aside(folder: Path) -> None:
    number = 1
    while (aside := folder.with_name(f"{folder.name}.{number}")).exists():
        number += 1
    folder.rename(aside)
    say(f"{folder} held an earlier run; it is now {aside}")


def _unwritable(folder: Path, problem: OSError) -> str:
    return f"output_dir: {problem.filename or folder}: {problem.strerror}: name another folder"


def _command_line(words: list[str]) -> str:
    """The words as a shell takes them, the values of secret settings hidden, without what DeepSpeed's launcher adds."""
    shown, is_value = [], False
    for word in words:
        if word.startswith("--local_rank="):
            continue
        flag, equals, _ = word.partition("=")
        is_secret = flag.removeprefix("--").replace("-", "_") in SECRET_KEYS
        shown.append("***" if is_value else f"{flag}=***" if is_secret and equals else word)
        is_value = is_secret and not equals
    return shlex.join(shown)


def _commit() -> str | None:
    """The repository's commit, with `+changes` where tracked files differ from it; None outside or without git."""
    command = ["git", "describe", "--always", "--abbrev=40", "--dirty=+changes", "--exclude=*"]
    try:
        described = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    except OSError:  # there is no git on this machine
        return None
    return described.stdout.strip() or None
