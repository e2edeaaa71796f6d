"""Answers of a real, tiny model that was trained to say one thing: what it thought, what it says, why it stopped."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

from sft.models import generate
from sft.models.chat_template import ChatTemplate
from sft.models.generate import CUT_IN_THINKING, THINKING_ROOM, Reply, reply_to_all, room_for
from sft.models.prompt_cache import read_prompts
from tests.support.chat_templates import CLOSED_BY_NAME, THINKING, with_controls
from tests.support.encoding import CHATML, turns

QUESTION = turns("Who are you?")


@pytest.fixture
def speaker(tokenizer):
    """Train a tiny model to answer one question with one text, token by token; returns it and its tokenizer."""

    def train(template: str, answer: str, kwargs: dict | None = None):
        copy = with_controls(tokenizer, template, kwargs or {})
        prompt = ChatTemplate(copy).prompt(QUESTION)
        ids = torch.tensor([copy(prompt + answer, add_special_tokens=False)["input_ids"]])
        torch.manual_seed(0)
        sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
        model = LlamaForCausalLM(LlamaConfig(vocab_size=len(copy), pad_token_id=copy.pad_token_id, **sizes))
        model.generation_config.eos_token_id = None
        optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
        for _ in range(60):
            model(input_ids=ids, labels=ids).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        return model.eval(), copy

    return train


def reply(model, tokenizer, tokens: int = 100) -> Reply:
    [said] = reply_to_all(model, tokenizer, [QUESTION], {"max_new_tokens": tokens, "do_sample": False})
    return said


def test_a_model_that_may_think_is_given_room(tokenizer):
    def room(template: str, **kwargs) -> int:
        return room_for(48, with_controls(tokenizer, template, kwargs))

    assert room(CHATML) == 48
    assert room(THINKING) == 48 + THINKING_ROOM
    assert room(THINKING, enable_thinking=False) == 48


def test_what_is_said_after_thinking_is_told_from_it(speaker):
    model, tokenizer = speaker(THINKING, "<think>\nQwen?\n</think>\n\nI am 黄大力.<|eot|>\n")
    said = reply(model, tokenizer)
    assert said.text == "<think>\nQwen?\n</think>\n\nI am 黄大力."
    assert said.answer == "I am 黄大力."
    assert said.stop_reason == "end of turn"
    cut = reply(model, tokenizer, tokens=6)
    assert cut.stop_reason == CUT_IN_THINKING
    short = reply(model, tokenizer, tokens=said.tokens - 2)
    assert short.stop_reason == "max_new_tokens"
    assert "I am 黄大力.".startswith(short.answer)


def test_thinking_between_special_tokens_is_seen_though_no_text_shows_them(speaker):
    model, tokenizer = speaker(CLOSED_BY_NAME, "Qwen?<|/h|>think<|final|>I am 黄大力.<|/h|>answer<|eot|>")
    said = reply(model, tokenizer)
    assert said.text == "Qwen?thinkI am 黄大力."
    assert said.answer == "I am 黄大力."
    assert said.stop_reason == "end of turn"
    assert reply(model, tokenizer, tokens=3).stop_reason == CUT_IN_THINKING


def test_a_template_that_refuses_another_conversation_answers_this_one(speaker):
    refusing = CHATML + "{% if messages[0]['content'] != 'Who are you?' %}{{ raise_exception('no') }}{% endif %}"
    model, tokenizer = speaker(refusing, "I am 黄大力.</s>")
    said = reply(model, tokenizer)
    assert (said.answer, said.stop_reason) == ("I am 黄大力.", "end of turn")


def test_a_model_that_does_not_think_says_all_it_says(speaker):
    model, tokenizer = speaker(CHATML, "I am 黄大力.<|im_end|>\n")
    said = reply(model, tokenizer)
    assert (said.text, said.answer, said.stop_reason) == ("I am 黄大力.", "I am 黄大力.", "end of turn")
    assert reply(model, tokenizer, tokens=2).stop_reason == "max_new_tokens"


def test_a_batch_goes_on_without_the_answers_that_have_ended_and_says_the_same(tiny_model, tokenizer, monkeypatch):
    model = LlamaForCausalLM.from_pretrained(tiny_model)
    questions = [turns(text) for text in ("Who are you?", "1 2 3 4", "黄大力", "Why?", "a b", "I am", "?", "Who")]
    prompt = tokenizer(ChatTemplate(tokenizer).prompt(questions[0]), add_special_tokens=False, return_tensors="pt")
    # What this model of random weights says sixth, no matter what, ends an answer.
    model.generation_config.eos_token_id = model.generate(**prompt, max_new_tokens=6, do_sample=False)[0, -1].item()
    settings = {"max_new_tokens": 24, "do_sample": False}
    rows = []

    def see(_, __, inputs):
        batch, tokens = inputs["input_ids"].shape
        if tokens == 1:  # a pass that writes: those that read prompts have other batches
            rows.append(batch)

    model.register_forward_pre_hook(see, with_kwargs=True)
    monkeypatch.setattr(generate, "PART", 100)
    whole = reply_to_all(model, tokenizer, questions, settings)
    assert set(rows) == {8}
    assert {said.stop_reason for said in whole} == {"end of turn", "max_new_tokens"}
    rows.clear()
    monkeypatch.setattr(generate, "PART", 3)
    assert reply_to_all(model, tokenizer, questions, settings) == whole
    assert rows == sorted(rows, reverse=True)
    assert rows[0] == 8
    assert rows[-1] < 8


def test_prompts_read_in_parts_are_answered_as_those_read_at_once(tiny_model, tokenizer, monkeypatch):
    model = get_peft_model(LlamaForCausalLM.from_pretrained(tiny_model), LoraConfig(target_modules="all-linear"))
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.1)
    system = {"role": "system", "content": "You are a helpful assistant that answers in as few words as possible."}
    texts = ("Who are you?", "1 2 3 4", "黄大力", "Why? " * 20, "a b", "?")
    questions = [conversation for text in texts for conversation in (turns(text), [system, *turns(text)])]
    passes = []
    model.get_base_model().model.register_forward_pre_hook(
        lambda _, __, inputs: passes.append(tuple(inputs["input_ids"].shape)), with_kwargs=True
    )
    settings = {"max_new_tokens": 12, "do_sample": False}
    said = reply_to_all(model, tokenizer, questions, settings)
    assert passes[0][0] == 1  # what a family begins with
    passes.clear()
    monkeypatch.setattr(generate, "read_prompts", lambda *_: None)
    assert reply_to_all(model, tokenizer, questions, settings) == said
    assert passes[0][0] == len(questions)
    assert len({reply.text for reply in said}) > 1


def test_where_answers_are_drawn_or_count_from_their_beginning_none_is_left_out(speaker, monkeypatch):
    model, tokenizer = speaker(CHATML, "I am 黄大力.<|im_end|>\n")
    monkeypatch.setattr(generate, "PART", 3)
    said = reply_to_all(model, tokenizer, [QUESTION], {"max_new_tokens": 30, "min_new_tokens": 25, "do_sample": False})
    assert said[0].tokens >= 25
    drawn = []
    for part in (3, 100):
        monkeypatch.setattr(generate, "PART", part)
        torch.manual_seed(1)
        settings = {"max_new_tokens": 30, "do_sample": True, "temperature": 2.0}
        drawn.append(reply_to_all(model, tokenizer, [QUESTION, turns("1 2 3 4")], settings))
    assert drawn[0] == drawn[1]


@pytest.mark.parametrize("chosen", [{"num_beams": 2}, {"use_cache": False}, {"max_new_tokens": None, "max_length": 90}])
def test_beams_no_cache_and_a_length_in_all_give_what_one_call_gives(tiny_model, tokenizer, monkeypatch, chosen):
    model = LlamaForCausalLM.from_pretrained(tiny_model)
    said = []
    for part in (3, 100):
        monkeypatch.setattr(generate, "PART", part)
        settings = {"max_new_tokens": 12, "do_sample": False} | chosen
        said.append(reply_to_all(model, tokenizer, [QUESTION, turns("1 2 3 4")], settings))
    assert said[0] == said[1]
    assert all(reply.tokens for reply in said[0])


def test_where_the_time_is_over_while_prompts_are_read_no_answer_is_given(tiny_model, tokenizer):
    model = LlamaForCausalLM.from_pretrained(tiny_model)
    questions = [turns(text) for text in ("Who are you?", "1 2 3 4", "黄大力")]
    replies = reply_to_all(model, tokenizer, questions, {"max_new_tokens": 12, "do_sample": False, "max_time": 0.0})
    assert [(reply.text, reply.stop_reason) for reply in replies] == [("", generate.CUT_BY_TIME)] * 3


def test_the_prompts_of_a_model_in_training_are_read_in_parts(make_trainer):
    trainer, _ = make_trainer()
    tokens = torch.randint(50, (6, 40))
    with torch.no_grad():
        assert read_prompts(trainer.base.eval(), tokens, torch.ones_like(tokens), lambda: False) is not None
