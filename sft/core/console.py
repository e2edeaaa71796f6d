"""What a person sees while a run is at work: plain English lines, from the main process only.

In: finished sentences. Out: lines on the console. Knows nothing about training.
"""

import logging
import os
import sys
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import IO, Any

from rich.console import Console
from rich.segment import Segment

from sft.core.streams import ConsoleStream
from sft.core.text import visible


class _AsItIs:
    """A `ConsoleStream` to which rich writes its own escapes."""

    def __init__(self, stream: ConsoleStream):
        self._stream = stream
        self.write = stream.write_as_it_is

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


class _Console(Console):
    """rich's console, in which only rich itself steers the terminal, and not the texts that it is given."""

    def render(self, *arguments: Any, **options: Any) -> Iterable[Segment]:
        """The parts of what is printed, their texts made visible."""
        for text, style, control in super().render(*arguments, **options):
            yield Segment(text if control else visible(text), style, control)

    @property  # type: ignore[misc]  # nobody sets it
    def file(self) -> IO[str]:
        """Where rich writes; while it keeps a bar at the bottom, it stands before standard output itself."""
        file = super().file
        return _AsItIs(file) if isinstance(file, ConsoleStream) else file  # type: ignore[return-value]


# Where no terminal sets the width, wide and unwrapped: in a log file one line stays one line.
console = _Console(highlight=False, soft_wrap=True, width=None if sys.stdout and sys.stdout.isatty() else 200)

# Loggers whose warnings nobody who runs a recipe can act on: which kernels a package lacks, whether a process group was
# found, that a scheduler stepped first.
CHATTY_LOGGERS = ("bitsandbytes", "DeepSpeed", "torch.distributed", "accelerate", "torchao", "httpx", "numexpr")
# Seconds that something may take before the console says what is being waited for.
SILENCE = 1.0


def is_main_process() -> bool:
    """Whether this process is rank 0, by the launcher's environment variables."""
    return os.environ.get("RANK", "0") == "0"


def say(text: str = "", style: str | None = None) -> None:
    """Print text, in one of rich's styles, on the main process only."""
    if is_main_process():
        console.print(text, style=style, markup=False)


@contextmanager
def waiting(text: str, show: Callable[[str], None] = say) -> Iterator[None]:
    """Say what is being waited for, if the code inside takes longer than `SILENCE`; `show` prints it."""
    notice = threading.Timer(SILENCE, show, [text])
    notice.daemon = True
    notice.start()
    try:
        yield
    finally:
        notice.cancel()


def quiet_the_stack() -> None:
    """Silence the stack's messages that nobody can act on; errors and the main process's other warnings stay.

    Called by every front door before it imports the stack; sets environment variables of this process.
    """
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    for name in CHATTY_LOGGERS:
        logging.getLogger(name).setLevel(logging.ERROR)
        # Some packages set their logger's level again when they are imported.
        logging.getLogger(name).addFilter(_is_error)
    # Bars are drawn on standard error, and another's log may be either.
    if not (is_main_process() and all(stream and stream.isatty() for stream in (sys.stdout, sys.stderr))):
        os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
        os.environ.setdefault("TQDM_DISABLE", "1")
    for kind in (FutureWarning, DeprecationWarning, UserWarning):
        warnings.filterwarnings("ignore", category=kind, module=r"(torch|accelerate|deepspeed|trl|transformers|peft)\b")


def _is_error(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.ERROR
