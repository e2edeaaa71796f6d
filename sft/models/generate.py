"""Lets a model answer many conversations in one batch.

In: a model, its tokenizer and conversations. Out: replies. Leaves no trace in the model or in any random state.
"""

from dataclasses import dataclass

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from sft.models.generation import generation_config
from sft.models.loading import is_in_parts, preserve_state


@dataclass
class Reply:
    """What the model said, without special tokens; the tokens are counted up to the end of the turn."""

    text: str
    tokens: int
    stop_reason: str  # "end of turn" or "max_new_tokens"


def reply_to_all(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, conversations: list[list[dict]], generation: dict
) -> list[Reply]:
    """Answer all conversations in one left-padded batch; the model, its mode and every random state stay as they were.

    `generation` holds fields of Transformers' GenerationConfig, on top of the model's own.
    """
    texts = [
        tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        for messages in conversations
    ]
    batch = tokenizer(texts, padding=True, padding_side="left", add_special_tokens=False, return_tensors="pt")
    settings = generation_config(model, tokenizer, generation)
    with preserve_state(model):
        output = model.generate(
            input_ids=batch["input_ids"].to(model.device),
            attention_mask=batch["attention_mask"].to(model.device),
            generation_config=settings,
            synced_gpus=is_in_parts(model),
        )
    return [
        _reply(tokenizer, tokens, settings.eos_token_id) for tokens in output[:, batch["input_ids"].shape[1] :].tolist()
    ]


def _reply(tokenizer: PreTrainedTokenizerBase, tokens: list[int], ends: list[int]) -> Reply:
    end = next((place for place, token in enumerate(tokens) if token in ends), None)
    text = tokenizer.decode(tokens[:end], skip_special_tokens=True).strip()
    return Reply(text, len(tokens[:end]), "max_new_tokens" if end is None else "end of turn")
