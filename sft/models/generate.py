"""Lets a model answer many conversations in one batch, and says where an answer ends.

In: a model, its tokenizer and conversations. Out: replies. Leaves no trace in the model or in any random state. Knows
nothing about training.
"""

from __future__ import annotations

import copy
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import GENERATION_CONFIG_NAME

from sft.core.errors import UserError
from sft.core.text import one_line_message
from sft.models.chat_template import ChatTemplate
from sft.models.model_state import is_in_parts, preserve_state
from sft.models.prompt_cache import read_prompts
from sft.models.thinking import Thinking, find_thinking
from sft.models.unpacked_weights import weights_unpacked

if TYPE_CHECKING:
    from peft import PeftModel

# Questions of a scoring that are answered together: on a CPU all of the built-in 56 but a small first batch; on
# a GPU all, since it takes hardly longer for them than for one. And tokens of an answer.
BATCH, BATCH_ON_A_GPU, ANSWER_TOKENS = 48, 64, 48
# Where an answer was cut before it began.
CUT_IN_THINKING = "max_new_tokens, while thinking"
# Where the `max_time` of the whole batch cut it.
CUT_BY_TIME = "max_time"
# After so many tokens, a batch goes on without the answers that have ended.
PART = 4
# Settings that count from where an answer began, or look at all rows together.
OF_THE_WHOLE = (
    "min_length",
    "min_new_tokens",
    "stop_strings",
    "exponential_decay_length_penalty",
    "begin_suppress_tokens",
    "forced_bos_token_id",
    "forced_eos_token_id",
    "watermarking_config",
    "cache_implementation",
    "prompt_lookup_num_tokens",
    "guidance_scale",
    "encoder_repetition_penalty",
    "encoder_no_repeat_ngram_size",
)
# Tokens that a model that may think is given for it, on top of those for its answer.
THINKING_ROOM = 512
TOKEN_IDS = range(1 << 32)  # as tokenizers count


@dataclass
class Reply:
    """What the model said, without special tokens; the tokens are counted up to the end of the turn."""

    text: str
    answer: str  # the text after its thinking
    tokens: int
    stop_reason: str  # "end of turn", "max_new_tokens", `CUT_IN_THINKING` or `CUT_BY_TIME`


def reply_to_all(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, conversations: list[list[dict]], generation: dict
) -> list[Reply]:
    """Answer all conversations in one left-padded batch; the model, its mode and every random state stay as they were.

    `generation` holds fields of Transformers' GenerationConfig, on top of the model's own.

    Raises:
        UserError: the chat template refuses a conversation.
    """
    template = ChatTemplate(tokenizer)
    texts = template.render(conversations, generation_prompt=True)
    batch = tokenizer(texts, padding=True, padding_side="left", add_special_tokens=False, return_tensors="pt")
    settings = generation_config(model, tokenizer, generation)
    with preserve_state(model), weights_unpacked(model, with_adapter=True):
        answers = _generate(
            model, batch["input_ids"].to(model.device), batch["attention_mask"].to(model.device), settings
        )
    thinking = find_thinking(template)
    return [_reply(template, thinking, tokens, settings) for tokens in answers]


def _generate(model: Any, tokens: torch.Tensor, mask: torch.Tensor, settings: GenerationConfig) -> list[list[int]]:
    """The new tokens of each row of left-padded conversations `(rows, tokens)`.

    Where each row's next token follows from the row alone, rows that have ended are left out every `PART` tokens, and
    on a CPU, whose time follows the tokens it computes, prompts are read without most of their padding.
    """
    started = time.perf_counter()

    def seconds_left() -> float:
        return math.inf if settings.max_time is None else settings.max_time - (time.perf_counter() - started)

    part = copy.deepcopy(settings)
    part.return_dict_in_generate = True
    is_whole = (
        settings.do_sample
        or not settings.max_new_tokens
        or (settings.num_beams or 1) > 1
        or (settings.num_return_sequences or 1) > 1
        or any(getattr(settings, key) for key in OF_THE_WHOLE)
    )
    rows = torch.arange(len(tokens), device=tokens.device)
    answers: list[list[int]] = [[] for _ in rows]
    cache = None
    if tokens.device.type == "cpu" and settings.use_cache and not (is_whole or is_in_parts(model)):
        base = getattr(model, "get_base_model", lambda: model)()
        cache = read_prompts(base, tokens, mask, lambda: seconds_left() <= 0)
        if seconds_left() <= 0:
            return answers
    while len(rows):
        left = settings.max_new_tokens and settings.max_new_tokens - len(answers[rows[0]])
        part.max_new_tokens = left if is_whole else min(left, PART)
        if settings.max_time is not None:
            part.max_time = seconds_left()
        output = model.generate(
            input_ids=tokens,
            attention_mask=mask,
            past_key_values=cache,
            generation_config=part,
            synced_gpus=is_in_parts(model),
        )
        new = output.sequences[:, tokens.shape[1] :]
        for row, added in zip(rows.tolist(), new.tolist(), strict=True):
            answers[row] += added
        if is_whole or new.shape[1] < part.max_new_tokens or part.max_new_tokens == left:
            break
        goes_on = ~torch.isin(new, torch.tensor(settings.eos_token_id, device=new.device)).any(1)
        rows, tokens, cache = rows[goes_on], output.sequences[goes_on], output.past_key_values
        mask = torch.cat([mask, torch.ones_like(new)], dim=1)[goes_on]
        if cache is not None:
            cache.batch_select_indices(goes_on.nonzero()[:, 0])
    return answers


def generation_config(
    model: PreTrainedModel | PeftModel, tokenizer: PreTrainedTokenizerBase, chosen: dict
) -> GenerationConfig:
    """The model's own settings with the chosen ones on top, ending at every token that ends a turn."""
    settings = copy.deepcopy(model.generation_config)
    ends = end_tokens(settings, tokenizer)
    settings.update(max_length=None, use_cache=True, pad_token_id=tokenizer.pad_token_id, eos_token_id=ends)
    settings.update(**chosen)
    if not settings.do_sample:
        settings.update(temperature=None, top_p=None, top_k=None)
    return settings


def read_settings(folder: Path) -> GenerationConfig:
    """The generation settings of the model in a folder; the stack's own where it has none.

    Raises:
        UserError: they cannot be read.
    """
    path = folder / GENERATION_CONFIG_NAME
    if not path.is_file():
        return GenerationConfig()
    try:
        settings = GenerationConfig.from_pretrained(folder)
    except (OSError, ValueError, TypeError, AttributeError) as problem:
        reason = one_line_message(problem, 200)
        raise UserError(f"{path}: cannot be read ({reason}): copy or download it again") from None
    if settings.eos_token_id is not None and not all(type(end) is int and end in TOKEN_IDS for end in _ends(settings)):
        raise UserError(
            f"{path}: eos_token_id: {settings.eos_token_id!r} is no token's id and no list of such: "
            "copy or download it again"
        )
    return settings


def _ends(settings: GenerationConfig) -> list:
    """What the settings themselves name as ends, one or several."""
    return settings.eos_token_id if isinstance(settings.eos_token_id, list) else [settings.eos_token_id]


def end_tokens(settings: GenerationConfig, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Every token that ends an answer: the model's own, the tokenizer's, and the one that its chat template writes."""
    learned = ChatTemplate(tokenizer).end_tokens if tokenizer.chat_template else []
    return sorted({*_ends(settings), tokenizer.eos_token_id, *learned} - {None})


def room_for(answer_tokens: int, tokenizer: PreTrainedTokenizerBase) -> int:
    """So many tokens for an answer, with room for thinking before it where the chat template leaves that open."""
    return answer_tokens + (THINKING_ROOM if find_thinking(ChatTemplate(tokenizer)) else 0)


def answer_text(tokenizer: PreTrainedTokenizerBase, tokens: list[int], ends: list[int]) -> tuple[str, int | None]:
    """The text of an answer up to the first token of `ends`, and the position of that token, None where it has none."""
    end = next((position for position, token in enumerate(tokens) if token in ends), None)
    return str(tokenizer.decode(tokens[:end], skip_special_tokens=True)).strip(), end


def _reply(template: ChatTemplate, thinking: Thinking | None, tokens: list[int], settings: GenerationConfig) -> Reply:
    text, end = answer_text(template.tokenizer, tokens, settings.eos_token_id)
    reason = "end of turn"
    if end is None:
        is_short = settings.max_time is not None and len(tokens) < (settings.max_new_tokens or 0)
        reason = CUT_BY_TIME if is_short else "max_new_tokens"
    answer = text
    if thinking:
        # What surrounds it may be special tokens.
        whole = str(template.tokenizer.decode(tokens[:end]))
        answer = template.special_tokens.sub("", thinking.removed(whole)).strip()
        if reason == "max_new_tokens" and thinking.goes_on(whole):
            reason = CUT_IN_THINKING
    if end is not None:
        text, answer = (said.removesuffix(template.closing_words) for said in (text, answer))
    return Reply(text, answer, len(tokens[:end]), reason)
