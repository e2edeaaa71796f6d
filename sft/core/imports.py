"""Imports the stack in less time; what is imported is the same.

In: nothing. Out: nothing. Knows nothing about what is imported.
"""

import gc
import os
from collections.abc import Iterator
from contextlib import contextmanager

COMPILER_SWITCH = "TORCHDYNAMO_DISABLE"


@contextmanager
def importing(*, compiled: bool = False) -> Iterator[None]:
    """Import inside what takes seconds.

    Importing makes some millions of objects that stay: looking for garbage among them is a sixth of the time. With
    `compiled`, packages may compile functions of theirs as they are imported, as bitsandbytes does for devices it has
    no kernels for; without, they leave them as they are, and torch's compiler is not imported, another sixth.
    """
    switch = os.environ.get(COMPILER_SWITCH)
    was_collecting = gc.isenabled()
    gc.disable()
    if not compiled:
        os.environ[COMPILER_SWITCH] = "1"
    try:
        yield
    finally:
        if switch is None:
            os.environ.pop(COMPILER_SWITCH, None)
        else:
            os.environ[COMPILER_SWITCH] = switch
        if was_collecting:
            gc.freeze()
            gc.enable()
