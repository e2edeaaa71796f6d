"""An answer that is read while a model writes it: whole characters of it, and at the end why it ended.

In: tokens, as `generate` hands them to a streamer. Out: text that grows. Knows nothing about models.
"""

import codecs
import json
import re
import threading
from collections.abc import Iterator
from queue import SimpleQueue

import torch
from transformers import PreTrainedTokenizerBase
from transformers.convert_slow_tokenizer import bytes_to_unicode
from transformers.generation.streamers import BaseStreamer

from sft.models.chat_template import ChatTemplate
from sft.models.generate import answer_text

UNFINISHED = "\N{REPLACEMENT CHARACTER}"
# A character has four bytes at most, and a token is one or more of them: so many may be the beginning of one.
TOKENS_OF_BEGUN_CHARACTER = 3
BYTE_PIECE = re.compile("<0x([0-9A-F]{2})>")


class StreamedAnswer(BaseStreamer):
    """An answer while it is written: iterate, once, for the whole text so far; stripped of white space.

    Transformers' TextIteratorStreamer decodes each line for itself, which costs sentencepiece models the first space
    of a line, and shows an end of turn that the tokenizer does not call special; here `text` is what decoding all
    tokens gives, without a character that was begun and not ended. `stop_reason` is then "end of turn", "stopped", or
    `at_limit`: what it is that gave the answer no more tokens.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, ends: list[int], at_limit: str = "max_new_tokens"):
        self.text = ""
        self.stop_reason: str | None = None
        self.problem: Exception | None = None
        self._tokenizer, self._ends, self._at_limit = tokenizer, ends, at_limit
        self._characters = Characters(tokenizer)
        template = ChatTemplate(tokenizer) if tokenizer.chat_template else None
        self._closing_words = template.closing_words if template else ""
        self._ends_with_words = stop_words(template) is not None
        self._written: SimpleQueue[list[int] | None] = SimpleQueue()
        self._is_prompt = True
        self._stop = threading.Event()

    def __iter__(self) -> Iterator[str]:
        tokens: list[int] = []
        try:
            while (written := self._written.get()) is not None:
                tokens += written
                text = self._without_begun_end(self._decode(tokens))
                if text != self.text:
                    self.text = text
                    yield text
            if self.problem:
                raise self.problem
            whole = self._decode(tokens)
            self.stop_reason = self._reason(tokens, whole)
            text = self._without_end(whole) if self.stop_reason == "end of turn" else whole
            if text != self.text:
                self.text = text
                yield text
        finally:
            # Whoever stops reading wants no more of it.
            self.stop()

    def stop(self) -> None:
        """Write no further token; what is written stays."""
        self._stop.set()

    @property
    def is_stopped(self) -> bool:
        """Whether `stop` was called, or nobody reads any more."""
        return self._stop.is_set()

    def put(self, value: torch.Tensor) -> None:
        """Called by `generate` with the prompt first, then with each token."""
        if not self._is_prompt:
            self._written.put(value.tolist())
        self._is_prompt = False

    def end(self) -> None:
        """Called by `generate` after the last token."""
        self._written.put(None)

    def _decode(self, tokens: list[int]) -> str:
        whole, is_mark_left = self._characters.whole(tokens)
        text = answer_text(self._tokenizer, whole, self._ends)[0]
        return text.removesuffix(UNFINISHED).rstrip() if is_mark_left else text

    def _without_end(self, text: str) -> str:
        """The text without the words that end it."""
        if self._ends_with_words:
            return text.partition(self._closing_words)[0].rstrip()
        return text.removesuffix(self._closing_words).rstrip()

    def _without_begun_end(self, text: str) -> str:
        """The text without what may turn out to be, or be the beginning of, the words that end it."""
        text = self._without_end(text)
        begun = (self._closing_words[:length] for length in range(len(self._closing_words) - 1, 0, -1))
        return text.removesuffix(next(filter(text.endswith, begun), "")).rstrip()

    def _reason(self, tokens: list[int], text: str) -> str:
        if (tokens and tokens[-1] in self._ends) or (self._ends_with_words and self._closing_words in text):
            return "end of turn"
        return "stopped" if self.is_stopped else self._at_limit


class Characters:
    """Knows which tokens are whole characters: of an emoji or a rare Chinese character each may be a byte or two."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase):
        self._tokenizer = tokenizer
        decoder = tokenizer.backend_tokenizer.decoder
        kinds = _kinds(json.loads(decoder.__getstate__())) if decoder else set()
        self._bytes_of_letters = {}
        if "ByteLevel" in kinds:
            self._bytes_of_letters = {letter: byte for byte, letter in bytes_to_unicode().items()}
        self._has_byte_pieces = "ByteFallback" in kinds

    def whole(self, tokens: list[int]) -> tuple[list[int], bool]:
        """The tokens without those of a character that is only begun, as far as these are nothing else.

        And whether something of it is left, which decoding shows as one replacement character at the end.
        """
        begun = self._begun_bytes(tokens)
        if not begun:
            return tokens, False
        if self._has_byte_pieces:
            return tokens[:-begun], False
        return tokens, True

    def _begun_bytes(self, tokens: list[int]) -> int:
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        decoder.decode(b"".join(map(self._bytes, tokens[-TOKENS_OF_BEGUN_CHARACTER:])))
        return len(decoder.getstate()[0])

    def _bytes(self, token: int) -> bytes:
        piece = str(self._tokenizer.convert_ids_to_tokens(token))
        if self._has_byte_pieces and (match := BYTE_PIECE.fullmatch(piece)):
            return bytes.fromhex(match[1])
        if self._bytes_of_letters and all(letter in self._bytes_of_letters for letter in piece):
            return bytes(self._bytes_of_letters[letter] for letter in piece)
        return piece.encode("utf-8", "replace")


def stop_words(template: ChatTemplate | None) -> str | None:
    """The words at which an answer ends where the template ends it with words, for which there is no token."""
    return template.closing_words or None if template and not template.end_tokens else None


def _kinds(decoder: dict) -> set[str]:
    """The kinds of a decoder and of those in it."""
    return {decoder["type"]}.union(*map(_kinds, decoder.get("decoders", ())))
