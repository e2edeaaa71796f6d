"""Counts the tokens of many rows in one look at each column, and remembers what takes a look at every token.

In: a `datasets.Dataset`. Out: a number, or a number a row; tokens stay on the disk. Knows nothing about what is counted
for.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy
import pyarrow
import pyarrow.compute as compute
from datasets import Dataset

from sft.core.files import atomic_write
from sft.data.labels import IGNORED


def a_row(dataset: Dataset, column: str, measure: Callable[[pyarrow.Array], Any]) -> numpy.ndarray:
    """What `measure` gives for each row of a column, `(rows,)`; it is given as many at a time as lie together.

    A table is read from its start to its end, in whatever order the dataset has its rows, and some of them several
    times or not at all.
    """
    chunks = dataset.data.column(column).chunks
    measured = numpy.concatenate([numpy.asarray(measure(chunk)) for chunk in chunks]) if chunks else numpy.empty(0, int)
    return measured if dataset._indices is None else measured[dataset._indices.column(0).to_numpy()]


def lengths(dataset: Dataset) -> numpy.ndarray:
    """Tokens of each row, `(rows,)`."""
    return a_row(dataset, "input_ids", compute.list_value_length)


def supervised_tokens(dataset: Dataset) -> int:
    """How many tokens of the dataset carry loss."""
    return _remembered(dataset, "supervised", lambda: int(a_row(dataset, "labels", _supervised).sum()))


def largest_token(dataset: Dataset) -> int:
    """The largest id of any token."""
    return _remembered(dataset, "largest", lambda: int(a_row(dataset, "input_ids", _largest).max()))


def _supervised(labels: pyarrow.ListArray) -> numpy.ndarray:
    values, ends = _values(labels)
    counts = numpy.append(0, numpy.cumsum(values != IGNORED))[ends]
    return numpy.diff(counts)


def _largest(ids: pyarrow.ListArray) -> numpy.ndarray:
    values, ends = _values(ids)
    return numpy.maximum.reduceat(values, ends[:-1]) if len(values) else numpy.empty(0, int)


def _values(lists: pyarrow.ListArray) -> tuple[numpy.ndarray, numpy.ndarray]:
    """The tokens of some rows one after the other, and where each row begins and the last one ends."""
    ends = lists.offsets.to_numpy()
    return lists.values.to_numpy()[ends[0] : ends[-1]], ends - ends[0]


def _remembered(dataset: Dataset, what: str, count: Callable[[], int]) -> int:
    """The count, kept under the dataset's fingerprint, which says what it is made of."""
    path = Path(datasets.config.HF_DATASETS_CACHE) / "sft-counts" / f"{dataset._fingerprint}-{what}.json"
    if path.exists():
        return json.loads(path.read_bytes())
    counted = count()
    with atomic_write(path) as file:
        file.write(json.dumps(counted).encode())
    return counted
