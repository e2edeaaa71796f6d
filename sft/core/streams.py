"""Stands between what is printed and the console: nothing printed steers a terminal or fails for want of a letter.

What a terminal would obey or not show is escaped, as is what the console's encoding lacks; where the reader has gone,
the program ends. Colours of the program's own go past it with `print_as_it_is`. Knows nothing about what is printed.
"""

import io
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn, TextIO

from sft.core.errors import ReaderGone
from sft.core.text import visible

# How tqdm moves: to the start of the line before it draws a bar, and with several bars up to the one it draws.
MOVES = re.compile(r"(\r?)(.*?)(\r?)", re.DOTALL)
MOVES_UP = re.compile(r"(\x1b\[A)+")


class ConsoleStream(io.TextIOWrapper):
    """Standard output or standard error, which shows what it cannot print or should not obey."""

    def __init__(self, stream: io.TextIOWrapper, *, has_bars: bool):
        super().__init__(
            stream.buffer,
            encoding=stream.encoding,
            errors="backslashreplace",
            line_buffering=stream.line_buffering,
            write_through=True,
        )
        self._has_bars = has_bars

    def write(self, text: str) -> int:
        """Print text; returns its length."""
        if self._has_bars and MOVES_UP.fullmatch(text):
            self.write_as_it_is(text)
        elif self._has_bars and "\r" in text and (parts := MOVES.fullmatch(text)):
            self.write_as_it_is(parts[1] + visible(parts[2]) + parts[3])
        else:
            self.write_as_it_is(visible(text))
        return len(text)

    def write_as_it_is(self, text: str) -> None:
        """Print text that may steer the terminal: it is the program's own, or was made visible."""
        try:
            super().write(text)
        except OSError as problem:
            self._give_up(problem)

    def flush(self) -> None:
        """Hand on what is buffered."""
        try:
            super().flush()
        except OSError as problem:
            self._give_up(problem)

    def _give_up(self, problem: OSError) -> NoReturn:
        # What is still buffered goes nowhere, so that Python has nothing to complain of at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), self.fileno())
        if isinstance(problem, BrokenPipeError):
            raise ReaderGone from None
        print(f"{self.name}: cannot be written: {problem.strerror}", file=sys.stderr)
        raise SystemExit(2) from None


def guard() -> None:
    """Put a `ConsoleStream` in place of standard output and standard error.

    Where the locale knows ASCII alone, the program starts once more in UTF-8 mode, without which Chinese names and
    paths on the command line are no text. What it prints stays in the console's encoding.
    """
    if sys.getfilesystemencoding() == "ascii" and os.environ.get("PYTHONUTF8") != "1":
        os.environ["PYTHONUTF8"] = "1"
        os.environ.setdefault("PYTHONIOENCODING", sys.stdout.encoding if sys.stdout else "ascii")
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
    # Newer versions of Python colour help and tracebacks on a terminal, which would be shown as escapes.
    os.environ.setdefault("PYTHON_COLORS", "0")
    for number, stream in ((1, sys.stdout), (2, sys.stderr)):
        if stream is None:
            # The shell has closed it. No file that is opened later may take its number, and nothing be written to it.
            os.dup2(os.open(os.devnull, os.O_RDONLY), number)
    sys.stdout = _guarded(sys.stdout)
    sys.stderr = _guarded(sys.stderr, has_bars=True)


def _guarded(stream: TextIO | None, has_bars: bool = False) -> TextIO:
    if stream is None:
        return open(os.devnull, "w", encoding="utf-8")
    return ConsoleStream(stream, has_bars=has_bars) if isinstance(stream, io.TextIOWrapper) else stream


@contextmanager
def guarded() -> Iterator[None]:
    """Guard the console while a program runs, and hand on all that it printed before the interpreter ends.

    Raises:
        ReaderGone: nobody reads standard output or standard error any more.
    """
    guard()
    try:
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()


def print_as_it_is(text: str) -> None:
    """Print a line with escapes of the program's own; what it holds of others' was made `visible`."""
    stream = sys.stdout
    if isinstance(stream, ConsoleStream):
        stream.write_as_it_is(text + "\n")
    else:
        print(text)
