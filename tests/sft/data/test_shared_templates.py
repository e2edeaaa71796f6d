"""Chat templates of a hundred models, as published: loss falls on answers and their ends, or one line says why not.

The file is not part of the project; `tests/sft/models/test_chat_template.py` has templates of its own for what these
show.
"""

import collections

import pytest

from sft.core.paths import REPOSITORY
from sft.data.encoding import LossRules, encode
from sft.models.chat_template import ChatTemplate
from tests.support.encoding import supervised_runs, turns
from tests.support.template_judge import shared_templates, tokenizer_for
from tests.support.template_table import CONVERSATIONS, EXACT, LOSES, NO_END, REFUSES, WRONG, outcome, table

TEMPLATES = shared_templates()
# What people write, each in place of the word "Aonezz".
ANSWERS = ["我是黄大力，龘！", "  padded \n", "it is <|im_end|> and </s> ok", "a\n\n- b\n", "🇨🇳 é", "<b>x</b>"]

pytestmark = pytest.mark.skipif(not TEMPLATES, reason="the shared templates are not here")


@pytest.fixture(scope="module")
def judged(tokenizer) -> dict[int, str]:
    """What became of each template."""
    outcomes = {}
    for number, entry in enumerate(TEMPLATES):
        outcomes[number], refusals = outcome(entry, tokenizer)
        assert all("chat template" in refusal and "\n" not in refusal for refusal in refusals)
    return outcomes


def test_nearly_all_are_exact_and_what_is_not_is_refused_in_one_line(judged):
    counts = collections.Counter(judged.values())
    assert counts[WRONG] == 0
    assert counts[EXACT] >= 92
    assert counts[EXACT] + counts[NO_END] >= 103


@pytest.mark.parametrize("page", ["models.md", "models.zh-CN.md"])
def test_the_documents_have_the_table_that_the_command_prints(tokenizer, page):
    assert table(TEMPLATES, tokenizer) in (REPOSITORY / "docs" / page).read_text(encoding="utf-8")


@pytest.mark.parametrize("answer", ANSWERS)
def test_an_answer_of_any_kind_carries_loss_where_a_plain_word_does(judged, tokenizer, answer):
    compared = 0
    for number, became in judged.items():
        if became in (REFUSES, LOSES):
            continue
        copy = tokenizer_for(TEMPLATES[number], tokenizer)
        plain, told = CONVERSATIONS[0], turns("Qonezz", answer)
        template = ChatTemplate(copy)
        [[word], [sample]] = encode(template, [{"messages": plain}, {"messages": told}], LossRules())
        assert sample.input_ids.tolist() == copy.apply_chat_template(told, return_dict=False)
        [run_of_word] = supervised_runs(copy, word.input_ids, word.labels)
        [run] = supervised_runs(copy, sample.input_ids, sample.labels)
        before, after = run_of_word.split("Aonezz")
        expected = f"{before}{answer}{after}"
        assert "".join(run.split()).endswith("".join(expected.split())), TEMPLATES[number]["family"]
        assert len(run) - len(run_of_word) <= len(answer) - len("Aonezz") + 2
        compared += 1
    assert compared >= 103


def test_thinking_that_a_template_keeps_carries_loss(judged, tokenizer):
    keeping = 0
    for number, became in judged.items():
        if became in (REFUSES, LOSES):
            continue
        copy = tokenizer_for(TEMPLATES[number], tokenizer)
        messages = turns("Qonezz", "<think>\nTonezz\n</think>\n\nAonezz")
        [[sample]] = encode(ChatTemplate(copy), [{"messages": messages}], LossRules())
        [run] = supervised_runs(copy, sample.input_ids, sample.labels)
        text = copy.apply_chat_template(messages, tokenize=False)
        assert "Aonezz" in run
        assert run.count("Tonezz") == text.count("Tonezz"), TEMPLATES[number]["family"]
        assert (sample.left_out == "thinking") == ("Tonezz" not in text)
        keeping += "Tonezz" in text
    assert keeping > 50
