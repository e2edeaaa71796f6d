"""Explains in one line, with the key that it is about, what the stack raises in the middle of a run.

In: a recipe, and what is done by it. Out: the same, or `RunFailed` in place of an exception of the stack's; the whole
traceback goes into a file. An exception that our own code raises is a bug and keeps its traceback.
"""

import linecache
import os
import re
import tempfile
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch

from sft.config.recipe import Recipe
from sft.core.errors import RunFailed, UserError
from sft.core.exit_codes import lost_a_peer
from sft.core.paths import REPOSITORY
from sft.core.text import one_line_message

LONGEST = 300
# Raised at our lines too, since what raises it is not written in Python.
OF_THE_MACHINE = (OSError, torch.AcceleratorError)


@contextmanager
def explain(recipe: Recipe, folder: Path | None = None) -> Iterator[None]:
    """Do something by a recipe; tracebacks go into a folder, or where the system keeps files for a while.

    Raises:
        UserError: as it comes; where it begins with a key of the recipe, with the place of that before it.
        RunFailed: in place of what the stack raises.
    """
    try:
        yield
    except UserError as problem:
        place = recipe.places.get(str(problem).partition(":")[0])
        if place is None:
            raise
        raise UserError(f"{place}: {problem}") from None
    except Exception as problem:
        frames = traceback.extract_tb(problem.__traceback__)
        if lost_a_peer(problem) or (_is_ours(frames[-1]) and not isinstance(problem, OF_THE_MACHINE)):
            raise
        raise RunFailed(_line(recipe, problem, frames, _keep(problem, folder))) from problem


def _line(recipe: Recipe, problem: Exception, frames: traceback.StackSummary, traceback_file: Path) -> str:
    reason = one_line_message(problem, LONGEST).rstrip(".") or "no reason given"
    key = _key(recipe, reason, frames)
    if key is None:
        return f"{type(problem).__name__}: {reason}: no key of the recipe is named in it; see {traceback_file}"
    return (
        f"{recipe.places[key]}: {key}: {reason} ({type(problem).__name__}): change it, or leave it out; see "
        f"{traceback_file}"
    )


def _key(recipe: Recipe, reason: str, frames: traceback.StackSummary) -> str | None:
    """The key that was set and is named: in the reason, or else by the lines that raised it, the innermost first.

    A key that is a common word, such as packing, has to stand in quotes.
    """
    lines = [_source(frame) for frame in reversed(frames)]
    texts = [
        re.findall(r"\w+_\w+|(?<=['\"`])\w+(?=['\"`])", reason),
        *(re.findall(r"\bargs\.(\w+)", line) for line in lines),
    ]
    return next((name for words in texts for name in words if name in recipe.places), None)


def _source(frame: traceback.FrameSummary) -> str:
    """The statement that a frame is at, and the line before it, which is often the `if` that it hangs on."""
    first = frame.lineno or 1
    numbers = range(first - 1, (frame.end_lineno or first) + 1)
    return "".join(linecache.getline(frame.filename, number) for number in numbers)


def _is_ours(frame: traceback.FrameSummary) -> bool:
    path = Path(frame.filename)
    return path.is_relative_to(REPOSITORY) and "site-packages" not in path.parts


def _keep(problem: Exception, folder: Path | None) -> Path:
    """Write the traceback down; returns the file."""
    text = "".join(traceback.format_exception(problem))
    name = f"traceback-{os.environ.get('RANK', '0')}.txt"
    if folder:
        with suppress(OSError):  # of a disk that is full, which may be the problem itself
            (folder / name).write_text(text, encoding="utf-8")
            return folder / name
    path = Path(tempfile.mkdtemp(prefix="train_sft-"), name)
    path.write_text(text, encoding="utf-8")
    return path
