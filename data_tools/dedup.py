"""Drop conversations that appear twice, and with --near those that are nearly the same.

In: a data file. Out: the other rows in their order, JSON lines as they were; of rows that are alike the first
stays. Near duplicates are found by MinHash over runs of three characters of what user, assistant and tools say: a
system message or a list of tools that all rows share would make all of them alike (Broder 1997, "On the resemblance
and containment of documents"; rensa implements it).
"""

import argparse
import hashlib
import itertools
import json
from collections import Counter

from rensa import RMinHash, RMinHashDeduplicator

from data_tools import bad_lines, inputs
from sft.core import files
from sft.core.errors import UserError
from sft.core.text import counted, normalise
from sft.core.verbs import add_output
from sft.data.rows import formats
from sft.data.rows.canonical import texts_of
from sft.data.rows.json_line import BadRow, ended, parse_line

# So many of the dropped rows are named one by one.
EXAMPLES = 10
# Runs of three characters tell sentences apart in Chinese as in English.
SHINGLE = 3
# The estimate's standard error is sqrt(s (1 - s) / PERMUTATIONS): 0.03 at a similarity of 0.9.
PERMUTATIONS = 128
SEED = 0
# How surely a pair of exactly the given similarity is compared at all.
RECALL = 0.99


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what the verb takes."""
    inputs.add_arguments(parser)
    add_output(parser, "out", help="JSONL file to write")
    parser.add_argument(
        "--near", type=float, metavar="SHARE", help="also drop rows that share so much of their text, such as 0.9"
    )
    bad_lines.add_argument(parser)


def run(arguments: argparse.Namespace) -> int:
    """Copy the rows that are new and list the first of the others; returns the exit code."""
    if arguments.near is not None and not 0.5 <= arguments.near <= 1:
        raise UserError("--near: must lie between 0.5 and 1, such as 0.9")
    duplicates = Duplicates(arguments.near)
    rows, dropped = 0, Counter[str]()
    examples: list[str] = []
    file = inputs.row_file(arguments.input, arguments)
    with (
        bad_lines.collect(arguments.skip_bad, arguments.input) as bad,
        files.atomic_write(arguments.out, arguments.input) as out,
    ):
        for number, line in file.lines():
            rows += 1
            try:
                row = formats.canonical_row(parse_line(line))
            except BadRow as problem:
                bad(arguments.input, number, problem, line)
                continue
            if like := duplicates.first_like(number, row):
                dropped[like[1]] += 1
                examples += [f"line {number:,}: {like[1]} line {like[0]:,}"] if len(examples) < EXAMPLES else []
            else:
                out.write(ended(line))
    left = rows - dropped.total() - bad.count
    print(f"{file.described()}: {counted(rows, 'row')} in; {arguments.out}: {counted(left, 'row')} out")
    for reason, count in dropped.items():
        print(f"  {count:>9,}  dropped: {reason} an earlier row")
    for summary in bad.summary() + [f"    {example}" for example in examples]:
        print(summary)
    if dropped.total() > len(examples):
        print(f"    ... and {dropped.total() - len(examples):,} more")
    return 0


class Duplicates:
    """Recognises conversations: exactly, by 16 bytes each, and if `near` is given nearly, by a sketch each."""

    def __init__(self, near: float | None = None):
        self._lines: dict[bytes, int] = {}
        self._near = None if near is None else NearDuplicates(near)

    def first_like(self, number: int, row: dict) -> tuple[int, str] | None:
        """The first earlier row that this one is like, and how; None for a new one, which is remembered."""
        first = self._lines.setdefault(_digest(row), number)
        if first != number:
            return first, "the same as"
        if self._near and (like := self._near.first_like(number, row["messages"])):
            return like, "nearly the same as"
        return None


class NearDuplicates:
    """Remembers a sketch of each new conversation, and recognises those nearly like one of them."""

    def __init__(self, similarity: float):
        bands = fewest_bands(similarity)
        self._seen = RMinHashDeduplicator(similarity, PERMUTATIONS, use_lsh=True, num_bands=bands, seed=SEED)

    def first_like(self, number: int, messages: list[dict]) -> int | None:
        """The number of an earlier conversation nearly like this one; without one, None, and this one is remembered."""
        sketch = RMinHash(PERMUTATIONS, seed=SEED)
        sketch.update(shingles(spoken(messages)))
        if alike := self._seen.get_duplicates(sketch):
            return min(map(int, alike))
        self._seen.add(str(number), sketch)
        return None


def fewest_bands(similarity: float) -> int:
    """In how many bands to look for equal ones: few take less memory, many find more pairs."""
    bands = 8
    while bands < PERMUTATIONS and 1 - (1 - similarity ** (PERMUTATIONS // bands)) ** bands < RECALL:
        bands *= 2
    return bands


def spoken(messages: list[dict]) -> str:
    """What user, assistant and tools say, tool calls too, without case, spaces and punctuation."""
    spoken_by_all = (message for message in messages if message["role"] != "system")
    text = "\n".join(itertools.chain.from_iterable(map(texts_of, spoken_by_all)))
    return normalise(text) or text


def shingles(text: str) -> list[str]:
    """All runs of three characters; a shorter text is one."""
    return [text[start : start + SHINGLE] for start in range(max(len(text) - SHINGLE + 1, 1))]


def _digest(row: dict) -> bytes:
    return hashlib.blake2b(json.dumps(row).encode(), digest_size=16).digest()
