"""Ids are the stock template's; loss falls on answers and the end of their turns, and on nothing else."""

import pytest

from sft.core.errors import UserError
from sft.data.encoding import LossRules, control_token, encode
from sft.data.labels import IGNORED
from sft.models.chat_template import ChatTemplate
from tests.support.encoding import (
    ANSWERS_ALONE,
    MARKED,
    STOCK,
    VARIED,
    encode_one_by_one,
    samples_of,
    supervised_runs,
    turns,
    with_template,
)

UNMARKED = ANSWERS_ALONE.replace("{{ message['content'] }}{% endgeneration %}", "{% endgeneration %}")
BY_MARKS = LossRules(by_marks=True)


@pytest.mark.parametrize("family", STOCK)
def test_ids_and_labels_are_those_that_hand_made_marks_give_one_by_one(tokenizer, family):
    copy = with_template(tokenizer, STOCK[family])
    samples = samples_of(copy, VARIED)
    assert samples == encode_one_by_one(copy, MARKED[family], VARIED)
    assert [samples_of(copy, [messages]) for messages in VARIED] == [[sample] for sample in samples]
    assert copy.chat_template == STOCK[family]


def test_a_control_token_is_found_in_every_text_of_a_message(tokenizer):
    template = ChatTemplate(tokenizer)
    call = {"type": "function", "function": {"name": "look", "arguments": {"for": ["a <|im_end|>"]}}}
    answer = {"role": "assistant", "content": "yes"}
    assert control_token(template, [*turns("q"), answer]) == ""
    for more in ({"content": "<|im_end|>"}, {"reasoning_content": "so <|im_end|>"}, {"tool_calls": [call]}):
        assert control_token(template, [*turns("q"), answer | more]) == "<|im_end|>"


def test_how_a_tokenizer_was_used_last_makes_no_difference(tokenizer):
    copy = with_template(tokenizer, STOCK["smollm2"])
    expected = samples_of(copy, VARIED)
    copy(["a", "a b c"], padding="max_length", truncation=True, max_length=2)
    assert copy.backend_tokenizer.padding
    assert samples_of(copy, VARIED) == expected
    copy("<|im_end|>", split_special_tokens=True)
    assert samples_of(copy, VARIED) == expected


def test_every_token_of_a_character_that_is_several_bears_loss(tokenizer):
    template = "{% for m in messages %}{{ m['role'] + ':\n' + m['content'] + '\n' }}{% endfor %}"
    copy = with_template(tokenizer, template + "{% if add_generation_prompt %}{{ 'assistant:\n' }}{% endif %}")
    for answer in ("龘", "黄大力！", "🇨🇳🙂"):
        [(ids, labels)] = samples_of(copy, [turns("q", answer)])
        assert supervised_runs(copy, ids, labels) == [answer]
        assert sum(label != IGNORED for label in labels) == len(copy.tokenize(answer))


@pytest.mark.parametrize("rules", [BY_MARKS, LossRules(loss_on="last_answer", by_marks=True)])
def test_a_template_that_a_person_marked_is_taken_as_it_is_marked(tokenizer, rules):
    copy = with_template(tokenizer, ANSWERS_ALONE)
    samples = samples_of(copy, VARIED, rules)
    expected = encode_one_by_one(copy, ANSWERS_ALONE, VARIED)
    assert [ids for ids, _ in samples] == [ids for ids, _ in expected]
    for (ids, labels), messages in zip(samples, VARIED, strict=True):
        answers = [message["content"] for message in messages if message["role"] == "assistant"]
        expected_runs = answers if rules.loss_on == "answers" else answers[-1:]
        runs = supervised_runs(copy, ids, labels)
        # The blank before an answer and the first byte of its first character may be one token.
        assert [run[-len(answer) :] for run, answer in zip(runs, expected_runs, strict=True)] == expected_runs
        assert all(len(run) - len(answer) <= 1 for run, answer in zip(runs, expected_runs, strict=True))


def test_loss_on_the_last_answer_or_on_everything(tokenizer):
    messages = turns("one?", "two.", "three?", "four.")
    [(ids, labels)] = samples_of(tokenizer, [messages], LossRules(loss_on="last_answer"))
    assert supervised_runs(tokenizer, ids, labels) == ["four.<|im_end|>"]
    [(ids, labels)] = samples_of(tokenizer, [messages], LossRules(loss_on="everything"))
    assert labels == ids == tokenizer.apply_chat_template(messages, return_dict=False)


def test_an_answer_that_is_marked_as_without_loss_bears_none_and_looks_the_same(tokenizer):
    messages = turns("one?", "two.", "three?", "four.", "five?", "six.")
    plain = [dict(message) for message in messages]
    messages[3]["loss"], messages[5]["loss"] = False, True
    [(ids, labels)] = samples_of(tokenizer, [messages])
    assert supervised_runs(tokenizer, ids, labels) == ["two.<|im_end|>", "six.<|im_end|>"]
    assert ids == tokenizer.apply_chat_template(plain, return_dict=False)
    messages[5]["loss"] = False
    with pytest.raises(UserError, match="its last answer is marked as carrying no loss"):
        samples_of(tokenizer, [messages], LossRules(loss_on="last_answer"))
    messages[1]["loss"] = False
    with pytest.raises(UserError, match="every answer is marked as carrying no loss"):
        samples_of(tokenizer, [messages])


def test_a_conversation_with_nothing_to_learn_or_that_the_template_refuses_is_an_error(tokenizer):
    copy = with_template(tokenizer, ANSWERS_ALONE)
    for rows, which in ((turns("q", " \n"), "the answer"), (turns("q", "a", "r", ""), "answer 2 of 2")):
        with pytest.raises(UserError, match=f"{which} is empty, which would teach the model to say nothing"):
            samples_of(copy, [*VARIED, rows])
    with pytest.raises(UserError, match="no supervised token: the chat template marks no word of its answers"):
        samples_of(with_template(tokenizer, UNMARKED), VARIED[:1], BY_MARKS)
    with pytest.raises(UserError, match="its chat template refuses this conversation: no such words"):
        samples_of(copy, [*VARIED, turns("refuse", "a")])
    copy.chat_template = None
    with pytest.raises(UserError, match="no chat template: use a chat model, or name a template with chat_template_"):
        encode(ChatTemplate(copy), [], LossRules())
