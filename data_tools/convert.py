"""Turn conversations from any format that is read into messages, xtuner, sharegpt or alpaca.

In: a data file. Out: JSONL. Keys that a conversation has no use for are kept beside it. What the target cannot hold
stops it, or is counted with `--lossy`.
"""

import argparse
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data_tools import bad_lines, inputs, system_message
from data_tools.bad_lines import BadLines
from sft.core import files
from sft.core.errors import UserError
from sft.core.text import counted
from sft.core.verbs import add_output
from sft.data.rows.canonical import CannotHold
from sft.data.rows.columns import OTHER, is_read
from sft.data.rows.json_line import BadRow, json_line, parse_line
from sft.data.rows.row_shapes import shape_of
from sft.data.rows.row_writing import FORMATS


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what the verb takes."""
    inputs.add_arguments(parser)
    add_output(parser, "out", help="JSONL file to write")
    parser.add_argument("--to", required=True, choices=FORMATS, help="format to write")
    system_message.add_argument(parser)
    parser.add_argument("--lossy", action="store_true", help="drop what the target cannot hold, and count it")
    bad_lines.add_argument(parser)


def run(arguments: argparse.Namespace) -> int:
    """Convert the file, count what could not be held; returns the exit code."""
    file = inputs.row_file(arguments.input, arguments)
    system = system_message.read(arguments.system)
    work = _Work(arguments.input, arguments.to, system, arguments.lossy, skip_bad=arguments.skip_bad is not None)
    counts = _Counts()
    with (
        bad_lines.collect(arguments.skip_bad, arguments.input) as bad,
        files.atomic_write(arguments.out, arguments.input) as out,
    ):
        for converted, of_block, bad_of_block in inputs.in_blocks(file, work):
            out.write(converted)
            counts.add(of_block)
            bad.extend(bad_of_block)
    rows_in = counted(counts.rows, "row")
    rows_out = counted(counts.rows - counts.dropped.total() - bad.count, "row")
    print(f"{file.described()}: {rows_in} in; {arguments.out}: {rows_out} out, as {arguments.to}")
    for what, count in counts.systems.items():
        print(f"  {count:>9,}  system message {what}")
    for reason, count in counts.dropped.items():
        print(f"  {count:>9,}  {reason}")
    for key, count in counts.kept.items():
        print(f"  {count:>9,}  with {key}, which is kept and not trained on")
    for summary in bad.summary():
        print(summary)
    return 0


@dataclass
class _Counts:
    """What was counted in rows that stand together."""

    rows: int = 0
    systems: Counter[str] = field(default_factory=Counter)
    dropped: Counter[str] = field(default_factory=Counter)
    kept: Counter[str] = field(default_factory=Counter)

    def add(self, later: "_Counts") -> None:
        self.rows += later.rows
        for name in ("systems", "dropped", "kept"):
            getattr(self, name).update(getattr(later, name))


@dataclass(frozen=True)
class _Work:
    """Converts blocks of rows."""

    path: Path
    to: str
    system: str | None
    lossy: bool
    skip_bad: bool

    def __call__(self, block: Iterable[tuple[int, bytes]]) -> tuple[bytes, _Counts, BadLines]:
        """The rows converted, what was counted, and the bad lines.

        Raises:
            UserError: a row cannot be held by the target, or a line is bad, and these are not to be skipped.
        """
        counts, bad, lines = _Counts(), BadLines.of_block(self.skip_bad), []
        for number, raw in block:
            counts.rows += 1
            try:
                row = parse_line(raw)
                if self.system is not None and (what := system_message.replace(row, self.system)):
                    counts.systems[what] += 1
                lines.append(json_line(convert(row, self.to, counts.kept)))
            except CannotHold as problem:
                if not self.lossy:
                    raise UserError(
                        f"{self.path}:{number}: {problem}: choose another --to, or --lossy to drop it"
                    ) from None
                counts.dropped[f"row skipped: {problem}"] += 1
            except BadRow as problem:
                bad(self.path, number, problem, raw)
        return b"".join(lines), counts, bad


def convert(row: Any, to: str, kept: Counter[str] | None = None) -> dict:
    """The row in the format `to`, and beside it, as they are, the keys that a conversation has no use for.

    `kept` counts these.

    Raises:
        CannotHold: the target has no place for something in the conversation.
        BadRow: the row is in no known format, or broken.
    """
    shape = shape_of(row)
    made = FORMATS[to](shape.read(row))
    unused = shape.unused(row) if len(row) > 1 else ()
    if not unused:
        return made
    if kept is not None:
        kept.update(unused)
    # Of several columns that may be the question, the row does not show any longer which it was.
    return made | {f"{OTHER}{key}" if is_read(key) else key: row[key] for key in unused}
