"""Tells where an answer ends: the tokens that end a turn, and the settings answers are generated with.

In: a model's own generation config and its tokenizer. Knows nothing about training.
"""

import copy

from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

END_OF_TURN = "<|im_end|>"


def end_tokens(settings: GenerationConfig, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Every token that ends an answer: the model's own, the tokenizer's, and ChatML's end of turn where it exists."""
    own = settings.eos_token_id if isinstance(settings.eos_token_id, list) else [settings.eos_token_id]
    return sorted({*own, tokenizer.eos_token_id, tokenizer.get_vocab().get(END_OF_TURN)} - {None})


def generation_config(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, chosen: dict) -> GenerationConfig:
    """The model's own settings with the chosen ones on top, ending at every token that ends a turn."""
    settings = copy.deepcopy(model.generation_config)
    ends = end_tokens(settings, tokenizer)
    settings.update(max_length=None, use_cache=True, pad_token_id=tokenizer.pad_token_id, eos_token_id=ends)
    settings.update(**chosen)
    if not settings.do_sample:
        settings.update(temperature=None, top_p=None, top_k=None)
    return settings
