"""What a verb does with lines it cannot read: it stops at the first, or `--skip-bad` lists them all in a report.

Knows nothing about what makes a line bad: that is a `BadRow` of whoever read it.
"""

import argparse
import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from sft.core import files
from sft.core.verbs import add_output
from sft.data.rows import formats
from sft.data.rows.json_line import BadRow, json_line


def add_argument(parser: argparse.ArgumentParser) -> None:
    """Add `--skip-bad` to a verb that reads lines."""
    add_output(parser, "--skip-bad", metavar="REPORT.jsonl", help="skip lines that cannot be read and list them there")


@contextmanager
def collect(report: Path | None, *sources: Path) -> Iterator["BadLines"]:
    """Collect bad lines while `sources` are read; the report, if one is wanted, appears when all went well."""
    if report is None:
        yield BadLines()
        return
    with files.atomic_write(report, *sources) as out:
        yield BadLines(out, report)


class BadLines:
    """Takes bad lines, one after another, and counts those that were skipped."""

    def __init__(self, out: BinaryIO | None = None, report: Path | None = None):
        self._out, self._report = out, report
        self.count = 0

    @classmethod
    def of_block(cls, skip: bool) -> "BadLines":
        """Those of some lines, which `extend` those of the lines before them."""
        return cls(io.BytesIO() if skip else None)

    def extend(self, later: "BadLines") -> None:
        """Add those of a block."""
        if self._out is not None and isinstance(later._out, io.BytesIO):
            self._out.write(later._out.getvalue())
            self.count += later.count

    def __call__(self, path: str | Path, number: int, problem: BadRow, raw: bytes) -> None:
        """Write `{"file", "line", "reason", "text"}` to the report; without one, stop.

        Bytes of the line that are not UTF-8 stand as \\xNN in `text`.

        Raises:
            UserError: there is no report, so the line stops the verb.
        """
        if self._out is None:
            formats.stop_at_bad_line(path, number, problem, raw)
        entry = {
            "file": str(path),
            "line": number,
            "reason": str(problem),
            "text": raw.decode("utf-8", "backslashreplace").rstrip("\r\n"),
        }
        self._out.write(json_line(entry))
        self.count += 1

    def summary(self) -> list[str]:
        """A line for the verb's summary of rows, or none where nothing was skipped."""
        return [f"  {self.count:>9,}  skipped, bad: each is in {self._report} with its reason"] if self.count else []
