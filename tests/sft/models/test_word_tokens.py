"""Texts that are tokenised word by word have the very tokens that the tokenizer itself gives, in the same places."""

import random

import pytest
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from sft.models import word_tokens
from sft.models.word_tokens import GPT2, IS_OLD, LLAMA3, QWEN2, TextReader, Words
from tests.support.documents import PROSE as PAGES
from tests.support.tokenizer import sentencepiece_tokenizer

PROSE = "\n".join(PAGES)
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
PIECES = [
    *("I'S it'll we'VE 'ſ", "a.<|im_end|>.b", "<<|im_start|>", "<|endoftext|", "\r\n \n\n  x", "\t x ", "  "),
    *("１２３４ 12345678 ①Ⅳ", "龘黄大力", "🇨🇳🙂\u200d👩", "é e\u0301 Ǆ İı", "\u0085\u00a0\x1c\ufeff", "กำ हिन्दी 각"),
    *("'s's 't", "“—…", "\u3007々ー"),
]  # fmt: skip


def of_words(pattern: str) -> pre_tokenizers.PreTokenizer:
    """Cuts a text by a pattern, as Llama 3's and Qwen2's do, or GPT-2's."""
    if pattern == GPT2:
        return pre_tokenizers.ByteLevel(add_prefix_space=False)
    in_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(pattern), "isolated"), in_bytes])


def byte_level(cutter, normalizer=None, ends=None, added=()) -> PreTrainedTokenizerFast:
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = cutter
    if normalizer:
        bpe.normalizer = normalizer
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=900, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    bpe.train_from_iterator([PROSE], trainer)
    if ends:
        bpe.post_processor = ends
    bpe.add_tokens(list(added))
    return PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="<|im_end|>", pad_token="<|endoftext|>")


def varied_texts() -> list[str]:
    dice = random.Random(5)
    texts = [""]
    for _ in range(400):
        starts = [dice.randrange(len(PROSE) - 80) for _ in range(3)]
        parts = [PROSE[start : start + dice.randint(0, 80)] for start in starts] + dice.sample(
            PIECES, dice.choice((0, 1, 2))
        )
        texts.append("".join(dice.sample(parts, len(parts))))
    return texts


def assert_alike(tokenizer, texts: list[str]) -> int:
    """See that all tokens and their places are the tokenizer's; returns how many texts were read word by word."""
    reader, dice = TextReader(tokenizer), random.Random(6)
    encodings = tokenizer.backend_tokenizer.encode_batch(texts, add_special_tokens=False)
    for _ in range(2):  # not seen before, and seen
        read = reader.read(texts)
        for text, encoding, tokens in zip(texts, encodings, read, strict=True):
            assert tokens.ids.tolist() == encoding.ids
            whole = word_tokens.WholeText(encoding)
            for _ in range(8):
                start, stop = sorted((dice.randint(0, len(text)), dice.randint(0, len(text))))
                assert encoding.ids[tokens.of(start, stop)] == encoding.ids[whole.of(start, stop)], (text, start, stop)
    return sum(isinstance(tokens, Words) for tokens in read)


@pytest.mark.parametrize("pattern", [GPT2, LLAMA3, QWEN2])
@pytest.mark.parametrize("normalizer", [None, normalizers.NFC()])
def test_tokens_and_their_places_are_the_tokenizers_own(pattern, normalizer):
    ends = processors.ByteLevel(add_prefix_space=True, trim_offsets=False)
    added = [AddedToken(content, normalized=False) for content in ("<think>", "data", "data set", "你")]
    texts = varied_texts()
    by_words = assert_alike(byte_level(of_words(pattern), normalizer, ends, added), texts)
    assert len(texts) / 3 < by_words < len(texts)


@pytest.mark.parametrize("pattern", [GPT2, LLAMA3, QWEN2])
def test_every_character_that_is_read_by_ours_is_cut_as_by_the_tokenizer(pattern):
    tokenizer, old = byte_level(of_words(pattern)), [chr(code) for code in range(0x30000) if IS_OLD.match(chr(code))]
    # Of the many that are alike, some.
    some = [character for index, character in enumerate(old) if not "\u3400" < character < "\ud7a3" or index % 97 == 0]
    shapes = ("a{0}b 1{0}2 .{0}. {0}{0} '{0}", " {0}a\n{0} \t{0}\r\n{0}1")
    texts = [shape.format(character) for character in some[:6000] + some[-300:] for shape in shapes]
    reader = TextReader(tokenizer)
    for number in range(0, len(texts), 1000):
        batch = texts[number : number + 1000]
        cut = [reader._cut(text) for text in batch]
        for text, words in zip(batch, cut, strict=True):
            if words is not None:
                pieces = tokenizer.backend_tokenizer.pre_tokenizer.pre_tokenize_str(text)
                assert words == [text[start:stop] for _, (start, stop) in pieces], ascii(text)


@pytest.mark.parametrize(
    "tokenizer",
    [
        byte_level(pre_tokenizers.ByteLevel(add_prefix_space=True)),
        byte_level(pre_tokenizers.Sequence([pre_tokenizers.Digits(True), pre_tokenizers.ByteLevel(False)])),
        byte_level(of_words(GPT2), ends=processors.ByteLevel(trim_offsets=True)),
        byte_level(of_words(GPT2), normalizers.Lowercase()),
        byte_level(of_words(GPT2), added=[AddedToken("the", single_word=True, normalized=False)]),
        byte_level(of_words(GPT2), added=[AddedToken(" of", lstrip=True, normalized=False)]),
        byte_level(of_words(r"\p{L}+|\P{L}+")),
        sentencepiece_tokenizer("", controls=("<|im_end|>",)),
    ],
    ids=["prefix", "digits", "trims", "lowers", "single word", "strips", "other pattern", "sentencepiece"],
)  # fmt: skip
def test_any_other_tokenizer_reads_the_texts_itself(tokenizer):
    assert assert_alike(tokenizer, varied_texts()[:60]) == 0


def test_words_that_are_forgotten_are_learned_again(monkeypatch):
    monkeypatch.setattr(word_tokens, "MOST_WORDS", 40)
    tokenizer = byte_level(of_words(GPT2))
    reader = TextReader(tokenizer)
    for text in varied_texts()[:100]:
        [tokens] = reader.read([text])
        assert tokens.ids.tolist() == tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids
