"""Checkpoints that are complete or not there: staged, flushed to the disk, listed in a manifest, then renamed.

In: a staged folder. Out: `checkpoint-N` with a `manifest.json`, and the newest valid one to resume from. Knows nothing
about what the files mean.
"""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

from sft.core.errors import UserError
from sft.core.files import atomic_write, bring_to_disk, file_hash
from sft.core.text import one_line_message

MANIFEST = "manifest.json"
PREFIX = "checkpoint-"
# Names that nobody takes for a checkpoint: of what is being written, what is being deleted, what was found damaged.
UNFINISHED, REMOVED, BROKEN = ".unfinished", ".removed-", "broken-"
# What `atomic_write` leaves of a file where the run is killed meanwhile.
HALF_WRITTEN = ".*.????????"


@dataclass(frozen=True)
class Checkpoint:
    """A valid checkpoint: its folder, its step, how many processes wrote it, and the run's inputs then."""

    folder: Path
    step: int
    processes: int
    inputs: dict[str, Any]


def staging_dir(run: Path) -> Path:
    """The folder in which checkpoints of a run are written before they take their names."""
    return run / UNFINISHED


def publish(run: Path, step: int, processes: int, inputs: dict[str, Any]) -> Path:
    """Add a manifest to the staged checkpoint of a step, and give it its name.

    Replaces one of that name, which a run that was resumed before it has written. Called by one process, when all have
    written.
    """
    written, folder = staging_dir(run) / f"{PREFIX}{step}", run / f"{PREFIX}{step}"
    files = {str(path.relative_to(written)): path for path in sorted(written.rglob("*")) if path.is_file()}
    for path in (*files.values(), *(path for path in written.rglob("*") if path.is_dir())):
        bring_to_disk(path)
    listed = {name: {"bytes": path.stat().st_size, "sha256": file_hash(path)} for name, path in files.items()}
    record = {"step": step, "processes": processes, "inputs": inputs, "files": listed}
    with atomic_write(written / MANIFEST) as file:
        file.write((json.dumps(record, ensure_ascii=False, indent=1) + "\n").encode())
    bring_to_disk(written)
    if folder.exists():
        remove(folder)
    written.replace(folder)
    bring_to_disk(run)
    return folder


def abandon(run: Path, step: int, problem: Exception) -> str:
    """Remove what is staged of a checkpoint that could not be written; returns the message."""
    free = shutil.disk_usage(run).free
    staged = staging_dir(run)
    written = sum(file.stat().st_size for file in staged.rglob("*") if file.is_file())
    shutil.rmtree(staged, ignore_errors=True)
    earlier = in_order(run)
    advice = f"{earlier[-1]} is whole: make room and run the same command to resume from it" if earlier else "make room"
    return (
        f"step {step}: the checkpoint could not be written ({one_line_message(problem, 160)}): it needs more than "
        f"{written / 2**20:,.0f} MiB, {free / 2**20:,.0f} MiB were left; {advice}"
    )


def verify(folder: Path) -> Checkpoint:
    """The checkpoint in a folder, after every file was read and compared with the manifest.

    Raises:
        UserError: it is damaged; says which file is.
    """
    path = folder / MANIFEST
    if not folder.is_dir():
        beside = ", ".join(map(str, in_order(folder.parent))) or "none"
        raise UserError(f"{folder}: no such checkpoint; beside it there is {beside}")
    try:
        record = json.loads(path.read_bytes())
        checkpoint = Checkpoint(folder, int(record["step"]), int(record["processes"]), dict(record["inputs"]))
        files = {name: (entry["bytes"], entry["sha256"]) for name, entry in record["files"].items()}
    except FileNotFoundError:
        raise UserError(f"{folder}: has no {MANIFEST}: it was not written to its end") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as problem:
        raise UserError(f"{path}: cannot be read ({problem})") from None
    for name, (size, digest) in files.items():
        file = folder / name
        if not file.resolve().is_relative_to(folder.resolve()):
            raise UserError(f"{path}: names {name}, which lies elsewhere")
        if not file.is_file():
            raise UserError(f"{file}: is missing")
        if file.stat().st_size != size:
            raise UserError(f"{file}: is {file.stat().st_size:,} bytes and was {size:,}")
        if file_hash(file) != digest:
            raise UserError(f"{file}: is not what was written (its SHA-256 differs)")
    return checkpoint


def latest_valid(run: Path) -> tuple[Checkpoint | None, list[str]]:
    """A run's newest valid checkpoint, and what is wrong with each newer one."""
    skipped: list[str] = []
    for folder in reversed(in_order(run)):
        try:
            return verify(folder), skipped
        except UserError as problem:
            skipped.append(str(problem))
    return None, skipped


def in_order(run: Path) -> list[Path]:
    """The folders that have a checkpoint's name, by their steps."""
    named = [path for path in run.glob(f"{PREFIX}*") if path.is_dir() and path.name.removeprefix(PREFIX).isdecimal()]
    return sorted(named, key=lambda path: int(path.name.removeprefix(PREFIX)))


def rotate(run: Path, limit: int | None, kept: list[Path]) -> None:
    """Remove the checkpoints that were written first until `limit` are left; no limit, or none above 0, removes none.

    The one that was written last and those in `kept` stay whatever the limit is.
    """
    by_age = sorted(in_order(run), key=lambda folder: ((folder / MANIFEST).stat().st_mtime_ns, folder))
    too_many = len(by_age) - limit if limit and limit > 0 else 0
    never_removed = {folder.resolve() for folder in (*kept, *by_age[-1:])}
    for folder in [folder for folder in by_age if folder.resolve() not in never_removed][: max(too_many, 0)]:
        remove(folder)


def remove(folder: Path) -> None:
    """Delete a checkpoint, whose name is gone before its first file is."""
    doomed = folder.with_name(f"{REMOVED}{folder.name}")
    shutil.rmtree(doomed, ignore_errors=True)
    folder.replace(doomed)
    shutil.rmtree(doomed)


def clean_up(run: Path, valid: Path) -> list[str]:
    """Delete what a killed run was writing or deleting, and rename the checkpoints that are damaged.

    Called while no run writes there. `valid` is a checkpoint that was verified already. Returns a line for each
    checkpoint that was renamed.
    """
    renamed = []
    for path in (staging_dir(run), *run.glob(f"{REMOVED}*")):
        shutil.rmtree(path, ignore_errors=True)
    for path in run.glob(HALF_WRITTEN):
        path.unlink()
    for folder in in_order(run):
        if folder == valid:
            continue
        try:
            verify(folder)
        except UserError:
            number = 0
            while (broken := folder.with_name(f"{BROKEN}{folder.name}{f'.{number}' * bool(number)}")).exists():
                number += 1
            folder.replace(broken)
            renamed.append(f"{folder} is damaged; it is now {broken}")
    return renamed


@contextmanager
def read_as_data(folder: str) -> Iterator[None]:
    """While a checkpoint is read, every `torch.load` reads data alone, DeepSpeed's too, which would run code in it.

    Raises:
        UserError: a file asks for anything else; nothing of it was run.
    """
    from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler, LossScaler
    from deepspeed.runtime.zero.config import ZeroStageEnum
    from deepspeed.utils.tensor_fragment import fragment_address

    from sft.models.restricted_pickle import refused_name, weights_only

    # Plain records and numbers, all that DeepSpeed saves beside tensors.
    try:
        with weights_only([DynamicLossScaler, LossScaler, ZeroStageEnum, fragment_address]):
            yield
    except UnpicklingError as problem:
        name = refused_name(problem)
        what = f"asks for {name}" if name else "is no file of data"
        raise UserError(f"{folder}: a file in it {what}; nothing of it was run: do not use this checkpoint") from None
