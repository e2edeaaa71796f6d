"""Imports the stack in less time; what is imported is the same.

In: nothing. Out: nothing. Knows nothing about what is imported.
"""

import functools
import gc
import os
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata

COMPILER_SWITCH = "TORCHDYNAMO_DISABLE"


@contextmanager
def importing() -> Iterator[None]:
    """Import inside what takes seconds.

    Importing makes some millions of objects that stay: looking for garbage among them is a sixth of the time. Functions
    that a package would have compiled when they are first called stay as they are, and torch's compiler is not
    imported, another sixth: they are bitsandbytes' for devices that it has no kernels for. Which packages are installed
    is looked up once, where Transformers and TRL do so each for itself.
    """
    switch, look_up = os.environ.get(COMPILER_SWITCH), metadata.packages_distributions
    was_collecting = gc.isenabled()
    gc.disable()
    os.environ[COMPILER_SWITCH] = "1"
    metadata.packages_distributions = functools.cache(look_up)
    try:
        yield
    finally:
        metadata.packages_distributions = look_up
        if switch is None:
            os.environ.pop(COMPILER_SWITCH, None)
        else:
            os.environ[COMPILER_SWITCH] = switch
        if was_collecting:
            gc.freeze()
            gc.enable()
