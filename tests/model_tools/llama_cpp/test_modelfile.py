"""Modelfiles: Ollama reads in them the model's own template and system message, to the letter, or none."""

import itertools
import json

import pytest

from model_tools.llama_cpp.ollama_template import CannotSay, conversation, go_template, is_sayable, learn
from sft.models.chat_template import ChatTemplate
from sft.models.internlm2_tokenizer import CHAT_TEMPLATE as INTERNLM2
from tests.support import chat_templates
from tests.support.chat_templates import with_controls
from tests.support.ollama import read_modelfile, render
from tests.support.template_judge import SHARED, tokenizer_for

WORDS = ("Be brief: {{ now }}.", "你好！", '"Two" \\ lines,\n\n</b>', "  indented", "再见 🙂", "Five?")
# Blanks around words, which some templates strip, Ollama's cannot.
STRIPPED = tuple(word.strip() for word in WORDS)
SAYABLE = ("HEADERS", "INST", "ENDLESS", "ENDLESS_LAST", "CLOSED_TWICE", "ALWAYS_ASKS")
REFUSES = "{{ raise_exception('tools only') }}"
BRACES = (
    "{% for m in messages %}{{ '{{' + m.role + '}}\"\"\" ' + m.content + '<|eot|>\u3000' }}{% endfor %}{{ '{{a}}' }}"
)


def rendered_as(template: ChatTemplate, bos: str = "", words: tuple[str, ...] = WORDS) -> int:
    """Compare all conversations that a template takes; returns how many those were."""
    parts = learn(template)
    text = go_template(parts, bos)
    assert read_modelfile(f'FROM ./x.gguf\nTEMPLATE """{text}"""\nPARAMETER stop "x"\n') == [
        ("FROM", "./x.gguf"), ("TEMPLATE", text), ("stop", "x"),
    ]  # fmt: skip
    compared = 0
    for turns, has_system in itertools.product((1, 3, 5), (False, True)):
        if not has_system or parts.opens_system is not None:
            messages = conversation(words, turns, has_system=has_system)
            assert bos + render(text, messages) == template.prompt(messages)
            compared += 1
    return compared


@pytest.mark.parametrize("name", SAYABLE)
def test_ollama_renders_what_the_chat_template_does(tokenizer, name):
    copy = with_controls(tokenizer, getattr(chat_templates, name), {})
    words = STRIPPED if name == "HEADERS" else WORDS
    assert rendered_as(ChatTemplate(copy), words=words) == (3 if name == "INST" else 6)


def test_the_demos_system_message_by_default_is_in_it_and_gives_way_to_another(tokenizer):
    assert rendered_as(ChatTemplate(tokenizer)) == 6


def test_a_bos_that_llama_cpp_adds_is_left_to_it(tokenizer):
    copy = with_controls(tokenizer, INTERNLM2, {})
    assert rendered_as(ChatTemplate(copy), bos="<|endoftext|>") == 6


def test_braces_quotes_and_what_go_does_not_print_are_written_as_strings(tokenizer):
    assert rendered_as(ChatTemplate(with_controls(tokenizer, BRACES, {}))) == 6


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("THINKING", "it has a place for thinking"),
        ("OPENED", "it has a place for thinking"),
        ("SWALLOWS", "it leaves out part of a conversation"),
        ("REFUSES", "it takes no plain question"),
    ],
)
def test_a_template_that_cannot_be_said_is_not_guessed(tokenizer, name, reason):
    with pytest.raises(CannotSay, match=reason):
        learn(ChatTemplate(with_controls(tokenizer, getattr(chat_templates, name, REFUSES), {})))


def test_thinking_that_is_switched_off_can_be_said(tokenizer):
    copy = with_controls(tokenizer, chat_templates.THINKING, {"enable_thinking": False})
    text = go_template(learn(ChatTemplate(copy)), "")
    messages = conversation(WORDS, 3, has_system=True)
    assert render(text, messages).endswith("<|h|>assistant\n<think>\n\n</think>\n\n")
    assert render(text, messages) == ChatTemplate(copy).prompt(messages)


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        # Mistral 3's: the system message stands before the last question.
        ("{% for m in messages %}{% if m.role != 'system' %}{% if loop.last and messages[0].role == 'system' %}"
         "{{ messages[0].content }}{% endif %}{{ m.role + m.content + '</s>' }}{% endif %}{% endfor %}",
         "not write messages in their order"),
        ("{% for m in messages %}{{ loop.index|string + m.role + m.content + '</s>' }}{% endfor %}",
         "depends on more than who says it"),
        ("{% for m in messages if m.role == 'user' %}{{ m.content }}{% endfor %}", "leaves out part"),
    ],
    ids=["order", "place", "left out"],
)  # fmt: skip
def test_what_stands_around_messages_is_the_same_everywhere_or_nothing_is_said(tokenizer, template, reason):
    with pytest.raises(CannotSay, match=reason):
        learn(ChatTemplate(with_controls(tokenizer, template, {})))


@pytest.mark.skipif(not SHARED.is_file(), reason="the collection of published templates is not here")
def test_published_templates_are_said_to_the_letter_or_not_at_all(tokenizer):
    compared = said = 0
    for entry in json.loads(SHARED.read_text(encoding="utf-8")):
        template = ChatTemplate(tokenizer_for(entry, tokenizer))
        try:
            compared += rendered_as(template, words=STRIPPED)
            said += 1
        except CannotSay:
            continue
    assert said > 70
    assert compared > 5 * said


SYSTEMS = {
    "one line": "你是黄大力。",
    "quotes": 'You are "黄大力", said """him""" and "her"',
    "lines": "  You are 黄大力.\n\nBe brief;\tbe kind.  \n",
    "begins with quotes": '"Quoted"\nand more "quoted"',
    "three quotes in it": 'a\n"""b"""c\n',
}


@pytest.mark.parametrize("name", SYSTEMS)
def test_a_system_message_is_read_as_it_is(name):
    message = SYSTEMS[name]
    assert is_sayable(message)
    read = read_modelfile(f'FROM ./x.gguf\nSYSTEM """{message}"""\nPARAMETER stop "</s>"\n')
    assert read == [("FROM", "./x.gguf"), ("SYSTEM", message), ("stop", "</s>")]


@pytest.mark.parametrize("message", ["全\u3000角", "👩\u200d💻", 'three """\nquotes', 'and """ \nblank', "nul\0"])
def test_a_system_message_that_ollama_would_change_is_known_as_such(message):
    assert not is_sayable(message)
    try:
        read = read_modelfile(f'SYSTEM """{message}"""\n')
    except (AssertionError, ValueError):
        return
    assert read != [("SYSTEM", message)]


def test_what_is_learned_is_tried_on_other_words(tokenizer):
    """A template that writes a long message otherwise than a short one is not taken for one that does not."""
    template = "{% for m in messages %}{{ m.role + ('!' if m.content|length > 12 else '?') + m.content }}{% endfor %}"
    with pytest.raises(CannotSay, match="depends on more"):
        learn(ChatTemplate(with_controls(tokenizer, template, {})))
