"""Turns training files into packs of token ids with labels, and counts every token.

In: a recipe and a tokenizer. Out: a `datasets.Dataset` ready for SFTTrainer, and a `DatasetCard`. Token ids stay on the
disk and are looked at a batch at a time; in memory is a number or two a row. Knows nothing about the model.
"""

from __future__ import annotations

import hashlib
import json
import math
import random
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import datasets
import numpy
import pyarrow
import pyarrow.compute as compute
import trl
from datasets import Dataset, concatenate_datasets
from transformers import PreTrainedTokenizerBase

from sft.config.parallelism import independent_processes
from sft.config.recipe import Recipe, keeps_packed_samples_apart
from sft.core.errors import UserError
from sft.core.files import atomic_write
from sft.core.text import counted
from sft.data.counts import a_row, supervised_tokens
from sft.data.counts import lengths as lengths_of
from sft.data.dataset_card import DatasetCard
from sft.data.encoding import LossRules
from sft.data.identity_files import read_identity_rows, sought_names
from sft.data.identity_rows import IdentityRows
from sft.data.labels import IGNORED, mark_supervised
from sft.data.readers.row_file import RowFile
from sft.data.rows.formats import draw
from sft.data.samples import row_facts, tokenise
from sft.models.chat_template import ChatTemplate
from sft.models.hub import require_data_set

if TYPE_CHECKING:
    from transformers import TrainingArguments


def load_dataset(recipe: Recipe, tokenizer: PreTrainedTokenizerBase) -> tuple[Dataset, DatasetCard]:
    """Read, tokenise, fit to max_length and pack the recipe's training files.

    Returns:
        The sequences, columns `input_ids`, `labels` and (packed) `seq_lengths`, and their card.

    Raises:
        UserError: a bad row, a sample too long under `truncation: error`, a control token in a row's text under
            `control_tokens: refuse`, nothing left to train on, or a data set of the hub's that cannot be had.
    """
    for file in recipe.train_files:
        require_data_set(file.path)
    rows, files = mixed_rows(recipe, tokenizer)
    lengths = lengths_of(rows)
    control = _seen(rows, files, "control")
    if recipe.run.control_tokens == "refuse" and control[0]:
        raise UserError(
            f"{control[1]} stands in the text of this row ({control[0]:,} such rows) and becomes the model's control "
            "token: take it out, or set control_tokens to warn"
        )
    samples = _fit(recipe, rows, lengths, files)
    sequences = _sequences(recipe, samples, recipe.training.packing_strategy)
    return sequences, _card(recipe, tokenizer, files, rows, lengths, samples, sequences, control)


def load_held_out(recipe: Recipe, tokenizer: PreTrainedTokenizerBase) -> Dataset | None:
    """The sequences of `eval_file`, made as for training but never cut across packs; None without such a file.

    Raises:
        UserError: as `load_dataset`.
    """
    path = recipe.run.eval_file
    if not path:
        return None
    rows = tokenise(
        RowFile(path, recipe.run.columns),
        tokenizer,
        recipe.training.dataset_num_proc,
        rules=loss_rules(recipe, tokenizer),
    )
    samples = _fit(recipe, rows, lengths_of(rows), [{"path": path, "samples": len(rows)}])
    return _sequences(recipe, samples, "bfd")


def load_identity_rows(recipe: Recipe, tokenizer: PreTrainedTokenizerBase) -> IdentityRows:
    """What the training rows teach about identity, as it was gathered while they were tokenised.

    Raises:
        UserError: as `load_dataset`, where the files were not tokenised before.
    """
    files, name, old_names = recipe.train_files, recipe.run.identity_name, recipe.run.identity_old_names
    contents = [[file.path, file.weight, RowFile(file.path, file.columns).digest()] for file in files]
    key = [name, sought_names(files, name, old_names).key, contents]
    digest = hashlib.sha256(json.dumps(key).encode()).hexdigest()[:32]
    path = Path(datasets.config.HF_DATASETS_CACHE) / "sft-identity" / f"{digest}.json"
    if path.exists():
        return IdentityRows.from_json(path.read_bytes())
    processes, rules = recipe.training.dataset_num_proc, loss_rules(recipe, tokenizer)
    rows = read_identity_rows(
        files,
        name,
        old_names,
        lambda file, names: row_facts(RowFile(file.path, file.columns), tokenizer, processes, names, rules),
    )
    with atomic_write(path) as file:
        file.write(rows.to_json())
    return rows


def mixed_rows(recipe: Recipe, tokenizer: PreTrainedTokenizerBase) -> tuple[Dataset, list[dict]]:
    """All files' samples in the share their weights say; of each file its path, hash, rows, rows and samples taken."""
    dice, parts, files = random.Random(recipe.training.seed), [], []
    names = sought_names(recipe.train_files, recipe.run.identity_name, recipe.run.identity_old_names)
    rules = loss_rules(recipe, tokenizer)
    for file in recipe.train_files:
        source = RowFile(file.path, file.columns)
        samples = tokenise(source, tokenizer, recipe.training.dataset_num_proc, names, rules)
        starts = _row_starts(samples)
        rows = range(len(starts))
        taken: Sequence[int] = rows
        if file.weight != 1:
            taken = _drawn(len(starts), file.weight, dice)  # type: ignore[assignment]
        parts.append(samples.select(_samples_of(starts, taken, len(samples))))
        files.append(
            {
                "path": file.path,
                "read_as": source.summary(),
                "sha256": source.digest(),
            }
            | {"rows": len(rows)}
            | {"weight": file.weight, "taken": len(taken), "samples": len(parts[-1])}
        )
    return concatenate_datasets(parts), files


def _drawn(rows: int, weight: float, dice: random.Random) -> numpy.ndarray:
    """The rows that are drawn, in their order, kept for the next start: of ten million rows they take ten seconds."""
    key = hashlib.sha256(repr((rows, weight, dice.getstate())).encode()).hexdigest()[:32]
    path = Path(datasets.config.HF_DATASETS_CACHE) / "sft-draws" / f"{key}.npz"
    if not path.exists():
        taken = numpy.sort(numpy.array(draw(range(rows), weight, dice), dtype=int))
        with atomic_write(path) as file:
            # How the dice lie afterwards, for what is drawn next.
            numpy.savez(file, taken=taken, dice=numpy.array(dice.getstate()[1]))
        return taken
    with numpy.load(path) as kept:
        version, _, gauss = dice.getstate()
        dice.setstate((version, tuple(kept["dice"].tolist()), gauss))
        return kept["taken"]


def loss_rules(recipe: Recipe, tokenizer: PreTrainedTokenizerBase) -> LossRules:
    """Where loss falls by a recipe; a template that a person marked and named is taken as it is marked."""
    by_marks = bool(recipe.training.chat_template_path) and ChatTemplate(tokenizer).has_marks
    return LossRules(recipe.run.loss_on, recipe.run.split_turns, by_marks)


def _row_starts(samples: Dataset) -> numpy.ndarray:
    """The first sample of each row, `(rows,)`."""
    return numpy.flatnonzero(numpy.diff(a_row(samples, "line", pyarrow.Array.to_numpy), prepend=0))


def _samples_of(starts: numpy.ndarray, rows: Sequence[int], samples: int) -> Sequence[int]:
    """The samples of some rows, in their order."""
    if isinstance(rows, range):  # all of them
        return range(samples)
    if len(starts) == samples:
        return rows
    counts = numpy.diff(starts, append=samples)[rows]
    # Of each row's samples the first, and how far each of the others is from it.
    within = numpy.arange(counts.sum()) - numpy.repeat(numpy.cumsum(counts) - counts, counts)
    return numpy.repeat(starts[rows], counts) + within  # type: ignore[return-value]


def _sequences(recipe: Recipe, samples: Dataset, packing_strategy: str) -> Dataset:
    training = recipe.training
    if not len(samples):
        raise UserError(f"no sample is left: raise max_length above {training.max_length}, or give more rows")
    ordered = samples.shuffle(seed=training.seed) if training.shuffle_dataset else samples
    sequences = ordered.select_columns(["input_ids", "labels"])
    if not (training.packing and training.max_length):
        return sequences
    return trl.pack_dataset(sequences, training.max_length, packing_strategy)


def _fit(recipe: Recipe, rows: Dataset, lengths: numpy.ndarray, files: list[dict]) -> Dataset:
    """Apply the truncation policy; packing that splits long samples (bfd_split, wrapped) needs none."""
    training, limit = recipe.training, recipe.training.max_length
    if limit is None or (training.packing and training.packing_strategy != "bfd"):
        return rows
    is_long = lengths > limit
    if not is_long.any():
        return rows
    if recipe.run.truncation == "error":
        first = int(is_long.argmax())
        raise UserError(
            f"{file_of(files, first)}:{rows[first]['line']}: {lengths[first]:,} tokens, over max_length {limit:,} "
            f"({is_long.sum():,} such rows, the longest {lengths.max():,}): raise max_length, or set truncation "
            "to drop (skip them) or keep_start (truncate them)"
        )
    if recipe.run.truncation == "drop":
        return rows.select(numpy.flatnonzero(~is_long))
    return _keep_start(rows, limit)


def _seen(samples: Dataset, files: list[dict], column: str) -> tuple[int, str]:
    """How many samples have something in a column of texts, and the first as `file:line: text`."""
    held = a_row(samples, column, lambda texts: compute.not_equal(texts, "").to_numpy(zero_copy_only=False))
    if not held.any():
        return 0, ""
    first = int(held.argmax())
    return int(held.sum()), f"{file_of(files, first)}:{samples[first]['line']}: {samples[first][column]}"


def _total(samples: Dataset, column: str) -> int:
    """The sum of a column of counts."""
    return int(a_row(samples, column, pyarrow.Array.to_numpy).sum())


def file_of(files: list[dict], sample: int) -> str:
    """The path of the file that a sample came from, counting samples from 0 over all files as they were mixed."""
    ends = numpy.cumsum([file["samples"] for file in files])
    return files[int(numpy.searchsorted(ends, sample, side="right"))]["path"]


def _keep_start(rows: Dataset, limit: int) -> Dataset:
    """The start of each row, where that has a supervised token."""

    # In here, so that datasets keeps the result under a name that this code is part of.
    def cut(table: pyarrow.Table) -> pyarrow.Table:
        for column in ("input_ids", "labels"):
            index = table.column_names.index(column)
            table = table.set_column(index, column, compute.list_slice(table[column], 0, limit))
        has_loss = compute.not_equal(compute.list_flatten(table["labels"]), IGNORED)
        return table.take(compute.unique(compute.list_parent_indices(table["labels"]).filter(has_loss)))

    return rows.with_format("arrow").map(cut, batched=True).with_format(None)


def _card(
    recipe: Recipe,
    tokenizer,
    files: list[dict],
    rows: Dataset,
    lengths: numpy.ndarray,
    samples: Dataset,
    sequences: Dataset,
    control: tuple[int, str],
) -> DatasetCard:
    training = recipe.training
    limit, used = training.max_length, lengths_of(sequences)
    supervised = supervised_tokens(rows)
    a_process = training.per_device_train_batch_size * training.gradient_accumulation_steps
    per_epoch, total = count_steps(len(sequences), recipe)
    repeated = count_repeated(len(sequences), recipe.training)
    left_out, first_left_out = _seen(rows, files, "left_out")
    unused, first_unused = _seen(rows, files, "unused")
    return DatasetCard(
        files=files,
        rows=sum(file["taken"] for file in files),
        samples_made=len(rows),
        tokens=int(lengths.sum()),
        supervised_tokens=supervised,
        longest_sample=int(lengths.max()),
        max_length=limit,
        truncation=recipe.run.truncation,
        samples_over_max_length=int((lengths > limit).sum()) if limit else 0,
        samples_dropped=len(rows) - len(samples),
        samples=len(samples),
        tokens_lost=int(lengths.sum() - used.sum()),
        supervised_tokens_lost=supervised - supervised_tokens(sequences),
        packing=training.packing_strategy if training.packing else "none",
        packs=len(sequences),
        pack_fill=float(used.sum() / (len(sequences) * limit)) if training.packing and limit else 1.0,
        padding_share=_padding_share(used, training),
        packs_per_step=a_process * independent_processes(training),
        steps_per_epoch=per_epoch,
        total_steps=total,
        repeated=repeated,
        rows_with_control_tokens=control[0],
        first_control_token=control[1],
        answers=_total(rows, "answers"),
        answers_without_end=_total(rows, "answers_without_end"),
        answers_asked_otherwise=_total(rows, "answers_asked_otherwise"),
        samples_with_words_left_out=left_out,
        first_left_out=first_left_out,
        samples_with_unused_keys=unused,
        first_unused=first_unused,
        first_sample=mark_supervised(tokenizer, samples[0]["input_ids"], samples[0]["labels"]),
        system_message=load_identity_rows(recipe, tokenizer).common_system,
    )


def count_steps(sequences: int, recipe: Recipe) -> tuple[int, int]:
    """Optimizer steps of an epoch and of the whole run, counted as Transformers' Trainer does.

    Raises:
        UserError: there would be none.
    """
    training, processes = recipe.training, independent_processes(recipe.training)
    round_batches = math.floor if training.dataloader_drop_last else math.ceil
    batches = round_batches(round_batches(sequences / training.per_device_train_batch_size) / processes)
    if not batches:
        raise UserError(
            f"dataloader_drop_last: {counted(sequences, 'sequence')} cannot fill a batch of "
            f"{training.per_device_train_batch_size:,} for each of {processes} processes, so that nothing would be "
            "trained: lower per_device_train_batch_size, give more rows, or remove dataloader_drop_last"
        )
    per_epoch = max(math.ceil(batches / training.gradient_accumulation_steps), 1)
    total = training.max_steps if training.max_steps > 0 else math.ceil(training.num_train_epochs * per_epoch)
    return per_epoch, total


def count_repeated(sequences: int, training: TrainingArguments) -> int:
    """Sequences that an epoch trains once more, to give all processes as many (accelerate's `BatchSamplerShard`)."""
    processes, size = independent_processes(training), training.per_device_train_batch_size
    if processes == 1 or training.dataloader_drop_last:
        return 0
    return math.ceil(math.ceil(sequences / size) / processes) * processes * size - sequences


def _padding_share(lengths: numpy.ndarray, training) -> float:
    """Share of padding in the batches, taking rows in file order; flattened packs have none."""
    size = training.per_device_train_batch_size
    if training.padding_free or keeps_packed_samples_apart(training) or size == 1:
        return 0.0
    starts = numpy.arange(0, len(lengths), size)
    rows = numpy.diff(starts, append=len(lengths))
    return float(1 - lengths.sum() / (rows * numpy.maximum.reduceat(lengths, starts)).sum())
