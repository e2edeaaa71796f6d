"""The end of a model's context: said before it is run past, with real models whose positions end."""

import pytest
import torch
from transformers import (
    BloomConfig,
    Gemma3Config,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    MambaConfig,
    MistralConfig,
    Qwen2Config,
)

from model_tools.chatting.conversation import ChatModel, ContextFull, Conversation, context_length
from model_tools.checkpoints.model_folder import resolve_model

YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768, "rope_theta": 1e6}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "original_max_position_embeddings": 8192, "rope_theta": 5e5}
DYNAMIC = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e6}


@pytest.mark.parametrize(
    ("config", "tokens"),
    [
        (LlamaConfig(max_position_embeddings=512), 512),
        (GPT2Config(n_positions=64), 64),
        (MistralConfig(max_position_embeddings=4096, sliding_window=16), 4096),
        (Gemma3Config(text_config={"max_position_embeddings": 8192, "sliding_window": 16}), 8192),
        (Qwen2Config(max_position_embeddings=32768, rope_parameters=YARN), 131072),
        (LlamaConfig(max_position_embeddings=131072, rope_parameters={**LLAMA3, "low_freq_factor": 1.0}
                     | {"high_freq_factor": 4.0}), 131072),
        (LlamaConfig(max_position_embeddings=32768, rope_parameters=DYNAMIC), 65536),
        (BloomConfig(), None),
        (MambaConfig(), None),
    ],
)  # fmt: skip
def test_the_context_is_as_long_as_the_positions_go(config, tokens):
    assert context_length(config) == tokens


@pytest.fixture(scope="module")
def learned_positions(tokenizer, tmp_path_factory) -> ChatModel:
    """A GPT-2 of 96 positions: to run past them is an index error. It may write more than it has room for."""
    folder = tmp_path_factory.mktemp("gpt2")
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=len(tokenizer), n_positions=96, n_embd=32, n_layer=1, n_head=2)
    config.eos_token_id = config.bos_token_id = tokenizer.pad_token_id
    GPT2LMHeadModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return ChatModel(resolve_model(str(folder)), 16, 400)


def test_an_answer_ends_where_the_context_does_and_says_so(learned_positions):
    conversation = Conversation(learned_positions)
    assert [*conversation.ask("你是谁？")]
    assert conversation.answer.stop_reason == "context"
    with pytest.raises(ContextFull, match=r"has \d+ tokens, and the model reads 96"):
        [*conversation.ask("And now?")]
    assert len(conversation.turns) == 2
    conversation.start_anew(None)
    assert [*conversation.ask("你是谁？")]


def test_what_leaves_no_room_for_a_single_token_is_refused_and_one_token_is_room_enough(learned_positions):
    def tokens_of(question: str) -> int:
        messages = [{"role": "user", "content": question}]
        return len(learned_positions.tokenizer.apply_chat_template(messages, add_generation_prompt=True)["input_ids"])

    question = "x" * (95 - tokens_of("x") + 1)
    assert tokens_of(question) == 95
    answer = learned_positions.answer([{"role": "user", "content": question}])
    assert len([*answer]) <= 1
    assert answer.stop_reason == "context"
    for longer in (question + "x", "黄" * 1_000_000):
        with pytest.raises(ContextFull):
            learned_positions.answer([{"role": "user", "content": longer}])


def test_an_answer_that_max_new_tokens_cut_first_says_that(learned_positions):
    settings = learned_positions.settings
    settings.max_new_tokens, before = 4, settings.max_new_tokens
    answer = learned_positions.answer([{"role": "user", "content": "你是谁？"}])
    assert [*answer]
    assert answer.stop_reason == "max_new_tokens"
    settings.max_new_tokens = before
