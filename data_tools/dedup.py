"""Leave out conversations that stand twice, and with --near those that are nearly alike.

In: JSONL of any known format. Out: the other lines as they were, in their order; of rows that are alike the first
stays. Says what went.
"""

import argparse
import hashlib
import json
from collections import Counter
from pathlib import Path

from sft.core import files
from sft.core.errors import UserError
from sft.core.text import counted
from sft.data import bad_lines, formats

# So many of the rows that went are named one by one.
EXAMPLES = 10


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("input", type=Path, help="JSONL file to read")
    parser.add_argument("out", type=Path, help="JSONL file to write")
    parser.add_argument(
        "--near", type=float, metavar="SHARE", help="also leave out rows that share so much of their text, such as 0.9"
    )
    bad_lines.add_argument(parser)


def run(arguments: argparse.Namespace) -> int:
    if arguments.near is not None and not 0.5 <= arguments.near <= 1:
        raise UserError("--near: must lie between 0.5 and 1, such as 0.9")
    find = Duplicates(arguments.near)
    rows, went, examples = 0, Counter(), []
    with (
        bad_lines.handled(arguments.skip_bad, arguments.input) as bad,
        files.atomic_write(arguments.out, arguments.input) as out,
    ):
        for number, line in files.numbered_lines(arguments.input):
            rows += 1
            try:
                messages = formats.canonical_row(formats.parse_line(line))["messages"]
            except formats.BadRow as problem:
                bad(arguments.input, number, problem, line)
                continue
            if like := find.first_like(number, messages):
                went[like[1]] += 1
                examples += [f"line {number:,}: {like[1]} line {like[0]:,}"] if len(examples) < EXAMPLES else []
            else:
                out.write(line if line.endswith(b"\n") else line + b"\n")
    left = rows - went.total() - bad.count
    print(f"{arguments.input}: {counted(rows, 'row')} in; {arguments.out}: {counted(left, 'row')} out")
    for reason, count in went.items():
        print(f"  {count:>9,}  left out: {reason} an earlier row")
    for line in bad.account() + [f"    {example}" for example in examples]:
        print(line)
    if went.total() > len(examples):
        print(f"    ... and {went.total() - len(examples):,} more")
    return 0


class Duplicates:
    """Knows conversations again: exactly, by 16 bytes each, and if asked nearly, by a sketch each."""

    def __init__(self, near: float | None = None):
        self._lines: dict[bytes, int] = {}
        self._near = None
        if near is not None:
            from data_tools.minhash import NearDuplicates

            self._near = NearDuplicates(near)

    def first_like(self, number: int, messages: list[dict]) -> tuple[int, str] | None:
        """The first earlier row that this one is like, and how; None for a new one, which is remembered."""
        first = self._lines.setdefault(_digest(messages), number)
        if first != number:
            return first, "the same as"
        if self._near and (like := self._near.first_like(number, messages)):
            return like, "nearly the same as"
        return None


def _digest(messages: list[dict]) -> bytes:
    return hashlib.blake2b(json.dumps(messages).encode(), digest_size=16).digest()
