"""Counts over rows are those of the rows as they are, in whatever order they were taken and however often."""

import datasets
import numpy
import pyarrow
import pytest
from datasets import Dataset, concatenate_datasets

from sft.data import counts
from sft.data.counts import a_row, largest_token, lengths, supervised_tokens
from sft.data.labels import IGNORED


@pytest.fixture(autouse=True)
def own_cache(monkeypatch, tmp_path):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture
def rows() -> Dataset:
    """Rows in several chunks, as shards have them."""
    dice = numpy.random.default_rng(3)
    parts = []
    for size in (3, 1, 5):
        ids = [dice.integers(0, 900, dice.integers(1, 6)).tolist() for _ in range(size)]
        labels = [[token if dice.random() < 0.5 else IGNORED for token in row] for row in ids]
        parts.append(Dataset.from_dict({"input_ids": ids, "labels": labels, "line": list(range(size))}))
    return concatenate_datasets(parts)


TAKEN = {
    "as they are": lambda rows: rows,
    "a slice": lambda rows: rows.select(range(2, 7)),
    "shuffled": lambda rows: rows.shuffle(seed=1),
    "some several times": lambda rows: rows.select([8, 0, 0, 4, 3, 3]),
    "two of them": lambda rows: concatenate_datasets([rows.select([7, 1]), rows]),
    "without the largest": lambda rows: rows.select(numpy.argsort([max(ids) for ids in rows["input_ids"]])[:4]),
}


@pytest.mark.parametrize("how", TAKEN)
def test_counts_are_those_of_the_rows_one_by_one(rows, how):
    taken = TAKEN[how](rows)
    assert lengths(taken).tolist() == [len(ids) for ids in taken["input_ids"]]
    assert largest_token(taken) == max(max(ids) for ids in taken["input_ids"])
    assert supervised_tokens(taken) == sum(label != IGNORED for labels in taken["labels"] for label in labels)
    assert a_row(taken, "line", pyarrow.Array.to_numpy).tolist() == taken["line"][:]


def test_a_count_that_was_made_looks_at_no_token_again(rows, monkeypatch):
    expected = supervised_tokens(rows), largest_token(rows)
    monkeypatch.setattr(counts, "a_row", None)
    assert (supervised_tokens(rows), largest_token(rows)) == expected
    with pytest.raises(TypeError):
        supervised_tokens(rows.select([0]))
