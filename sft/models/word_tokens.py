"""Tokenises texts word by word, so that a word that was seen before is looked up: half the cost of preparing data.

In: a tokenizer, texts. Out: the same ids as the tokenizer's own, and which of them stand for which characters.
Byte-level tokenizers cut a text into words by a pattern, and no token reaches over the end of a word; where the pattern
is a known one and every character of a text is as old as Unicode's first versions, so that whoever reads the pattern
finds the same words, the ids of a text are those of its words. Any other text or tokenizer is the tokenizer's own to
read. Knows nothing about templates or loss.
"""

import itertools
import json
import re
import unicodedata
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from functools import cached_property
from typing import Protocol

import numpy
from tokenizers import Encoding, Tokenizer, models
from transformers import PreTrainedTokenizerBase

# Letters and digits that were never anything else, as Unicode has them by category L and N; and these with other signs,
# blanks and pictures. Without ſ, which is an s where case makes no difference, and without what only some regular
# expressions take for a blank.
_L = (
    "A-Za-z\u00aa\u00b5\u00ba\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u012f\u0132-\u017e\u0180-\u024f\u0391-\u03a1\u03a3-\u03c9"
    "\u0401\u0410-\u044f\u0451\u3005-\u3006\u3031-\u3035\u303b-\u303c\u3041-\u3096\u30a1-\u30fa\u30fc-\u30fe"
    "\u3400-\u4db5\u4e00-\u9fa5\uac00-\ud7a3\uff21-\uff3a\uff41-\uff5a\U00020000-\U0002a6d6"
)
_N = (
    "0-9\u00b2-\u00b3\u00b9\u00bc-\u00be\u2460-\u249b\u24ea-\u24ff\u2776-\u2793\u3007\u3021-\u3029\u3038-\u303a"
    "\uff10-\uff19"
)
IS_OLD = re.compile(
    f"[{_L}{_N}\t\n\r -~\u00a0-\u00bf\u00d7\u00f7\u2010-\u2027\u2030-\u205e\u20ac\u2122\u2190-\u23ff\u2460-\u27bf"
    "\u3000-\u3029\u3030-\u303d\u30a1-\u30fe\uff01-\uff5e\U0001f300-\U0001f64f\U0001f680-\U0001f6c5]+"
)
_SIGNS = rf" ?[^\s{_L}{_N}]+"
_SHORT = "'s|'t|'re|'ve|'m|'ll|'d"
_BLANKS = r"\s*[\r\n]+|\s+(?!\S)|\s+"
# Those of GPT-2, Llama 3 and Qwen2, as tokenizers write them.
GPT2 = rf"{_SHORT}| ?\p{{L}}+| ?\p{{N}}+| ?[^\s\p{{L}}\p{{N}}]+|\s+(?!\S)|\s+"
LLAMA3 = rf"(?i:{_SHORT})|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{_BLANKS}"
QWEN2 = LLAMA3.replace("{1,3}", "")
# By the pattern of a tokenizer, what finds the same words in old characters: Python's own is three times as fast.
_OURS = rf"(?i:{_SHORT})|[^\r\n{_L}{_N}]?[{_L}]+|[{_N}]{{1,3}}|{_SIGNS}[\r\n]*|{_BLANKS}"
PATTERNS = {
    GPT2: rf" ?[{_L}]+| ?[{_N}]+|{_SHORT}|{_SIGNS}|\s+(?!\S)|\s+",
    LLAMA3: _OURS,
    QWEN2: _OURS.replace("{1,3}", ""),
}
# Words that are remembered; about 25 MB of them.
MOST_WORDS = 1 << 17
ID = numpy.dtype("int32")


class TextTokens(Protocol):
    """The tokens of one text: `ids`, of `ID`, and the range of those that have a character of a range in common."""

    ids: numpy.ndarray

    def of(self, start: int, stop: int) -> slice:
        """The tokens of some characters, of which one may be several tokens."""


class WholeText:
    """The tokens of a text that the tokenizer read."""

    def __init__(self, encoding: Encoding):
        self.ids, self._encoding = numpy.array(encoding.ids, dtype=ID), encoding

    def of(self, start: int, stop: int) -> slice:
        """See `TextTokens`; blanks that a tokenizer counts to no token lie between the others."""
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


class Words:
    """The tokens of a text word by word; `pieces` are each word's ids, as bytes."""

    def __init__(self, words: list[str], pieces: list[bytes], backend: Tokenizer):
        self.ids = numpy.frombuffer(b"".join(pieces), dtype=ID)
        self._words, self._pieces, self._backend = words, pieces, backend

    def of(self, start: int, stop: int) -> slice:
        """See `TextTokens`."""
        if start >= stop:
            return slice(0)
        first, last = bisect_right(self._ends, start), bisect_left(self._ends, stop)
        begin, end = self._tokens_before(first), self._tokens_before(last + 1)
        if inside := start - self._start(first):
            begin += sum(place[1] <= inside for place in self._places(first))
        if (inside := stop - self._start(last)) < len(self._words[last]):
            end -= sum(place[0] >= inside for place in self._places(last))
        return slice(begin, end)

    @cached_property
    def _ends(self) -> list[int]:
        return list(itertools.accumulate(map(len, self._words)))

    def _start(self, word: int) -> int:
        return self._ends[word - 1] if word else 0

    def _tokens_before(self, word: int) -> int:
        return sum(map(len, self._pieces[:word])) // ID.itemsize

    def _places(self, word: int) -> list[tuple[int, int]]:
        return self._backend.encode(self._words[word], add_special_tokens=False).offsets


class TextReader:
    """Tokenises texts as a tokenizer does, without tokens of its own around them."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase):
        self._tokenizer, self._backend = tokenizer, tokenizer.backend_tokenizer
        # What has an id whatever stands around it.
        self._added = {token.content: number for number, token in tokenizer.added_tokens_decoder.items()}
        self._separator = min(self._added, key=len, default="")
        added = sorted(map(re.escape, self._added), key=len, reverse=True)
        self._parts = re.compile(f"({'|'.join(added) or '(?!)'})").split
        pattern = _pattern(tokenizer)
        self._words_of = re.compile(PATTERNS[pattern]).findall if pattern else None
        self._known: dict[str, bytes] = {}

    def read(self, texts: Sequence[str]) -> list[TextTokens]:
        """The tokens of each text, however the tokenizer was used last."""
        self._backend.no_truncation()
        self._backend.no_padding()
        self._backend.encode_special_tokens = self._tokenizer.split_special_tokens
        by_words = self._words_of and not self._tokenizer.split_special_tokens
        cut = [self._cut(text) if by_words else None for text in texts]
        self._learn(set(itertools.chain.from_iterable(filter(None, cut))))
        rest = [text for text, words in zip(texts, cut, strict=True) if words is None]
        encodings = map(WholeText, self._backend.encode_batch(rest, add_special_tokens=False))
        known = self._known.__getitem__
        return [
            next(encodings) if words is None else Words(words, list(map(known, words)), self._backend) for words in cut
        ]

    def _cut(self, text: str) -> list[str] | None:
        """The words of a text; None where they might not be what the tokenizer finds."""
        if not IS_OLD.fullmatch(text) or not unicodedata.is_normalized("NFC", text):
            return None
        words: list[str] = []
        for number, part in enumerate(self._parts(text)):
            if number % 2:
                words.append(part)
            elif part:
                words += self._words_of(part)  # type: ignore[misc]
        return words

    def _learn(self, words: set[str]) -> None:
        """Know the ids of these words, if need be in place of others."""
        new = words - self._known.keys()
        if len(self._known) + len(new) > MOST_WORDS or not self._known:
            self._known = {added: numpy.array([number], ID).tobytes() for added, number in self._added.items()}
            new = words - self._known.keys()
        if not new:
            return
        # One text of many words is read in a third of the time that as many texts take.
        (whole,) = self._backend.encode_batch([self._separator.join(new)], add_special_tokens=False)
        ids = numpy.array(whole.ids, dtype=ID)
        places = numpy.flatnonzero(ids == self._added.get(self._separator, -1))
        if len(places) == len(new) - 1:
            starts, ends = [0, *(places + 1).tolist()], [*places.tolist(), len(ids)]
            pieces = [ids[start:end].tobytes() for start, end in zip(starts, ends, strict=True)]
        else:
            each = self._backend.encode_batch(list(new), add_special_tokens=False)
            pieces = [numpy.array(encoding.ids, dtype=ID).tobytes() for encoding in each]
        self._known.update(zip(new, pieces, strict=True))


def _first_token(encoding: Encoding, characters: range) -> int | None:
    for place in characters:
        if (token := encoding.char_to_token(place)) is not None:
            return token
    return None


def _pattern(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """The pattern of a tokenizer that reads each word alone, whatever stands around it; None of any other."""
    backend = tokenizer.backend_tokenizer
    added = tokenizer.added_tokens_decoder.values()
    if not isinstance(backend.model, models.BPE) or backend.model.dropout or backend.model.unk_token:
        return None
    if not added or any(token.lstrip or token.rstrip or token.single_word or token.normalized for token in added):
        return None
    normalizer, cutter, ends = map(_settings, (backend.normalizer, backend.pre_tokenizer, backend.post_processor))
    if normalizer not in ({}, {"type": "NFC"}) or "'trim_offsets': True" in str(ends):
        return None
    if cutter.get("type") == "ByteLevel":
        return GPT2 if cutter.get("use_regex") and not cutter.get("add_prefix_space") else None
    split, *others = cutter.get("pretokenizers", [{}])
    pattern = split.get("pattern", {}).get("Regex")
    is_known = pattern in PATTERNS and split == {
        "type": "Split",
        "pattern": {"Regex": pattern},
        "behavior": "Isolated",
        "invert": False,
    }
    is_bytes = [(other.get("type"), other.get("use_regex"), other.get("add_prefix_space")) for other in others]
    return pattern if is_known and is_bytes == [("ByteLevel", False, False)] else None


def _settings(part: object) -> dict:
    """What a part of a tokenizer is made of, as in tokenizer.json; {} where there is none."""
    return json.loads(part.__getstate__()) if part else {}  # type: ignore[arg-type]
