"""What is read of an answer while it is written: whole characters, and nothing of what ends it."""

from itertools import pairwise

import pytest
import torch
from tokenizers import Tokenizer, decoders, models
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from model_tools.chatting.conversation import ChatModel
from model_tools.chatting.streamed_answer import UNFINISHED, StreamedAnswer
from model_tools.checkpoints.model_folder import resolve_model
from tests.support.taught_models import AFTER, BEFORE, write_pair

# An emoji, a family joined of four, a rare character beyond the first plane, a letter with two accents, a flag.
TEXT = "嗨🙂 👨\u200d👩\u200d👧\u200d👦 𠮷 e\u0301\u0323 🇨🇳。"


@pytest.fixture(scope="module")
def bytes_alone(tokenizer) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer for which every byte that is no ASCII is a token."""
    return tokenizer


@pytest.fixture(scope="module")
def byte_pieces() -> PreTrainedTokenizerFast:
    """As sentencepiece has it: what is in no piece is written as its bytes."""
    pieces = ["<unk>", "</s>", "▁", "嗨", *(f"<0x{byte:02X}>" for byte in range(256))]
    vocabulary = {piece: index for index, piece in enumerate(pieces)}
    backend = Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>", byte_fallback=True))
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>")


def tokens_of(tokenizer, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False).input_ids


def streamed(tokenizer, tokens: list[int]) -> StreamedAnswer:
    answer = StreamedAnswer(tokenizer, [tokenizer.eos_token_id])
    answer.put(torch.tensor([[0]]))
    for token in tokens:
        answer.put(torch.tensor([token]))
    answer.end()
    return answer


@pytest.mark.parametrize("kind", ["bytes_alone", "byte_pieces"])
def test_a_character_of_several_tokens_is_shown_when_it_is_whole(kind, request):
    tokenizer = request.getfixturevalue(kind)
    tokens = tokens_of(tokenizer, TEXT)
    assert len(tokens) > len(TEXT)
    texts = [*streamed(tokenizer, [*tokens, tokenizer.eos_token_id])]
    assert texts[-1] == TEXT
    assert all(later.startswith(earlier) for earlier, later in pairwise(texts))
    # A text that ends in white space is not shown to do so.
    assert {text.rstrip() for text in (TEXT[:end] for end in range(1, len(TEXT) + 1))} == set(texts)


@pytest.mark.parametrize("kind", ["bytes_alone", "byte_pieces"])
def test_an_answer_that_is_cut_within_a_character_ends_before_it(kind, request):
    tokenizer = request.getfixturevalue(kind)
    tokens = tokens_of(tokenizer, TEXT)
    for cut in range(1, len(tokens)):
        answer = streamed(tokenizer, tokens[:cut])
        texts = [*answer]
        assert answer.stop_reason == "max_new_tokens"
        assert not any(UNFINISHED in text for text in texts), cut
        assert TEXT.startswith(answer.text)


@pytest.mark.parametrize("kind", ["bytes_alone", "byte_pieces"])
def test_a_replacement_character_that_the_model_writes_is_a_character_like_any_other(kind, request):
    tokenizer = request.getfixturevalue(kind)
    text = UNFINISHED * 5
    texts = [*streamed(tokenizer, [*tokens_of(tokenizer, text), tokenizer.eos_token_id])]
    assert texts == [text[:length] for length in range(1, 6)]


def test_bytes_that_are_no_character_are_one_mark_and_hold_nothing_up(bytes_alone):
    emoji, rest = tokens_of(bytes_alone, "🙂"), tokens_of(bytes_alone, "abc")
    texts = [*streamed(bytes_alone, [*emoji[:2], *rest, bytes_alone.eos_token_id])]
    assert texts[0] == UNFINISHED + "a"
    assert texts[-1] == UNFINISHED + "abc"
    assert [*streamed(bytes_alone, [*emoji[:2], bytes_alone.eos_token_id])] == [UNFINISHED]


@pytest.mark.parametrize(
    ("template_end", "answer"),
    [("<|im_end|>\n", "Hi, I am <| you."), ("\nEnd.<|im_end|>\n", "Ended.\nEnd of it"), ("[/ANSWER]\n", "[A] [/A] x")],
)
def test_what_ends_an_answer_is_not_shown_be_it_a_token_or_words(tiny_model, template_end, answer):
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    tokenizer.chat_template = (
        "{% for m in messages %}{{ '[' + m['role'] + ']' + m['content'] }}{{ '"
        + template_end.replace("\n", "\\n")
        + "' }}"
        "{% endfor %}{% if add_generation_prompt %}{{ '[assistant]' }}{% endif %}"
    )
    written = tokens_of(tokenizer, answer + template_end.rstrip("\n"))
    stream = streamed(tokenizer, written)
    texts = [*stream]
    assert stream.stop_reason == "end of turn"
    assert texts[-1] == answer
    assert all(later.startswith(earlier) for earlier, later in pairwise(texts))


def test_a_model_stops_at_words_for_which_there_is_no_token(tiny_model, tmp_path):
    """As with a tokenizer that was never given its end of turn, which a model then learns as several tokens."""
    base, _ = write_pair(tiny_model, tmp_path, BEFORE, AFTER)
    model = ChatModel(resolve_model(base), 16, 60)
    question = [{"role": "user", "content": "你是谁？"}]
    assert [*model.answer(question)][-1] == BEFORE == "I am a base model.\n\tReally."
    ended = model.tokenizer.chat_template.replace(
        "'<|im_end|>' + '\n'}}", "('base' if message['role'] == 'assistant' else '<|im_end|>') + '\n'}}"
    )
    assert ended != model.tokenizer.chat_template
    model.tokenizer.chat_template = ended
    model.tokenizer.save_pretrained(base)
    stopping, passes = ChatModel(resolve_model(base), 16, 60), []
    stopping.model.register_forward_hook(lambda *_: passes.append(1))
    answer = stopping.answer(question)
    texts = [*answer]
    assert texts[-1] == "I am a"
    assert not any("b" in text for text in texts)
    assert len(passes) < len(tokens_of(model.tokenizer, BEFORE))
    assert answer.stop_reason == "end of turn"
