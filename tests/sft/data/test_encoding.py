"""Encoding many conversations at once gives what `apply_chat_template` gives one by one."""

import pytest

from sft.core.errors import UserError
from sft.data.chat_template import training_template
from sft.data.encoding import encode
from tests.support.encoding import ANSWERS_ALONE, STOCK, VARIED, encode_one_by_one, turns, with_template

UNMARKED = ANSWERS_ALONE.replace(
    "{% generation %}", "{% if false %}{% generation %}{% endgeneration %}{% endif %}", 1
).replace("{{ message['content'] }}{% endgeneration %}", "{{ message['content'] }}")


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
