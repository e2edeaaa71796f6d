"""Reads what `torch.save` wrote without running anything of it: tensors and plain data come back, all else stays empty.

In: a file somebody gave. Out: what it holds. The reading and refusing is done by torch's own weights-only unpickler;
here is only told which foreign names it may pass over, and that an empty object stands for each of them.
"""

import pickle
import pickletools
import warnings
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch

from sft.core.errors import UserError
from sft.models.weights_only import refused_name, weights_only

# Whose objects stand in checkpoints beside the weights: logs of XTuner's run, options, numbers. None is needed.
HARMLESS = ("mmengine.", "xtuner.", "deepspeed.", "numpy.")
# torch's older format is five pickles in a row, of which the fourth is what was saved.
PICKLES_OF_OLDER_FORMAT = 5


class Inert:
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
    with only_data(file):
        return torch.load(file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file))


@contextmanager
def only_data(*files: Path) -> Iterator[None]:
    """Inside, every `torch.load` is of data only, whatever its caller asks for; made for reading these files.

    Raises:
        UserError: what is read is damaged, or asks for a name that is no data; names the first of the files.
    """
    names = set().union(*map(_names, files))
    stand_ins = dict.fromkeys([name for name in names if name.startswith(HARMLESS)], Inert) | STAND_INS
    try:
        with weights_only([(stand_in, name) for name, stand_in in stand_ins.items()]), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except UserError:
        raise
    except Exception as problem:
        # A file made to do harm, or half a file, can make an unpickler fail in any way.
        raise UserError(_told(files[0], problem)) from None


def _names(file: Path) -> set[str]:
    """The dotted names a file asks for, read off without obeying; of a damaged file as far as they can be seen.

    What this overlooks is refused by torch, so that no harm comes of it.
    """
    found = set()
    with suppress(Exception), open(file, "rb") as opened:
        if zipfile.is_zipfile(opened):
            archive = zipfile.ZipFile(opened)
            pickles = [archive.open(name) for name in archive.namelist() if name.endswith("data.pkl")]
        else:
            opened.seek(0)
            pickles = [opened] * PICKLES_OF_OLDER_FORMAT
        for each in pickles:
            found |= {
                argument.replace(" ", ".") for code, argument, _ in pickletools.genops(each) if code.name == "GLOBAL"
            }
    return found


def _told(file: Path, problem: Exception) -> str:
    if name := refused_name(problem):
        return f"{file}: asks for {name}, which is no data; nothing of it was run: do not use this file"
    reason = f"{type(problem).__name__}: {str(problem).splitlines()[0]}" if str(problem) else type(problem).__name__
    return f"{file}: is damaged, or no file of weights ({reason[:100]}): copy or write it again"


def _attribute(owner: object, name: str) -> Inert:
    """In the place of `getattr`, by which pickles name methods of the log's class; gets nothing from anything."""
    if owner is not Inert:
        raise pickle.UnpicklingError("GLOBAL builtins.getattr")
    return Inert()


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
