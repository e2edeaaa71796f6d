"""Asking the evaluation prompts: once where it should, and without a trace in the training."""

import json

import pytest
import torch
from transformers import AutoModelForCausalLM, TrainerCallback

from sft.evaluation.chat_eval import ChatEval, ask

PROMPTS = ["请介绍一下你自己", "Please introduce yourself"]
NF4 = {"load_in_4bit": True, "use_bnb_nested_quant": True, "dtype": "bfloat16", "bf16": True}


class Losses(TrainerCallback):
    def __init__(self):
        self.losses = []

    def on_log(self, args, state, control, logs=None, **_):
        if "loss" in logs:
            self.losses.append(logs["loss"])


def train(make_trainer, tmp_path, asked: bool, **keys):
    """Losses of every step and the adapter after a real run, with or without the evaluation."""
    (tmp_path / "run").mkdir(exist_ok=True)
    trainer, _ = make_trainer(lora_dropout=0.1, eval_prompts=PROMPTS, eval_prompts_steps=2, max_steps=5, **keys)
    chat, losses = ChatEval(trainer), Losses()
    trainer.add_callback(losses)
    if asked:
        trainer.add_callback(chat)
    trainer.train()
    adapter = {name: value.detach().clone() for name, value in trainer.model.named_parameters() if value.requires_grad}
    return losses.losses, adapter, chat


@pytest.mark.parametrize(
    "keys",
    [
        {},
        NF4,
        {"eval_prompts_generation": {"do_sample": True, "temperature": 1.0, "max_new_tokens": 8}},
        {"activation_checkpointing": True},
    ],
    ids=["lora", "nf4", "sampled answers", "activation checkpointing"],
)
def test_a_run_that_asks_equals_bit_for_bit_one_that_does_not(make_trainer, tmp_path, keys):
    keys = {"eval_prompts_generation": {"max_new_tokens": 8}} | keys
    losses_asked, adapter_asked, chat = train(make_trainer, tmp_path, True, **keys)
    losses, adapter, _ = train(make_trainer, tmp_path, False, **keys)
    assert chat.latest
    assert losses_asked == losses
    assert len(losses) == 5
    assert all(torch.equal(adapter[name], adapter_asked[name]) for name in adapter)


@pytest.mark.parametrize(("steps", "asked_at"), [(2, [0, 2, 4, 5]), (5, [0, 5]), (0, [0, 5])])
def test_prompts_are_asked_before_during_and_after_and_never_twice_at_a_step(make_trainer, steps, asked_at):
    trainer, _ = make_trainer(
        eval_prompts=PROMPTS, eval_prompts_steps=steps, max_steps=5, eval_prompts_generation={"max_new_tokens": 2}
    )
    chat = ChatEval(trainer)
    trainer.add_callback(chat)
    trainer.train()
    records = [json.loads(line) for line in chat.path.read_text(encoding="utf-8").splitlines()]
    assert [record["step"] for record in records] == [step for step in asked_at for _ in PROMPTS]
    assert [record["prompt"] for record in records] == PROMPTS * len(asked_at)
    assert set(records[0]) == {"step", "prompt", "answer", "seconds", "tokens", "stop_reason"}


@pytest.fixture
def model(tiny_model):
    return AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)


def test_answers_of_a_batch_equal_the_answers_asked_one_by_one(model, tokenizer):
    settings = {"system": None, "generation": {"max_new_tokens": 12, "do_sample": False}}
    prompts = [*PROMPTS, "A much longer question, so that the others are padded on the left?"]
    together = ask(model, tokenizer, prompts, **settings)
    alone = [ask(model, tokenizer, [prompt], **settings)[0] for prompt in prompts]
    assert [answer.answer for answer in together] == [answer.answer for answer in alone]


def test_the_stop_reason_and_the_token_count_tell_how_an_answer_ended(model, tokenizer):
    settings = {"system": "Be brief.", "generation": {"max_new_tokens": 5, "do_sample": False}}
    cut = ask(model, tokenizer, ["Hi"], **settings)[0]
    assert (cut.tokens, cut.stop_reason) == (5, "max_new_tokens")
    with torch.no_grad():  # a head that always prefers the end-of-turn token
        model.lm_head.weight.zero_()
        model.lm_head.weight[tokenizer.eos_token_id] = model.model.norm.weight
        model.model.norm.register_forward_hook(lambda module, args, output: output.abs())
    ended = ask(model, tokenizer, ["Hi"], **settings)[0]
    assert (ended.answer, ended.tokens, ended.stop_reason) == ("", 0, "end of turn")


def test_every_module_keeps_its_own_mode(model, tokenizer):
    model.train()
    model.model.layers[0].eval()
    ask(model, tokenizer, ["Hi"], system=None, generation={"max_new_tokens": 1})
    assert model.training
    assert not model.model.layers[0].training
    assert model.model.layers[1].training
