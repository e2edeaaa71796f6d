"""Shows what the trainer will see: samples and packs as text, with the tokens that carry loss marked.

In: a recipe. Out: lines of text, or pieces for a page. Reads the data exactly as training does and loads no model.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from sft.config.recipe import Recipe
from sft.core.errors import UserError
from sft.core.imports import importing
from sft.core.language import Text, _, ngettext
from sft.core.text import visible
from sft.data.dataset import file_of, load_dataset, mixed_rows
from sft.data.dataset_card import SUPERVISED_CLOSES, SUPERVISED_OPENS
from sft.data.labels import IGNORED
from sft.models.loading import load_tokenizer

GREEN, PLAIN = "\x1b[32m", "\x1b[0m"


@dataclass
class Piece:
    """Neighbouring tokens of one kind: all supervised or all not, special tokens each on their own."""

    text: str
    ids: list[int]
    supervised: bool
    special: bool


@dataclass
class Sequence:
    """One sample, or one pack of several: what it is, its token ids and labels, and how long each sample in it is."""

    title: Text
    input_ids: list[int]
    labels: list[int]
    sample_lengths: list[int]

    def samples(self) -> Iterator[tuple[Text, list[int], list[int]]]:
        """Yield (heading, ids, labels) of each sample; `heading` says where it lies in the pack."""
        start = 0
        for number, length in enumerate(self.sample_lengths, start=1):
            end = start + length
            places = {"first": start, "last": end - 1, "position": length - 1}
            heading = _("tokens {first:,}-{last:,}, positions 0-{position:,}", **places)
            if len(self.sample_lengths) > 1:
                heading = _(
                    "sample {number} of {samples}: tokens {first:,}-{last:,}, positions 0-{position:,}",
                    number=number,
                    samples=len(self.sample_lengths),
                    **places,
                )
            yield heading, self.input_ids[start:end], self.labels[start:end]
            start = end


class Preview:
    """The samples and packs of a recipe's training data."""

    def __init__(self, recipe: Recipe):
        with importing():  # what its class needs
            self.tokenizer = load_tokenizer(
                recipe.model.model_name_or_path or "",
                revision=recipe.model.model_revision,
                trust_remote_code=recipe.training.trust_remote_code,
                chat_template_path=recipe.training.chat_template_path,
                chat_template_kwargs=recipe.run.chat_template_kwargs,
            )
        self.rows, self.files = mixed_rows(recipe, self.tokenizer)
        self.sequences, self.card = load_dataset(recipe, self.tokenizer)

    def row(self, number: int) -> Sequence:
        """The sample of one row, counted from 1 in the order of the files."""
        _check("--row", number, len(self.rows))
        row = self.rows[number - 1]
        length, limit = len(row["input_ids"]), self.card.max_length
        place = f"{file_of(self.files, number - 1)}:{row['line']}"
        title = ngettext(
            "row {number:,}: {place}: {count:,} token",
            "row {number:,}: {place}: {count:,} tokens",
            length,
            number=number,
            place=place,
        )
        if limit and length > limit:
            title = ngettext(
                "row {number:,}: {place}: {count:,} token, over max_length {limit:,} (truncation: {truncation})",
                "row {number:,}: {place}: {count:,} tokens, over max_length {limit:,} (truncation: {truncation})",
                length,
                number=number,
                place=place,
                limit=limit,
                truncation=self.card.truncation,
            )
        return Sequence(title, row["input_ids"], row["labels"], [length])

    def pack(self, number: int) -> Sequence:
        """One sequence as the model gets it, counted from 1 in the order they were packed."""
        _check("--pack", number, len(self.sequences))
        pack = self.sequences[number - 1]
        lengths = pack.get("seq_lengths") or [len(pack["input_ids"])]
        counts = {
            "number": number,
            "total": len(self.sequences),
            "tokens": len(pack["input_ids"]),
            "supervised": sum(label != IGNORED for label in pack["labels"]),
        }
        return Sequence(self._pack_title(counts, len(lengths)), pack["input_ids"], pack["labels"], lengths)

    def _pack_title(self, counts: dict[str, int], samples: int) -> Text:
        if self.card.packing == "wrapped":
            return _(
                "pack {number:,} of {total:,}: {tokens:,} tokens, {supervised:,} of them supervised, cut from samples "
                "that run on and see each other",
                **counts,
            )
        if self.card.packing == "none":
            return _("sequence {number:,} of {total:,}: {tokens:,} tokens, {supervised:,} of them supervised", **counts)
        return ngettext(
            "pack {number:,} of {total:,}: {tokens:,} tokens, {supervised:,} of them supervised, {count:,} sample",
            "pack {number:,} of {total:,}: {tokens:,} tokens, {supervised:,} of them supervised, {count:,} samples",
            samples,
            **counts,
        )


def pieces(tokenizer: PreTrainedTokenizerBase, ids: list[int], labels: list[int]) -> list[Piece]:
    """The tokens in runs that can be decoded and marked together."""
    special = set(tokenizer.all_special_ids) | set(tokenizer.added_tokens_decoder)
    runs: list[Piece] = []
    for token, label in zip(ids, labels, strict=True):
        is_special, supervised = token in special, label != IGNORED
        if runs and not is_special and not runs[-1].special and runs[-1].supervised == supervised:
            runs[-1].ids.append(token)
        else:
            runs.append(Piece("", [token], supervised, is_special))
    for run in runs:
        run.text = str(tokenizer.decode(run.ids))
    return runs


def as_text(tokenizer: PreTrainedTokenizerBase, sequence: Sequence, colour: bool) -> Iterator[str]:
    """The sequence's text; tokens that carry loss are green on a terminal, else between ⟦ and ⟧."""
    opens, closes = (GREEN, PLAIN) if colour else (SUPERVISED_OPENS, SUPERVISED_CLOSES)
    for heading, ids, labels in sequence.samples():
        yield f"--- {heading}"
        text, inside = "", False
        for piece in pieces(tokenizer, ids, labels):
            if piece.supervised != inside:
                text += opens if piece.supervised else closes
                inside = piece.supervised
            text += visible(piece.text)
        yield text + (closes if inside else "")


def masked_text(tokenizer: PreTrainedTokenizerBase, sequence: Sequence) -> Iterator[str]:
    """The sequence's text with every run of tokens without loss as [-100 x count], as XTuner's log-dataset has it."""
    for heading, ids, labels in sequence.samples():
        yield f"--- {heading}"
        text, masked = "", 0
        for piece in [*pieces(tokenizer, ids, labels), Piece("", [], True, False)]:
            if piece.supervised:
                text += f"[-100 x {masked}]" * bool(masked) + visible(piece.text)
                masked = 0
            else:
                masked += len(piece.ids)
        yield text


def _check(option: str, number: int, count: int) -> None:
    if not 1 <= number <= count:
        raise UserError(f"{option} {number}: there are {count:,}: choose from 1 to {count:,}")
