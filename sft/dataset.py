"""Turns a training file into packs of token ids with labels, and keeps the account of every token.

In: a recipe and a tokenizer. Out: a `datasets.Dataset` ready for SFTTrainer, and a `DatasetCard`.
Knows nothing about the model.
"""

import hashlib
import inspect
import math
import random
from collections.abc import Iterator
from dataclasses import asdict, dataclass

import numpy
import pyarrow.compute as compute
import transformers
import trl
from datasets import Dataset, concatenate_datasets
from datasets.exceptions import DatasetGenerationError
from transformers import PreTrainedTokenizerBase

from data_tools import formats
from data_tools.errors import UserError
from data_tools.files import file_hash
from data_tools.mix import draw
from sft import chat_template
from sft.recipe import Recipe

IGNORED = -100
SUPERVISED_OPENS, SUPERVISED_CLOSES = "⟦", "⟧"


@dataclass
class DatasetCard:
    """What came in, what went out and why, in samples and tokens; the counts add up."""

    files: list[dict]
    rows: int
    tokens: int
    supervised_tokens: int
    longest_sample: int
    max_length: int | None
    truncation: str
    samples_over_max_length: int
    samples_dropped: int
    samples: int
    tokens_lost: int
    supervised_tokens_lost: int
    packing: str
    packs: int
    pack_fill: float
    padding_share: float
    packs_per_step: int
    steps_per_epoch: int
    total_steps: int
    first_sample: str

    def to_dict(self) -> dict:
        return asdict(self)

    def lines(self) -> list[str]:
        """The card as text, one fact a line; the supervised part of the first sample stands in ⟦ ⟧."""
        kind = "packs" if self.packing != "none" else "sequences"
        fill = f", {self.pack_fill:.1%} full" if self.packing != "none" else ""
        cut = ["               samples are cut across packs and see each other, as in XTuner"]
        return [
            *(_file_line(file) for file in self.files),
            f"rows           {self.rows:,} -> {self.samples:,} samples"
            f" ({self.samples_over_max_length:,} over max_length {self.max_length}, {self.samples_dropped:,} dropped)",
            f"tokens         {self.tokens:,}, of them supervised {self.supervised_tokens:,}"
            f" ({self.supervised_tokens / self.tokens:.1%}); longest sample {self.longest_sample:,}",
            f"tokens lost    {self.tokens_lost:,}"
            f" (supervised {self.supervised_tokens_lost:,}; truncation: {self.truncation})",
            f"{kind:<14} {self.packs:,} of up to {self.max_length} tokens ({self.packing}{fill},"
            f" padding {self.padding_share:.1%})",
            *(cut if self.packing == "wrapped" else []),
            f"steps          {self.total_steps:,} in all, {self.steps_per_epoch:,} an epoch;"
            f" {kind} a step: {self.packs_per_step:,}",
            f"first sample   loss falls on {SUPERVISED_OPENS}...{SUPERVISED_CLOSES} only:",
            *(f"               {line}" for line in self.first_sample.splitlines()),
        ]


def _file_line(file: dict) -> str:
    weight = "" if file["weight"] == 1 else f": {file['taken']:,} of {file['rows']:,} rows (weight {file['weight']:g})"
    return f"file           {file['path']}{weight}"


def load_dataset(recipe: Recipe, tokenizer: PreTrainedTokenizerBase) -> tuple[Dataset, DatasetCard]:
    """Read, tokenise, fit to max_length and pack the recipe's training files.

    Returns:
        The sequences, columns `input_ids`, `labels` and (packed) `seq_lengths`, and their card.

    Raises:
        UserError: a bad row, a sample too long under `truncation: error`, or nothing left to train on.
    """
    rows, files = mixed_rows(recipe, tokenizer)
    samples = _fit(recipe, rows)
    sequences = _sequences(recipe, samples, recipe.training.packing_strategy)
    return sequences, _card(recipe, tokenizer, files, rows, samples, sequences)


def load_held_out(recipe: Recipe, tokenizer: PreTrainedTokenizerBase) -> Dataset | None:
    """The sequences of `eval_file`, made as for training but never cut across packs; None without such a file.

    Raises:
        UserError: as `load_dataset`.
    """
    path = recipe.run.eval_file
    if not path:
        return None
    samples = _fit(recipe, tokenise(path, tokenizer))
    return _sequences(recipe, samples, "bfd")


def mixed_rows(recipe: Recipe, tokenizer: PreTrainedTokenizerBase) -> tuple[Dataset, list[dict]]:
    """All files' samples in the share their weights say, and the account of each file."""
    dice, parts, files = random.Random(recipe.training.seed), [], []
    for file in recipe.train_files:
        rows = tokenise(file.path, tokenizer)
        taken = sorted(draw(range(len(rows)), file.weight, dice)) if file.weight != 1 else range(len(rows))
        parts.append(rows.select(taken))
        files.append(
            {"path": file.path, "sha256": file_hash(file.path), "rows": len(rows)}
            | {"weight": file.weight, "taken": len(taken)}
        )
    return concatenate_datasets(parts), files


def _sequences(recipe: Recipe, samples: Dataset, packing_strategy: str) -> Dataset:
    training = recipe.training
    if not len(samples):
        raise UserError(f"no sample is left: raise max_length above {training.max_length}, or give more rows")
    ordered = samples.shuffle(seed=training.seed) if training.shuffle_dataset else samples
    sequences = ordered.select_columns(["input_ids", "labels"])
    return trl.pack_dataset(sequences, training.max_length, packing_strategy) if training.packing else sequences


def tokenise(path: str, tokenizer: PreTrainedTokenizerBase) -> Dataset:
    """One sample a row: `file`, `line`, `input_ids` and `labels`, cached under a hash of all that decides them."""
    template = chat_template.training_template(tokenizer)
    try:
        return Dataset.from_generator(
            _samples,
            gen_kwargs={"path": path, "tokenizer": tokenizer, "template": template},
            fingerprint=_fingerprint(path, tokenizer, template),
        )
    except DatasetGenerationError as failure:
        raise failure.__cause__ or failure from None


def _samples(path: str, tokenizer: PreTrainedTokenizerBase, template: str) -> Iterator[dict]:
    for line, row in formats.read_rows(path):
        ids, is_supervised = encode(tokenizer, template, row["messages"])
        if not any(is_supervised):
            raise UserError(f"{path}:{line}: no supervised token: every answer of this row is empty")
        labels = [token if supervised else IGNORED for token, supervised in zip(ids, is_supervised, strict=True)]
        yield {"file": path, "line": line, "input_ids": ids, "labels": labels}


def encode(tokenizer: PreTrainedTokenizerBase, template: str, messages: list[dict]) -> tuple[list[int], list[int]]:
    """Token ids of a conversation, and for each 1 where it is the assistant's (end-of-turn token included).

    Raises:
        UserError: the marked template does not render this conversation as the tokenizer's own does.
    """
    marked = tokenizer.apply_chat_template(messages, chat_template=template, tokenize=False)
    if marked != tokenizer.apply_chat_template(messages, tokenize=False):
        raise UserError(
            f"{tokenizer.name_or_path}: the training template renders {messages[-1]['content'][:40]!r} differently "
            "from the model's own: name a marked copy of the model's template with chat_template_path"
        )
    encoded = tokenizer.apply_chat_template(
        messages, chat_template=template, tokenize=True, return_dict=True, return_assistant_tokens_mask=True
    )
    return encoded["input_ids"], encoded["assistant_masks"]


def _fingerprint(path: str, tokenizer: PreTrainedTokenizerBase, template: str) -> str:
    """A hash of the rows, the tokenizer, the templates, this code and the libraries below it."""
    parts = (
        file_hash(path),
        path,
        tokenizer.backend_tokenizer.to_str(),
        str(tokenizer.chat_template),
        template,
        inspect.getsource(formats),
        inspect.getsource(inspect.getmodule(_samples)),
        transformers.__version__,
    )
    return hashlib.sha256("\0".join(parts).encode("utf-8", "surrogatepass")).hexdigest()[:32]


def _fit(recipe: Recipe, rows: Dataset) -> Dataset:
    """Apply the truncation policy; packing that splits long samples (bfd_split, wrapped) needs none."""
    training, limit = recipe.training, recipe.training.max_length
    if limit is None or (training.packing and training.packing_strategy != "bfd"):
        return rows
    is_long = numpy.flatnonzero(_lengths(rows) > limit)
    if not len(is_long):
        return rows
    if recipe.run.truncation == "error":
        row = rows[int(is_long[0])]
        raise UserError(
            f"{row['file']}:{row['line']}: {len(row['input_ids']):,} tokens, over max_length {limit:,} "
            f"({len(is_long):,} such rows, the longest {_lengths(rows).max():,}): raise max_length, or set truncation "
            "to drop (leave them out) or keep_start (cut their ends)"
        )
    if recipe.run.truncation == "drop":
        return rows.select(numpy.flatnonzero(_lengths(rows) <= limit))
    cut = rows.map(lambda row: {key: row[key][:limit] for key in ("input_ids", "labels")})
    return cut.filter(lambda row: any(label != IGNORED for label in row["labels"]))


def _card(
    recipe: Recipe, tokenizer, files: list[dict], rows: Dataset, samples: Dataset, sequences: Dataset
) -> DatasetCard:
    training = recipe.training
    limit, lengths, used = training.max_length, _lengths(rows), _lengths(sequences)
    supervised = supervised_tokens(rows)
    packs_per_step = training.per_device_train_batch_size * training.gradient_accumulation_steps * training.world_size
    per_epoch, total = count_steps(len(sequences), recipe)
    return DatasetCard(
        files=files,
        rows=len(rows),
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
        pack_fill=float(used.sum() / (len(sequences) * limit)) if training.packing else 1.0,
        padding_share=_padding_share(used, training),
        packs_per_step=packs_per_step,
        steps_per_epoch=per_epoch,
        total_steps=total,
        first_sample=mark_supervised(tokenizer, samples[0]["input_ids"], samples[0]["labels"]),
    )


def count_steps(sequences: int, recipe: Recipe) -> tuple[int, int]:
    """Optimizer steps of an epoch and of the whole run, counted as Transformers' Trainer does."""
    training = recipe.training
    round_batches = math.floor if training.dataloader_drop_last else math.ceil
    batches = round_batches(sequences / training.per_device_train_batch_size)
    batches = math.ceil(batches / training.world_size)
    per_epoch = max(math.ceil(batches / training.gradient_accumulation_steps), 1)
    total = training.max_steps if training.max_steps > 0 else math.ceil(training.num_train_epochs * per_epoch)
    return per_epoch, total


def mark_supervised(tokenizer: PreTrainedTokenizerBase, input_ids: list[int], labels: list[int]) -> str:
    """The sample decoded, each supervised run of tokens between ⟦ and ⟧."""
    text, run, marked = [], [], False
    for token, label in zip(input_ids, labels, strict=True):
        if (label != IGNORED) != marked:
            text += [tokenizer.decode(run), SUPERVISED_CLOSES if marked else SUPERVISED_OPENS]
            run, marked = [], not marked
        run.append(token)
    return "".join([*text, tokenizer.decode(run), SUPERVISED_CLOSES if marked else ""])


def _lengths(dataset: Dataset) -> numpy.ndarray:
    """Tokens of each row, `(rows,)`."""
    column = dataset.with_format("arrow")[:]["input_ids"]
    return compute.list_value_length(column).to_numpy()


def supervised_tokens(dataset: Dataset) -> int:
    """How many tokens of the dataset carry loss."""
    labels = compute.list_flatten(dataset.with_format("arrow")[:]["labels"])
    return compute.sum(compute.not_equal(labels, IGNORED)).as_py() or 0


def _padding_share(lengths: numpy.ndarray, training) -> float:
    """Share of padding in the batches, taking rows in file order; flattened packs have none."""
    size = training.per_device_train_batch_size
    if training.padding_free or (training.packing and training.packing_strategy != "wrapped") or size == 1:
        return 0.0
    padded = sum(len(batch) * int(batch.max()) for batch in numpy.split(lengths, range(size, len(lengths), size)))
    return float(1 - lengths.sum() / padded)
