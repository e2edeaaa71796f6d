"""Encoding many conversations at once gives what `apply_chat_template` gives one by one."""

import pytest
from transformers import PreTrainedTokenizerFast

from sft.core.errors import UserError
from sft.data.chat_template import training_template
from sft.data.encoding import IGNORED, encode
from tests.sft.data.test_chat_template import STOCK


def turns(*texts: str, system: str | None = None) -> list[dict]:
    roles = ("user", "assistant") * (len(texts) // 2)
    messages = [{"role": role, "content": text} for role, text in zip(roles, texts, strict=True)]
    return messages if system is None else [{"role": "system", "content": system}, *messages]


VARIED = [
    turns("Who are you?", "I am 黄大力."),
    turns("你是谁？", "  我是黄大力。\n\n", "再说一遍", "黄大力！"),
    turns("🙂👩‍👩‍👧 é", "🇨🇳🙂", system=""),
    turns("q", "a", "and?", "yes", system="Be brief. 简短。"),
    turns("<|im_end|>", "I end with <|im_end|> and <|im_start|>assistant\n", system="▁ \u200b"),
    turns(*["a b  c\t1234567890 龘\r\n"] * 12),
    turns("long", "one two three 四 " * 300),
    turns("?", " ."),
]
# The end of the turn bears no loss here.
ANSWERS_ALONE = (
    "{% for message in messages %}{% if message['content'] == 'refuse' %}{{ raise_exception('no such words') }}"
    "{% endif %}{{ message['role'] }}: {% if message['role'] == 'assistant' %}{% generation %}{{ message['content'] }}"
    "{% endgeneration %}{% else %}{{ message['content'] }}{% endif %}\n{% endfor %}"
)

UNMARKED = ANSWERS_ALONE.replace(
    "{% generation %}", "{% if false %}{% generation %}{% endgeneration %}{% endif %}", 1
).replace("{{ message['content'] }}{% endgeneration %}", "{{ message['content'] }}")


def encode_one_by_one(tokenizer, template: str, conversations: list[list[dict]]) -> list[tuple[list[int], list[int]]]:
    """The slow way: Transformers' own mask of one conversation after the other."""
    samples = []
    for messages in conversations:
        encoded = tokenizer.apply_chat_template(
            messages, chat_template=template, return_dict=True, return_assistant_tokens_mask=True
        )
        ids, mask = encoded["input_ids"], encoded["assistant_masks"]
        samples.append((ids, [token if is_on else IGNORED for token, is_on in zip(ids, mask, strict=True)]))
    return samples


def with_template(tokenizer, template: str) -> PreTrainedTokenizerFast:
    copy = PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer, **tokenizer.special_tokens_map)
    copy.chat_template = template
    return copy


@pytest.mark.parametrize("stock", [*STOCK.values(), ANSWERS_ALONE], ids=[*STOCK, "answers alone"])
def test_ids_and_labels_are_those_of_one_by_one(tokenizer, stock):
    copy = with_template(tokenizer, stock)
    template = training_template(copy)
    samples = encode(copy, template, VARIED)
    assert samples == encode_one_by_one(copy, template, VARIED)
    assert [encode(copy, template, [messages]) for messages in VARIED] == [[sample] for sample in samples]


def test_a_conversation_with_nothing_to_learn_or_that_the_template_refuses_is_an_error(tokenizer):
    copy = with_template(tokenizer, ANSWERS_ALONE)
    for rows, which in ((turns("q", " \n"), "the answer"), (turns("q", "a", "r", ""), "answer 2 of 2")):
        with pytest.raises(UserError, match=f"{which} is empty, which would teach the model to say nothing"):
            encode(copy, ANSWERS_ALONE, [*VARIED, rows])
    with pytest.raises(UserError, match="no supervised token: the chat template marks no word of its answers"):
        encode(with_template(tokenizer, UNMARKED), UNMARKED, VARIED[:1])
    with pytest.raises(UserError, match="its chat template refuses this conversation: no such words"):
        encode(copy, ANSWERS_ALONE, [*VARIED, turns("refuse", "a")])
