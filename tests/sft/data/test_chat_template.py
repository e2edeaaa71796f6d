"""The training templates: the same tokens as the model's own, with loss on the assistant's words alone."""

import pytest
from transformers import PreTrainedTokenizerFast

from sft.core.errors import UserError
from sft.data.chat_template import MARKED_TEMPLATES, training_template
from sft.data.encoding import IGNORED, encode
from tests.support.encoding import STOCK

ONE_TURN = [{"role": "user", "content": "你是谁？"}, {"role": "assistant", "content": " 我是黄大力。\n\nI am. "}]
SEVERAL = [{"role": "system", "content": "Be brief."}, *ONE_TURN, {"role": "user", "content": "2+2?"},
           {"role": "assistant", "content": "4"}]  # fmt: skip


@pytest.fixture(params=STOCK)
def with_template(request, tokenizer) -> tuple[str, PreTrainedTokenizerFast]:
    copy = PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer, **tokenizer.special_tokens_map)
    copy.chat_template = STOCK[request.param]
    return request.param, copy


def test_each_family_is_found_by_what_its_template_renders(with_template):
    family, tokenizer = with_template
    assert training_template(tokenizer) == (MARKED_TEMPLATES / f"{family}.jinja").read_text()


@pytest.mark.parametrize("messages", [ONE_TURN, SEVERAL], ids=["one turn", "several turns"])
def test_tokens_equal_the_stock_templates_and_loss_falls_on_answers_and_their_end_alone(with_template, messages):
    _, tokenizer = with_template
    [(ids, labels)] = encode(tokenizer, training_template(tokenizer), [messages])
    assert ids == tokenizer.apply_chat_template(messages, tokenize=True, return_dict=False)
    runs, previous = [], IGNORED
    for label in labels:
        if label != IGNORED and previous == IGNORED:
            runs.append([])
        if label != IGNORED:
            runs[-1].append(label)
        previous = label
    answers = [message["content"] + "<|im_end|>" for message in messages if message["role"] == "assistant"]
    assert [tokenizer.decode(run) for run in runs] == answers


def test_the_tokenizers_own_template_is_left_as_it_is(with_template):
    family, tokenizer = with_template
    training_template(tokenizer)
    assert tokenizer.chat_template == STOCK[family]


def test_a_template_that_is_marked_already_is_used_as_it_is(with_template):
    _, tokenizer = with_template
    tokenizer.chat_template = (MARKED_TEMPLATES / "chatml.jinja").read_text()
    assert training_template(tokenizer) == tokenizer.chat_template


def test_an_unknown_template_and_a_missing_one_are_refused_with_the_way_out(with_template):
    _, tokenizer = with_template
    tokenizer.chat_template = (
        "{% for message in messages %}[{{ message['role'] }}] {{ message['content'] }}{% endfor %}"
    )
    with pytest.raises(UserError, match="chat_template_path"):
        training_template(tokenizer)
    tokenizer.chat_template = None
    with pytest.raises(UserError, match="no chat template"):
        training_template(tokenizer)


def test_a_conversation_that_the_twin_would_render_differently_is_refused(with_template):
    _, tokenizer = with_template
    with pytest.raises(UserError, match="differently"):
        encode(tokenizer, "{% for message in messages %}{{ message['content'] }}{% endfor %}", [ONE_TURN])
