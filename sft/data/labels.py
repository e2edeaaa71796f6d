"""Labels: for each token of a sample its id, or `IGNORED` where no loss falls.

In: token ids and character ranges. Out: labels, or a text that shows where loss falls. Knows nothing about how the
ranges are found.
"""

from collections.abc import Iterable

import numpy
from transformers import PreTrainedTokenizerBase

from sft.data.dataset_card import SUPERVISED_CLOSES, SUPERVISED_OPENS
from sft.models.text_tokens import TextTokens

# The label that the loss functions of torch and Transformers skip.
IGNORED = -100


def label_ranges(tokens: TextTokens, ranges: Iterable[tuple[int, int]]) -> numpy.ndarray:
    """The ids of all tokens that have a character in common with a range; a character may be several tokens."""
    labels = numpy.full_like(tokens.ids, IGNORED)
    for start, stop in ranges:
        supervised = tokens.of(start, stop)
        labels[supervised] = tokens.ids[supervised]
    return labels


def mark_supervised(tokenizer: PreTrainedTokenizerBase, input_ids: list[int], labels: list[int]) -> str:
    """The sample decoded, each supervised run of tokens between ⟦ and ⟧."""
    text, marked = "", False
    run: list[int] = []
    for token, label in zip(input_ids, labels, strict=True):
        if (label != IGNORED) != marked:
            text += f"{tokenizer.decode(run)}{SUPERVISED_CLOSES if marked else SUPERVISED_OPENS}"
            run, marked = [], not marked
        run.append(token)
    return f"{text}{tokenizer.decode(run)}{SUPERVISED_CLOSES if marked else ''}"
