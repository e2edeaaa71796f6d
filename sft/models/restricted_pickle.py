"""Reads what `torch.save` wrote as data alone: tensors and plain values come back, and nothing of the file is run.

In: a file somebody gave. Out: what it holds. The reading and refusing is done by torch's own weights-only unpickler;
this module only says which foreign names it may pass over, and puts a placeholder in the place of each.
"""

import os
import pickle
import pickletools
import re
import warnings
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from sft.core.errors import UserError

FORCE, FORCE_NOT = "TORCH_FORCE_WEIGHTS_ONLY_LOAD", "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"
# Whose objects stand in checkpoints beside the weights: logs of XTuner's run, options, numbers. None is needed.
HARMLESS = ("mmengine.", "xtuner.", "deepspeed.", "numpy.")
# torch's older format is five pickles in a row, of which the fourth is what was saved.
PICKLES_OF_OLDER_FORMAT = 5


class Placeholder:
    """Stands for a foreign object or function: takes whatever it is called with and keeps nothing of it."""

    def __new__(cls, *_, **__):
        return super().__new__(cls)

    def __setstate__(self, state):
        pass


def load_data(file: Path) -> object:
    """What a file of `torch.save` holds, on the CPU, its tensors mapped and not read where its format allows.

    Raises:
        UserError: the file is damaged, or asks for a name that is no data; nothing of it was run.
    """
    import torch

    with only_data(file):
        return torch.load(file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file))


@contextmanager
def only_data(*files: Path) -> Iterator[None]:
    """Inside, every `torch.load` is of data only, whatever its caller asks for; made for reading these files.

    Raises:
        UserError: what is read is damaged, or asks for a name that is no data; names the first of the files.
    """
    names: set[str] = set().union(*map(_names, files))
    stand_ins = dict.fromkeys([name for name in names if name.startswith(HARMLESS)], Placeholder) | STAND_INS
    try:
        with weights_only([(stand_in, name) for name, stand_in in stand_ins.items()]), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except UserError:
        raise
    except Exception as problem:
        # A malicious file, or half a file, can make an unpickler fail in any way.
        raise UserError(_refusal(files[0], problem)) from None


@contextmanager
def weights_only(allowed: list) -> Iterator[None]:
    """Inside, every `torch.load` reads data only; `allowed` is what torch's `safe_globals` takes."""
    from torch.serialization import safe_globals

    variables = {name: os.environ.pop(name, None) for name in (FORCE, FORCE_NOT)}
    os.environ[FORCE] = "1"
    try:
        with safe_globals(allowed):
            yield
    finally:
        os.environ.pop(FORCE)
        os.environ.update({name: value for name, value in variables.items() if value is not None})


def refused_name(problem: Exception) -> str | None:
    """The name that a file asked for and was refused, of what torch raised; None where it was something else."""
    refused = re.search(r"GLOBAL (\S+)", str(problem))
    return refused[1] if refused else None


def _names(file: Path) -> set[str]:
    """The dotted names a file asks for, read off without obeying; of a damaged file as far as they can be seen.

    What this overlooks is refused by torch, so that no harm comes of it.
    """
    names = set()
    with suppress(Exception), open(file, "rb") as opened:
        pickles: list[IO[bytes]] = [opened] * PICKLES_OF_OLDER_FORMAT
        if zipfile.is_zipfile(opened):
            archive = zipfile.ZipFile(opened)
            pickles = [archive.open(name) for name in archive.namelist() if name.endswith("data.pkl")]
        else:
            opened.seek(0)
        for each in pickles:
            names |= {
                str(argument).replace(" ", ".")
                for code, argument, _ in pickletools.genops(each)
                if code.name == "GLOBAL"
            }
    return names


def _refusal(file: Path, problem: Exception) -> str:
    if name := refused_name(problem):
        return f"{file}: asks for {name}, which is no data; nothing of it was run: do not use this file"
    reason = f"{type(problem).__name__}: {str(problem).splitlines()[0]}" if str(problem) else type(problem).__name__
    return f"{file}: is damaged, or no file of weights ({reason[:100]}): copy or write it again"


def _attribute(owner: object, name: str) -> Placeholder:
    """In the place of `getattr`, by which pickles name methods of the log's class; gets nothing from anything."""
    if owner is not Placeholder:
        raise pickle.UnpicklingError("GLOBAL builtins.getattr")
    return Placeholder()


def _dict(*_) -> dict:
    return {}


def _list(items=(), *_) -> list:
    return list(items)


STAND_INS = {
    "builtins.getattr": _attribute,
    "collections.defaultdict": _dict,
    "collections.deque": _list,
    "deepspeed.runtime.zero.config.ZeroStageEnum": int,
} | {f"builtins.{plain.__name__}": plain for plain in (bool, dict, float, int, list, str)}
