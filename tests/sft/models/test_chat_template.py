"""What is learned of a chat template from what it renders, on small templates that do what published ones do."""

from datetime import date

import pytest
from transformers import PreTrainedTokenizerFast

from sft.core.errors import UserError
from sft.data.encoding import LossRules, encode
from sft.models.chat_template import ChatTemplate
from sft.models.generate import end_tokens
from sft.models.loading import load_tokenizer
from tests.support.chat_templates import (
    ALWAYS_ASKS,
    CHANNELS,
    CLOSED_BY_NAME,
    CLOSED_TWICE,
    ENDLESS,
    ENDLESS_LAST,
    HEADERS,
    INST,
    OPENED,
    SWALLOWS,
    THINKING,
    TOOLS,
    with_controls,
)
from tests.support.encoding import CHATML, supervised_runs, turns
from tests.support.template_judge import judge


@pytest.fixture
def with_template(tokenizer):
    def make(template: str, **kwargs) -> PreTrainedTokenizerFast:
        return with_controls(tokenizer, template, kwargs)

    return make


def runs(tokenizer, messages: list[dict], rules: LossRules = LossRules(), tools=None) -> list[list[str]]:  # noqa: B008
    """The supervised runs of each sample of a row."""
    row = {"messages": messages} | ({"tools": tools} if tools else {})
    [samples] = encode(ChatTemplate(tokenizer), [row], rules)
    return [supervised_runs(tokenizer, sample.input_ids, sample.labels) for sample in samples]


@pytest.mark.parametrize(
    ("template", "ends"),
    [
        (CHATML, [("<|im_end|>",)]),
        (HEADERS, [("<|eot|>",)]),
        (INST, [("</s>",)]),
        (ENDLESS, []),
        (ENDLESS_LAST, [("<|eot|>",)]),
        (THINKING, [("<|eot|>",)]),
        (CHANNELS, [("<|return|>",), ("<|eot|>",)]),
        (CLOSED_TWICE, [("<|/h|>", "<|eot|>")]),
        (CLOSED_BY_NAME, [("<|/h|>", "answer", "<|eot|>")]),
        (ALWAYS_ASKS, []),
        (CHATML.replace("<|im_end|>", "<unknown>"), [("<unknown>",)]),
    ],
)
def test_what_ends_a_turn_is_learned(with_template, template, ends):
    assert ChatTemplate(with_template(template)).ends == ends


@pytest.mark.parametrize(
    "template", [CHATML, HEADERS, INST, ENDLESS, ENDLESS_LAST, THINKING, OPENED, CHANNELS, CLOSED_TWICE, ALWAYS_ASKS]
)
def test_loss_falls_where_an_independent_judge_has_it(with_template, template):
    for messages in (
        turns("Qonezz", "Aonezz"),
        turns("Qonezz", "Aonezz", "Qtwozz", "Atwozz", "Qthreezz", "Athreezz"),
        turns("Qonezz", "Aonezz", "Qtwozz", "Atwozz", system="Szz"),
    ):
        assert judge(with_template(template), messages)[0]


def test_generation_stops_at_what_the_template_ends_with_whatever_the_eos_is(with_template):
    from transformers import GenerationConfig

    for template, end in ((HEADERS, "<|eot|>"), (CHANNELS, "<|return|>"), (CHATML, "<|im_end|>")):
        copy = with_template(template)
        assert set(copy.convert_tokens_to_ids([end, "</s>"])) == set(end_tokens(GenerationConfig(), copy))
    for template in (ENDLESS, "{{ raise_exception('where are the tools?') }}"):
        copy = with_template(template)
        assert end_tokens(GenerationConfig(), copy) == [copy.eos_token_id]


def test_an_answer_that_history_shows_otherwise_is_a_sample_of_its_own(with_template):
    copy = with_template(THINKING)
    messages = turns("Qone", "<think>\nTone\n</think>\n\nAone", "Qtwo", "<think>\nTtwo\n</think>\n\nAtwo")
    answers = ["<think>\nTone\n</think>\n\nAone<|eot|>", "<think>\nTtwo\n</think>\n\nAtwo<|eot|>"]
    assert runs(copy, messages) == [[answers[0]], [answers[1]]]
    assert runs(copy, messages, LossRules(split_turns=False)) == [["Aone<|eot|>", answers[1]]]
    assert runs(copy, messages, LossRules(loss_on="last_answer")) == [[answers[1]]]
    messages[3] = {"role": "assistant", "content": "Atwo", "reasoning_content": "Ttwo"}
    assert runs(copy, messages) == [[answers[0]], [answers[1]]]
    assert runs(with_template(CHANNELS), turns("Q", "Aone", "R", "Atwo")) == [
        ["<|final|>Aone<|return|>"],
        ["<|final|>Atwo<|return|>"],
    ]


def test_an_empty_think_block_that_the_prompt_supplies_carries_no_loss(with_template):
    plain = turns("Q", "A")
    assert runs(with_template(THINKING), plain) == [["<think>\n\n</think>\n\nA<|eot|>"]]
    assert runs(with_template(THINKING, enable_thinking=False), plain) == [["A<|eot|>"]]


def test_a_prompt_that_is_no_beginning_of_what_is_trained_is_seen_and_agreeing_arguments_found(with_template):
    switched = (
        "{% if add_generation_prompt and not (thinking is defined and not thinking) %}{{ '<think>\n' }}{% endif %}"
    )
    [[sample]] = encode(ChatTemplate(with_template(OPENED)), [{"messages": turns("Q", "A")}], LossRules())
    assert (sample.answers, sample.answers_asked_otherwise) == (1, 1)
    assert ChatTemplate(with_template(OPENED)).agreeing_kwargs() is None
    assert ChatTemplate(with_template(INST + switched)).agreeing_kwargs() == {"thinking": False}


def test_missing_ends_and_words_that_are_left_out_are_counted(with_template):
    row = {"messages": turns("Q", "A", "R", "B", system="S")}
    for template, missing in ((ENDLESS, 2), (ENDLESS_LAST, 1), (INST, 0)):
        [[sample]] = encode(ChatTemplate(with_template(template)), [row], LossRules())
        assert (sample.answers, sample.answers_without_end) == (2, missing)
        assert sample.left_out == ("system" if template is INST else "")
    thought = {"messages": [*turns("Q"), {"role": "assistant", "content": "A", "reasoning_content": "T"}]}
    [[sample]] = encode(ChatTemplate(with_template(CHATML)), [thought], LossRules())
    assert sample.left_out == "reasoning_content"


def test_a_call_of_a_tool_carries_loss_and_its_result_does_not(with_template):
    call = {"type": "function", "function": {"name": "look", "arguments": {"at": "<|eot|>?"}}}
    messages = [
        {"role": "user", "content": "Where?"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "there"},
        {"role": "assistant", "content": "There."},
    ]
    tools = [{"type": "function", "function": {"name": "look"}}]
    copy = with_template(TOOLS)
    [[first, second]] = runs(copy, messages, tools=tools)
    assert first.startswith('<call>{"name": "look", "arguments": {"at": "')
    assert second == "There.<|eot|>"
    call["function"]["arguments"] = {"at": "here"}
    [[first, second]] = runs(copy, messages, tools=tools)
    assert first == '<call>{"name": "look", "arguments": {"at": "here"}}</call><|eot|>'
    assert (
        encode(ChatTemplate(copy), [{"messages": messages, "tools": tools}], LossRules())[0][0].input_ids.tolist()
        == copy.apply_chat_template(messages, tools=tools, return_dict=False)
    )  # fmt: skip


def test_a_template_that_fails_or_loses_the_answer_is_refused_in_one_line(with_template):
    for template, reason in (
        (SWALLOWS, r"leaves out an answer \('A'\)"),
        (
            "{% for m in messages %}{{ m['role'] }}{{ 1 + m['content'] }}{% endfor %}",
            "refuses this conversation: unsup",
        ),
        (
            "{{ messages[0]['content'] | upper | replace('Q', nothing.at_all) }}",
            "refuses this conversation: 'nothing' is",
        ),
        ("{% if %}", "refuses this conversation"),
        ("{% for m in messages %}{{ m['content'] ~ m['content'] }}{% endfor %}", "writes it twice"),
        ("{% for m in messages %}{{ m['content'] | length }} {{ m['content'] }}{% endfor %}", "changes it"),
    ):
        with pytest.raises(UserError, match=reason) as refusal:
            runs(with_template(template), turns("Q", "A"))
        assert "\n" not in str(refusal.value)
    with pytest.raises(UserError, match=r"U\+100001, a private-use character, stands in a message"):
        runs(with_template(CHATML), turns("Q", "A\U00100001"))


def test_named_templates_are_rendered_as_transformers_chooses(with_template):
    copy = with_template({"default": CHATML, "tool_use": TOOLS.replace("<|eot|>", "<|im_end|>")})
    assert runs(copy, turns("Q", "A")) == [["A<|im_end|>"]]
    assert runs(copy, turns("Q", "A"), tools=[{"type": "function", "function": {"name": "f"}}]) == [["A<|im_end|>"]]
    with pytest.raises(UserError, match="multiple chat templates with no default"):
        runs(with_template({"rag": CHATML}), turns("Q", "A"))


def test_the_date_that_a_template_is_told_can_be_pinned(with_template):
    copy = with_template(HEADERS)
    today, pinned = date.today(), date(2024, 7, 26)
    assert today.strftime("%d %b %Y") in ChatTemplate(copy).prompt(turns("Q"))
    copy.chat_template_date = pinned
    assert "26 Jul 2024" in ChatTemplate(copy).prompt(turns("Q"))
    assert ChatTemplate(copy).day == pinned
    assert ChatTemplate(with_template(CHATML)).day is None


def test_arguments_are_saved_with_the_tokenizer_and_read_back(with_template, tmp_path):
    with_template(THINKING, enable_thinking=False).save_pretrained(tmp_path)
    again = load_tokenizer(str(tmp_path))
    assert ChatTemplate(again).prompt(turns("Q")).endswith("<think>\n\n</think>\n\n")
    other = load_tokenizer(str(tmp_path), chat_template_kwargs={})
    assert ChatTemplate(other).prompt(turns("Q")).endswith("<|h|>assistant\n")
