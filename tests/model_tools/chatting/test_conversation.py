"""Conversations with real models: what is streamed is what `ask` gives, before and after, stopped or not."""

import json
import os
import shutil
import threading
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, decoders, models
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from model_tools.chatting.conversation import ChatModel, Conversation
from model_tools.chatting.streamed_answer import UNFINISHED, StreamedAnswer
from model_tools.checkpoints.model_folder import NamedModel, resolve_model
from sft.core.errors import UserError
from tests.support.taught_models import AFTER, BEFORE, answers_of, write_pair


@pytest.fixture(scope="module")
def pair(tiny_model, tmp_path_factory) -> NamedModel:
    return resolve_model(*write_pair(tiny_model, tmp_path_factory.mktemp("pair"), BEFORE, AFTER))


@pytest.fixture
def endless(endless_model) -> ChatModel:
    """The random model: it finds no end of turn in 400 tokens."""
    return ChatModel(resolve_model(str(endless_model)), 16, 400)


def test_what_is_streamed_grows_into_the_answer_that_ask_gives_before_and_after(pair):
    model = ChatModel(pair, 16, 60)
    for with_adapter, expected in zip((False, True), answers_of(pair, "你是谁？"), strict=True):
        conversation = Conversation(model, with_adapter=with_adapter)
        texts = list(conversation.ask("你是谁？"))
        assert texts[-1] == conversation.answer.text == expected == (AFTER if with_adapter else BEFORE)
        assert len(texts) > 5
        assert all(later.startswith(earlier) and later != earlier for earlier, later in pairwise(texts))
        assert not any(UNFINISHED in text for text in texts)
        assert conversation.answer.stop_reason == "end of turn"


def test_a_later_turn_is_answered_in_the_light_of_the_earlier_ones(endless):
    conversation = Conversation(endless, system="你是黄大力。")
    endless.settings.max_new_tokens = 12
    first, second = ([*conversation.ask(question)][-1] for question in ("你是谁？", "And now?"))
    turns = [("system", "你是黄大力。"), ("user", "你是谁？"), ("assistant", first), ("user", "And now?")]
    messages = [{"role": role, "content": content} for role, content in turns]
    assert conversation.messages == [*messages, {"role": "assistant", "content": second}]
    prompt = endless.tokenizer.apply_chat_template(
        messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    whole = endless.model.generate(**prompt, max_new_tokens=12, do_sample=False)
    written = whole[0, prompt["input_ids"].shape[1] :]
    assert second == endless.tokenizer.decode(written, skip_special_tokens=True).strip()
    assert conversation.answer.stop_reason == "max_new_tokens"
    conversation.start_anew(None)
    assert conversation.messages == []


def test_a_stopped_answer_is_kept_as_far_as_it_came_and_the_next_one_is_whole(endless):
    conversation = Conversation(endless)
    whole = [*conversation.ask("你是谁？")][-1]
    conversation.start_anew(None)
    for _ in conversation.ask("你是谁？"):
        conversation.stop()
    assert conversation.answer.stop_reason == "stopped"
    assert len(conversation.answer.text) < len(whole)
    assert whole.startswith(conversation.answer.text)
    assert conversation.messages[1] == {"role": "assistant", "content": conversation.answer.text}
    conversation.start_anew(None)
    assert [*conversation.ask("你是谁？")][-1] == whole


def test_an_answer_nobody_reads_on_is_written_no_further(endless):
    endless.settings.max_new_tokens = 10**9
    reading = Conversation(endless).ask("你是谁？")
    next(reading)
    reading.close()
    endless.settings.max_new_tokens = 4
    assert [*Conversation(endless).ask("你是谁？")]


def test_an_answer_stopped_before_its_turn_came_is_never_begun(endless):
    question = [{"role": "user", "content": "你是谁？"}]
    first, second = endless.answer(question), endless.answer(question)
    second.stop()
    first.stop()
    assert list(second) == []
    assert second.stop_reason == "stopped"


def test_before_and_after_asked_at_the_same_time_do_not_mix(pair):
    model = ChatModel(pair, 16, 60)
    question = [{"role": "user", "content": "你是谁？"}]
    wanted = [False, True] * 4
    answers = [model.answer(question, with_adapter=with_adapter) for with_adapter in wanted]
    assert [[*answer][-1] for answer in answers] == [AFTER if with_adapter else BEFORE for with_adapter in wanted]


def test_a_question_stopped_before_anything_was_said_is_forgotten(endless):
    endless.settings.max_new_tokens = 10**9
    before_it = endless.answer([{"role": "user", "content": "Who are you?"}])
    conversation = Conversation(endless)
    reader = threading.Thread(target=lambda: list(conversation.ask("你是谁？")))
    reader.start()
    while conversation.answer is None:
        reader.join(0.01)
    conversation.stop()
    before_it.stop()
    reader.join()
    assert conversation.answer.stop_reason == "stopped"
    assert conversation.messages == []


def test_what_goes_wrong_while_it_writes_reaches_the_reader_and_the_next_answer_comes(endless):
    endless.tokenizer.add_tokens("<beyond>")
    conversation = Conversation(endless)
    with pytest.raises(IndexError):
        list(conversation.ask("<beyond>"))
    endless.settings.max_new_tokens = 4
    assert [*conversation.ask("你是谁？")]
    assert len(conversation.turns) == 2


def test_a_template_that_refuses_a_system_message_and_a_model_without_one_are_the_persons_matter(
    endless, tiny_model, tmp_path
):
    endless.tokenizer.chat_template = "{{ raise_exception('System role not supported') }}"
    with pytest.raises(UserError, match="refuses this conversation: System role not supported"):
        list(Conversation(endless, system="x").ask("你是谁？"))
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    tokenizer.chat_template = None
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(UserError, match="has no chat template"):
        ChatModel(NamedModel(str(tiny_model), None, str(tmp_path)), 16, 10)
    with pytest.raises(UserError, match="--max_new_tokens 0: no answer fits"):
        ChatModel(resolve_model(str(tiny_model)), 16, 0)


def cut_short(adapter: Path) -> str:
    file = adapter / "adapter_model.safetensors"
    os.truncate(file, file.stat().st_size - 5)
    return "adapter_model.safetensors: is damaged"


def without_weights(adapter: Path) -> str:
    (adapter / "adapter_model.safetensors").unlink()
    return "holds no weights"


def with_settings(said: str, **settings) -> Callable[[Path], str]:
    def write(adapter: Path) -> str:
        file = adapter / "adapter_config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | settings))
        return said

    return write


@pytest.mark.parametrize(
    "damage",
    [
        cut_short,
        without_weights,
        with_settings("peft_type NOPE is none", peft_type="NOPE"),
        with_settings("r: 'x' is not a finite number", r="x"),
        with_settings("does not fit", r=16),
        with_settings("names no base model", base_model_name_or_path=["a"]),
    ],
    ids=["cut short", "no weights", "kind", "rank", "another rank", "base"],
)
def test_a_damaged_adapter_is_said_to_be_one(pair, tmp_path, damage):
    adapter = shutil.copytree(pair.adapter, tmp_path / "adapter")
    said = damage(adapter)
    with pytest.raises(UserError, match=said) as refused:
        ChatModel(resolve_model(str(adapter)), 16, 8)
    assert str(adapter) in str(refused.value)
    assert "\n" not in str(refused.value)


def test_an_end_of_turn_that_the_tokenizer_does_not_call_special_is_not_shown(pair, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(pair.tokenizer)
    tokenizer.save_pretrained(tmp_path)
    whole = json.loads((tmp_path / "tokenizer.json").read_text(encoding="utf-8"))
    for token in whole["added_tokens"]:
        token["special"] = token["content"] == "<|endoftext|>"
    (tmp_path / "tokenizer.json").write_text(json.dumps(whole), encoding="utf-8")
    plain = PreTrainedTokenizerFast(tokenizer_file=str(tmp_path / "tokenizer.json"), eos_token="<|endoftext|>")
    plain.chat_template = tokenizer.chat_template
    plain.save_pretrained(tmp_path / "plain")
    model = ChatModel(NamedModel(pair.base, pair.adapter, str(tmp_path / "plain")), 16, 60)
    assert "<|im_end|>" in model.tokenizer.decode(model.tokenizer("x<|im_end|>").input_ids, skip_special_tokens=True)
    assert [*model.answer([{"role": "user", "content": "你是谁？"}])][-1] == AFTER


def test_lines_keep_their_indent_with_a_tokenizer_that_takes_the_first_space_off():
    pieces = ["<unk>", "</s>", "▁if", "▁x", ":", "\n", "▁", "▁y"]
    sentencepiece_like = Tokenizer(models.BPE({piece: index for index, piece in enumerate(pieces)}, []))
    sentencepiece_like.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1)]
    )
    answer = StreamedAnswer(PreTrainedTokenizerFast(tokenizer_object=sentencepiece_like, eos_token="</s>"), [1])
    answer.put(torch.tensor([[2, 3]]))
    for token in (2, 3, 4, 5, 6, 6, 7, 1):
        answer.put(torch.tensor([token]))
    answer.end()
    assert list(answer) == ["if", "if x", "if x:", "if x:\n   y"]
