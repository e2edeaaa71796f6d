"""Turns conversations into token ids and labels, many at a time.

In: a tokenizer, its training template (see `chat_template`), canonical messages. Out: ids, and labels that are
`IGNORED` where no loss falls. Knows nothing about files, samples' lengths or packs.
"""

import re
from typing import Any

from jinja2 import TemplateError
from transformers import BatchEncoding, PreTrainedTokenizerBase
from transformers.utils.chat_template_utils import render_jinja_template

from sft.core.errors import UserError

IGNORED = -100


def encode(
    tokenizer: PreTrainedTokenizerBase, template: str, conversations: list[list[dict]]
) -> list[tuple[list[int], list[int]]]:
    """Token ids and labels of each conversation; loss falls on the assistant's words, end-of-turn token included.

    The same as `apply_chat_template(..., return_assistant_tokens_mask=True)` of one after the other, with each text
    rendered once and all of them tokenised in one call.

    Raises:
        UserError: of some conversation, the marked template does not render it as the tokenizer's own does, the
            tokenizer's own refuses it, an answer is empty, or it has nothing to learn.
    """
    for messages in conversations:
        _refuse_empty_answers(messages)
    texts, answers = _render(tokenizer, template, conversations)
    encoded = tokenizer(texts, add_special_tokens=False, return_attention_mask=False, return_token_type_ids=False)
    samples = [(ids, _labels(encoded, row, answers[row])) for row, ids in enumerate(encoded["input_ids"])]
    if any(labels.count(IGNORED) == len(labels) for _, labels in samples):
        raise UserError("no supervised token: the chat template marks no word of its answers")
    return samples


def control_tokens(tokenizer: PreTrainedTokenizerBase) -> re.Pattern | None:
    """What finds the special tokens of a tokenizer in a text, the longest first; None where it has none."""
    added = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    tokens = sorted(added.union(tokenizer.all_special_tokens), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, tokens))) if tokens else None


def control_token(tokens: re.Pattern | None, messages: list[dict]) -> str:
    """The first special token that a message's own text holds, and becomes; "" where none does."""
    matches = (tokens.search(message["content"]) for message in messages) if tokens else ()
    return next((match[0] for match in matches if match), "")


def _refuse_empty_answers(messages: list[dict]) -> None:
    answers = [message["content"] for message in messages if message["role"] == "assistant"]
    for number, answer in enumerate(answers, start=1):
        if not answer.strip():
            which = f"answer {number} of {len(answers)}" if len(answers) > 1 else "the answer"
            raise UserError(f"{which} is empty, which would teach the model to say nothing: write it, or drop the row")


def _render(
    tokenizer: PreTrainedTokenizerBase, template: str, conversations: list[list[dict]]
) -> tuple[list[str], list[list[tuple[int, int]]]]:
    """Each conversation as text, and where in it, in characters, the assistant's words lie."""
    try:
        stock = tokenizer.apply_chat_template(conversations, tokenize=False)
        special_tokens: dict[str, Any] = tokenizer.special_tokens_map
        # Its annotation knows of the texts alone.
        rendered: Any = render_jinja_template(
            conversations, chat_template=template, return_assistant_tokens_mask=True, **special_tokens
        )
        marked, answers = rendered
    except TemplateError as refusal:
        raise UserError(f"{tokenizer.name_or_path}: its chat template refuses this conversation: {refusal}") from None
    for messages, text, expected in zip(conversations, marked, stock, strict=True):
        if text != expected:
            raise UserError(
                f"{tokenizer.name_or_path}: the training template renders {messages[-1]['content'][:40]!r} differently "
                "from the model's own: name a marked copy of the model's template with chat_template_path"
            )
    return marked, answers


def _labels(encoded: BatchEncoding, row: int, answers: list[tuple[int, int]]) -> list[int]:
    ids = encoded["input_ids"][row]
    labels = [IGNORED] * len(ids)
    for start, end in answers:
        first, last = encoded.char_to_token(row, start), encoded.char_to_token(row, end - 1)
        if first is None:
            break
        supervised = slice(first, last + 1 if last else len(ids))
        labels[supervised] = ids[supervised]
    return labels
