"""Tokenises texts, and says which tokens stand for which characters.

In: a tokenizer, texts. Out: the tokenizer's own ids, without lists of everything else that is known of them. Knows
nothing about templates or loss.
"""

from collections.abc import Sequence

import numpy
from tokenizers import Encoding
from transformers import PreTrainedTokenizerBase


class TextTokens:
    """The tokens of one text; `ids` is an array of int32."""

    def __init__(self, encoding: Encoding):
        self.ids, self._encoding = numpy.array(encoding.ids, dtype="int32"), encoding

    def of(self, start: int, stop: int) -> slice:
        """The tokens that have one of these characters, of which one may be several tokens.

        Blanks that a tokenizer counts to no token lie between the others.
        """
        encoding = self._encoding
        first = _first_token(encoding, range(start, stop))
        last = _first_token(encoding, range(stop - 1, start - 1, -1))
        if first is None or last is None:
            return slice(0)
        while first and (place := encoding.token_to_chars(first - 1)) and place[1] > start:
            first -= 1
        while last + 1 < len(encoding) and (place := encoding.token_to_chars(last + 1)) and place[0] < stop:
            last += 1
        return slice(first, last + 1)


def tokens_of_texts(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[TextTokens]:
    """The tokens of each text, none added around them, however the tokenizer was used last."""
    backend = tokenizer.backend_tokenizer
    backend.no_truncation()
    backend.no_padding()
    backend.encode_special_tokens = tokenizer.split_special_tokens
    return list(map(TextTokens, backend.encode_batch(texts, add_special_tokens=False)))


def _first_token(encoding: Encoding, characters: range) -> int | None:
    for place in characters:
        if (token := encoding.char_to_token(place)) is not None:
            return token
    return None
