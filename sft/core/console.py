"""What a person sees while a run goes on: plain English lines, from the main process only.

Knows nothing about training; other modules hand it finished sentences.
"""

import logging
import os
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console

# Wide and unwrapped where no terminal sets the width, so that a log file keeps one line a line.
console = Console(highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else 200)

# Loggers whose warnings a person who runs a recipe can do nothing about: which kernels a package lacks,
# that a process group was or was not found, that a scheduler stepped first.
CHATTY_LOGGERS = ("bitsandbytes", "DeepSpeed", "torch.distributed", "accelerate", "torchao", "httpx", "numexpr")


# Seconds that something may take before it says what it is.
SILENCE = 1.0


def is_main_process() -> bool:
    """Whether this process is rank 0, as the launcher's environment has it."""
    return os.environ.get("RANK", "0") == "0"


def say(text: str = "", **style) -> None:
    """Print one piece of text, on the main process only."""
    if is_main_process():
        console.print(text, **style, markup=False)


@contextmanager
def waiting(text: str, tell: Callable[[str], None] = say) -> Iterator[None]:
    """Tell what is waited for, if what is done meanwhile takes longer than `SILENCE`."""
    notice = threading.Timer(SILENCE, tell, [text])
    notice.daemon = True
    notice.start()
    try:
        yield
    finally:
        notice.cancel()


def quiet_the_stack() -> None:
    """Silence what a person cannot act on; errors, and all other warnings of the main process, stay."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    for name in CHATTY_LOGGERS:
        logging.getLogger(name).setLevel(logging.ERROR)
        # Some packages set their logger's level again when they are imported.
        logging.getLogger(name).addFilter(_is_error)
    if not (is_main_process() and console.is_terminal):
        os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
        os.environ.setdefault("TQDM_DISABLE", "1")
    for kind in (FutureWarning, DeprecationWarning, UserWarning):
        warnings.filterwarnings("ignore", category=kind, module=r"(torch|accelerate|deepspeed|trl|transformers|peft)\b")


def _is_error(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.ERROR
