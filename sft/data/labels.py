"""Labels: for each token of a sample its id, or `IGNORED` where no loss falls.

In: token ids and character ranges. Out: labels, or a text that shows where loss falls. Knows nothing about how the
ranges are found.
"""

from collections.abc import Iterable

from tokenizers import Encoding
from transformers import PreTrainedTokenizerBase

from sft.data.dataset_card import SUPERVISED_CLOSES, SUPERVISED_OPENS

# The label that the loss functions of torch and Transformers skip.
IGNORED = -100


def label_ranges(encoding: Encoding, ids: list[int], ranges: Iterable[tuple[int, int]]) -> list[int]:
    """The ids of all tokens that have a character in common with a range; a character may be several tokens.

    `ids` are the encoding's, which builds a new list of them whenever it is asked.
    """
    labels = [IGNORED] * len(ids)
    for start, stop in ranges:
        tokens = _tokens_of(encoding, start, stop)
        labels[tokens] = ids[tokens]
    return labels


def _tokens_of(encoding: Encoding, start: int, stop: int) -> slice:
    """The tokens of some characters; blanks that a tokenizer counts to no token lie between the others."""
    first = _first_token(encoding, range(start, stop))
    last = _first_token(encoding, range(stop - 1, start - 1, -1))
    if first is None or last is None:
        return slice(0)
    while first and (place := encoding.token_to_chars(first - 1)) and place[1] > start:
        first -= 1
    while last + 1 < len(encoding) and (place := encoding.token_to_chars(last + 1)) and place[0] < stop:
        last += 1
    return slice(first, last + 1)


def _first_token(encoding: Encoding, characters: range) -> int | None:
    for place in characters:
        if (token := encoding.char_to_token(place)) is not None:
            return token
    return None


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
