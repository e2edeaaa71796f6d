"""Turns a training file into samples, in the order of its rows, in parallel and in bounded memory, and keeps them.

In: a data file and a tokenizer. Out: a memory-mapped `datasets.Dataset` with the columns of `SCHEMA`, and beside it
what the rows say about identity, gathered on the way. The file is tokenised in shards, each kept under a hash of its
lines and of all that decides what becomes of them: a killed run resumes from the last shard, and after a change only
the shards that changed are tokenised again. Knows nothing about max_length, weights or packs.
"""

import hashlib
import inspect
import json
import math
import os
import sys
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy
import pyarrow
import transformers
import trl
from datasets.table import MemoryMappedTable, concat_tables
from transformers import PreTrainedTokenizerBase

from sft.core.errors import UserError
from sft.core.files import atomic_write
from sft.core.workers import ProcessKilled, in_order
from sft.data import answer_spans, encoding, labels
from sft.data.encoding import LossRules, Sample
from sft.data.identity_rows import RowFacts, SoughtNames
from sft.data.readers.row_file import Lines, RowFile, grouped
from sft.data.rows import canonical, columns, formats, json_line, row_shapes
from sft.data.rows.json_line import named
from sft.models import chat_template, own_words, text_tokens
from sft.models.chat_template import ChatTemplate

# Small enough that a file worth several processes has several shards. Each one is opened at every start and taken along
# by whatever is done to the table, so that a file of many has larger ones, up to what is no load on memory where each
# process has one: 100 GB are 6,000 files, of which a process may map 65,530 on Linux.
SHARD_BYTES, MOST_BYTES_OF_A_SHARD = 2 << 20, 16 << 20
MANY_SHARDS = 512
ROWS_AT_ONCE = 1000
DEFAULT_RULES = LossRules()
TOKENS = pyarrow.list_(pyarrow.int32())
# A row's samples stand one after the other under its line. `control` is the first of the model's control tokens that a
# text of the row holds as if it were a word, `unused` the keys of the row that are not read; "" if none. The last four
# are those of `encoding.Sample`.
SCHEMA = pyarrow.schema(
    {"line": pyarrow.int64(), "input_ids": TOKENS, "labels": TOKENS, "control": pyarrow.string()}
    | {"unused": pyarrow.string()}
    | {name: pyarrow.int32() for name in ("answers", "answers_without_end", "answers_asked_otherwise")}
    | {"left_out": pyarrow.string()}
)


def tokenise(
    file: RowFile,
    tokenizer: PreTrainedTokenizerBase,
    num_proc: int | None = None,
    names: SoughtNames | None = None,
    rules: LossRules = DEFAULT_RULES,
) -> datasets.Dataset:
    """The samples of all rows, in the order of the file, whatever the number of processes (None: one a CPU core).

    With `names`, what the rows say of them is gathered on the way, for `row_facts`.

    Raises:
        UserError: a bad row, the first of the file; the file changed meanwhile, or a process was killed.
    """
    folder, shards = _shards_of(file, tokenizer, num_proc, names, rules)
    table = concat_tables([MemoryMappedTable.from_file(str(folder / shard)) for shard in shards])
    return datasets.Dataset(table, fingerprint=_hash(folder.name, *shards))


def row_facts(
    file: RowFile,
    tokenizer: PreTrainedTokenizerBase,
    num_proc: int | None,
    names: SoughtNames,
    rules: LossRules = DEFAULT_RULES,
) -> Iterator[RowFacts]:
    """What the rows say, shard by shard; the file is read for what `tokenise` did not gather for these names.

    Raises:
        UserError: as `tokenise`.
    """
    folder, shards = _shards_of(file, tokenizer, num_proc, names, rules)
    for shard in shards:
        yield RowFacts.from_json((folder / _facts_name(shard, names)).read_bytes())


def _shards_of(
    file: RowFile,
    tokenizer: PreTrainedTokenizerBase,
    num_proc: int | None,
    names: SoughtNames | None,
    rules: LossRules,
) -> tuple[Path, list[str]]:
    """The folder that a file's shards are in and their names; what is missing there is written first."""
    template = ChatTemplate(tokenizer)
    folder = Path(datasets.config.HF_DATASETS_CACHE) / "sft-samples" / _key(template, rules)
    digest = file.digest()
    # Written last, so where it is, all shards are; without it, those that are there are still good.
    index = folder / f"{digest}.json"
    shards = json.loads(index.read_bytes()) if index.exists() else []
    parts = [*shards, *(_facts_name(shard, names) for shard in shards)] if names else shards
    if not shards or not all((folder / part).exists() for part in parts):
        writer = ShardWriter(file, folder, template, rules, names)
        shards = list(_written(writer, num_proc or len(os.sched_getaffinity(0))))
        if not shards:
            raise UserError(f"{file.path}: {formats.NO_ROW}")
        if file.digest() != digest:
            raise UserError(f"{file.path}: changed while it was read: start again once it stays as it is")
        with atomic_write(index) as out:
            out.write(json.dumps(shards).encode())
    return folder, shards


def _facts_name(shard: str, names: SoughtNames) -> str:
    """The file, beside a shard's samples, with what its rows say of the names."""
    return f"{shard}.{names.key}.json"


@dataclass(frozen=True)
class ShardWriter:
    """Tokenises shards of one file and writes each to the folder, under a name that its lines decide."""

    file: RowFile
    folder: Path
    template: ChatTemplate
    rules: LossRules
    names: SoughtNames | None

    def write(self, lines: Lines) -> str:
        """The shard's name in the folder, where its samples and facts are; those there already are taken as they are.

        Raises:
            UserError: a bad row, the first of the shard.
        """
        numbers = numpy.array([number for number, _ in lines])
        name = hashlib.sha256(b"".join(raw for _, raw in lines) + numbers.tobytes()).hexdigest()[:32] + ".arrow"
        rows = formats.canonical_rows(self.file, lines)
        facts = None
        if self.names and not (facts_file := self.folder / _facts_name(name, self.names)).exists():
            facts = RowFacts(self.names)
            rows = facts.of(rows)
        if not (self.folder / name).exists():
            self._write_samples(self.folder / name, rows)
        if facts:
            deque(rows, maxlen=0)  # nothing is left where they were tokenised just now
            with atomic_write(facts_file) as file:
                file.write(facts.to_json())
        return name

    def _write_samples(self, path: Path, rows: Iterable[tuple[int, dict]]) -> None:
        # One batch a shard: each is looked for at every start, and each of its columns is a piece of the whole table's.
        table = pyarrow.Table.from_batches(map(self._encoded, _batches(rows)), SCHEMA).combine_chunks()
        with atomic_write(path) as file, pyarrow.ipc.new_stream(file, SCHEMA) as stream:
            stream.write_table(table)

    def _encoded(self, rows: list[tuple[int, dict]]) -> pyarrow.RecordBatch:
        controls = [encoding.control_token(self.template, row["messages"]) for _, row in rows]
        records = [
            vars(sample) | {"line": line, "control": control, "unused": named(row.get("unused", ()))}
            for (line, row), control, samples in zip(rows, controls, self._samples(rows), strict=True)
            for sample in samples
        ]
        columns: dict[str, Any] = {name: [record[name] for record in records] for name in SCHEMA.names}
        columns |= {name: _lists(columns[name]) for name in ("input_ids", "labels")}
        return pyarrow.record_batch(columns, schema=SCHEMA)

    def _samples(self, rows: list[tuple[int, dict]]) -> list[list[Sample]]:
        try:
            return encoding.encode(self.template, [row for _, row in rows], self.rules)
        except UserError as problem:
            if len(rows) == 1:
                raise UserError(f"{self.file.path}:{rows[0][0]}: {problem}") from None
            # One by one, for the first of them that cannot be encoded.
            return [sample for row in rows for sample in self._samples([row])]


def _lists(arrays: list[numpy.ndarray]) -> pyarrow.ListArray:
    """One list of tokens a sample."""
    ends = numpy.cumsum([0, *map(len, arrays)], dtype=numpy.int32)
    return pyarrow.ListArray.from_arrays(ends, numpy.concatenate(arrays))


def _written(writer: ShardWriter, processes: int) -> Iterator[str]:
    """The names of a file's shards, in order, as they are done."""
    # Other processes take a moment to start, which a file of one shard would not win back.
    size = shard_bytes(writer.file)
    processes = min(processes, math.ceil(writer.file.size() / size))
    try:
        yield from in_order(writer.write, grouped(writer.file.lines(), size), processes)
    except ProcessKilled:
        raise UserError(
            f"{writer.file.path}: a process that tokenised it was killed, as happens when memory runs out: set "
            "dataset_num_proc lower and start again; the shards that are done are kept"
        ) from None


def shard_bytes(file: RowFile) -> int:
    """Bytes of a shard; doubled where a file would have too many, so that one that grows keeps most of its own."""
    size = SHARD_BYTES
    while size < MOST_BYTES_OF_A_SHARD and file.size() > MANY_SHARDS * size:
        size *= 2
    return size


def _batches(rows: Iterable[tuple[int, dict]]) -> Iterator[list[tuple[int, dict]]]:
    """As `itertools.batched`, but the rows before one that cannot be read come out first: they may be bad too."""
    batch = []
    try:
        for row in rows:
            batch.append(row)
            if len(batch) == ROWS_AT_ONCE:
                yield batch
                batch = []
    except UserError:
        if batch:
            yield batch
        raise
    if batch:
        yield batch


def _key(template: ChatTemplate, rules: LossRules) -> str:
    """A hash of the tokenizer, its template and what that is given, the rules, this code and the libraries below it."""
    tokenizer = template.tokenizer
    code = (
        json_line,
        columns,
        canonical,
        row_shapes,
        formats,
        chat_template,
        own_words,
        text_tokens,
        answer_spans,
        labels,
        encoding,
        sys.modules[__name__],
    )
    return _hash(
        tokenizer.backend_tokenizer.to_str(),
        *map(str, (tokenizer.chat_template, tokenizer.special_tokens_map, template.kwargs, template.day, rules)),
        *map(inspect.getsource, code),
        # TRL's is for the packs, which are kept under a name made from this one.
        *(library.__version__ for library in (transformers, trl, datasets)),
    )


def _hash(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode("utf-8", "surrogatepass")).hexdigest()[:32]
