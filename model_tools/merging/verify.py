"""Compares a merged model with the base model and its adapters: the same prompts, tokens and answers.

In: base, adapters and the merged folder. Out: how far apart they are. Loads one of the two at a time.
"""

from dataclasses import dataclass
from pathlib import Path

import psutil
import torch
from peft import PeftModel
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from model_tools.checkpoints.asked import ANSWER_TOKENS, Asked, asked_of
from model_tools.merging.adapter import Adapter
from model_tools.merging.merged_tokenizer import read_tokenizer, tokenizer_folder
from model_tools.merging.tuned_modules import with_adapters
from sft.core.console import waiting
from sft.models import internlm2
from sft.models.chat_template import ChatTemplate
from sft.models.generate import generation_config
from sft.models.weight_files import WeightFiles
from sft.models.written_folder import TOKENIZER_CONFIG

# Nats. Rounding weights to bfloat16 moves the next-token distribution far less, a missing adapter far more.
DIFFERENT = 0.02
SPARE_SHARE = 1.2  # activations, and what the adapter adds

internlm2.register_with_transformers()


@dataclass
class Difference:
    """Merged model against base with adapters, over all tokens of prompts and answers."""

    prompts: int
    tokens: int
    largest: float  # of all logits
    divergence: float  # mean Kullback-Leibler divergence of the next-token distributions, nats
    same_token: float  # share of positions at which the likeliest token is the same
    same_answers: int


def bytes_needed(base: Path) -> int:
    """Memory that verifying takes: the model in float32, for rounding is to be all that differs."""
    numbers = sum(stored.elements for stored in WeightFiles(base).tensors.values())
    return int(numbers * torch.float32.itemsize * SPARE_SHARE)


def bytes_free() -> int:
    """Memory that is free now."""
    return psutil.virtual_memory().available


def report_difference(base: Path, adapters: list[Adapter], out: Path) -> int:
    """Compare, print how far apart they are, and return the exit code: 1 where the merged model is another."""
    if (
        not (out / TOKENIZER_CONFIG).is_file()
        or type(AutoConfig.from_pretrained(out)) not in AutoModelForCausalLM._model_mapping
    ):
        print("not verified: only a model that writes text, with its tokenizer, can be asked")
        return 0
    if problem := tokenizer_difference(base, adapters, out):
        print(f"{out}: {problem}: do not use it")
        return 1
    with waiting("asking base with adapter and the merged model the same"):
        difference = compare_models(base, adapters, out)
    print(
        f"verified on {difference.prompts} prompts and {difference.tokens} tokens in float32: largest logit difference "
        f"{difference.largest:.2g}, mean KL divergence {difference.divergence:.1e} nats, next token the same at "
        f"{difference.same_token:.1%}, answers the same: {difference.same_answers} of {difference.prompts}"
    )
    if difference.divergence > DIFFERENT:
        print(f"{out}: does NOT say what base and adapter say: do not use it")
        return 1
    return 0


def tokenizer_difference(base: Path, adapters: list[Adapter], out: Path) -> str | None:
    """How the merged folder's tokenizer reads the prompts otherwise than the adapter's own (or the base's) does."""
    folder = tokenizer_folder(base, adapters)
    own, merged = read_tokenizer(folder, base), AutoTokenizer.from_pretrained(out)
    for messages in _asked(adapters).conversations:
        expected, actual = (_text(tokenizer, messages) for tokenizer in (own, merged))
        if actual != expected:
            return f"its chat template writes {actual!r}, and that of {folder} {expected!r}"
        if merged(expected).input_ids != own(expected).input_ids:
            return f"its tokenizer gives {expected!r} other ids than that of {folder}"
    if merged.eos_token_id != own.eos_token_id:
        return f"its tokenizer ends at {merged.eos_token}, and that of {folder} at {own.eos_token}"
    return None


@torch.no_grad()
def compare_models(base: Path, adapters: list[Adapter], out: Path) -> Difference:
    """Ask both models the evaluation prompts of the adapter's run, or the tutorial's."""
    tokenizer = AutoTokenizer.from_pretrained(out)
    texts = [_text(tokenizer, messages) for messages in _asked(adapters).conversations]
    with_adapter = with_adapters(_load(base), adapters).eval()
    sequences = [_answer(with_adapter, tokenizer, text) for text in texts]
    expected = [with_adapter(ids[None]).logits[0] for ids in sequences]
    del with_adapter
    merged = _load(out)
    answers = [_answer(merged, tokenizer, text) for text in texts]
    actual = [merged(ids[None]).logits[0] for ids in sequences]
    before, after = torch.cat(expected), torch.cat(actual)
    divergence = torch.nn.functional.kl_div(
        after.log_softmax(-1), before.log_softmax(-1), log_target=True, reduction="batchmean"
    )
    return Difference(
        prompts=len(texts),
        tokens=len(before),
        largest=(before - after).abs().max().item(),
        divergence=divergence.item(),
        same_token=(before.argmax(-1) == after.argmax(-1)).float().mean().item(),
        same_answers=sum(torch.equal(old, new) for old, new in zip(sequences, answers, strict=True)),
    )


def _answer(model: PreTrainedModel | PeftModel, tokenizer, text: str) -> torch.Tensor:
    """The ids of a prompt and its greedy answer, `(tokens,)`."""
    ids = tokenizer(text, add_special_tokens=False, return_tensors="pt").input_ids
    settings = generation_config(model, tokenizer, {"max_new_tokens": ANSWER_TOKENS, "do_sample": False})
    mask = torch.ones_like(ids)
    return model.generate(input_ids=ids, attention_mask=mask, generation_config=settings)[0]


def _asked(adapters: list[Adapter]) -> Asked:
    return asked_of([adapter.folder for adapter in adapters])


def _text(tokenizer, messages: list[dict[str, str]]) -> str:
    return ChatTemplate(tokenizer).prompt(messages) if tokenizer.chat_template else messages[-1]["content"]


def _load(folder: Path) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
