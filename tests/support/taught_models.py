"""Tiny real models that were taught what to answer, to chat with."""

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from model_tools.chatting.conversation import load_named_model
from model_tools.checkpoints.model_folder import NamedModel
from sft.evaluation.chat_eval import ask

BEFORE, AFTER = "I am a base model.\n\tReally.", "我是黄大力，\n  你的助手 🙂。"
GREEDY = {"do_sample": False}


def teach(model, tokenizer, answers: dict[str, str]) -> None:
    """Train what is trainable until the model gives these answers."""
    optimizer = torch.optim.AdamW([weight for weight in model.parameters() if weight.requires_grad], lr=3e-3)
    worst = 1.0
    while worst > 0.01:
        worst = 0.0
        for question, answer in answers.items():
            messages = [{"role": "user", "content": question}]
            prompt = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
            asked = len(tokenizer(prompt, add_special_tokens=False).input_ids)
            text = tokenizer(prompt + answer + "<|im_end|>", add_special_tokens=False, return_tensors="pt").input_ids
            loss = model(input_ids=text, labels=text.where(torch.arange(text.shape[1]) >= asked, -100)).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            worst = max(worst, loss.item())


def write_pair(tiny_model, folder, before: str, after: str) -> tuple[str, str]:
    """A model folder that answers 你是谁？ with `before`, and an adapter with which it answers `after`."""
    torch.manual_seed(0)
    tokenizer, model = AutoTokenizer.from_pretrained(tiny_model), AutoModelForCausalLM.from_pretrained(tiny_model)
    teach(model, tokenizer, {"你是谁？": before, "Who are you?": after})
    base, adapter = folder / "base", folder / "adapter"
    model.save_pretrained(base)
    tokenizer.save_pretrained(base)
    model.name_or_path = str(base)
    config = LoraConfig(r=32, lora_alpha=64, target_modules="all-linear", task_type="CAUSAL_LM")
    model = get_peft_model(model, config)
    teach(model, tokenizer, {"你是谁？": after})
    model.save_pretrained(adapter)
    return str(base), str(adapter)


def answers_of(named: NamedModel, question: str, max_new_tokens: int = 60) -> tuple[str, str]:
    """What `ask` says, without the adapter and with it."""
    model, tokenizer = load_named_model(named)
    asking = {"system": None, "generation": GREEDY | {"max_new_tokens": max_new_tokens}}
    with model.disable_adapter():
        before = ask(model, tokenizer, [question], **asking)
    return before[0].answer, ask(model, tokenizer, [question], **asking)[0].answer
