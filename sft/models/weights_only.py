"""Lets torch read files as data alone: tensors and plain values, and nothing of them is run.

In: which names a file may ask for. Out: every `torch.load` inside is torch's own weights-only unpickler, whatever its
caller asks for.
"""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager

from torch.serialization import safe_globals

FORCE, FORCE_NOT = "TORCH_FORCE_WEIGHTS_ONLY_LOAD", "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"


@contextmanager
def weights_only(allowed: list) -> Iterator[None]:
    """Inside, every `torch.load` reads data only; `allowed` is what torch's `safe_globals` takes."""
    kept = {name: os.environ.pop(name, None) for name in (FORCE, FORCE_NOT)}
    os.environ[FORCE] = "1"
    try:
        with safe_globals(allowed):
            yield
    finally:
        os.environ.pop(FORCE)
        os.environ.update({name: value for name, value in kept.items() if value is not None})


def refused_name(problem: Exception) -> str | None:
    """The name that a file asked for and was refused, of what torch raised; None where it was something else."""
    refused = re.search(r"GLOBAL (\S+)", str(problem))
    return refused[1] if refused else None
