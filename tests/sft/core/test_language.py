"""What a person reads to decide is there in Chinese and English, shown by the locale or by choice."""

import re
import string

import pytest

from sft.core.finding import Finding
from sft.core.language import (
    VARIABLES,
    Text,
    _,
    _filled,
    choose_language,
    joined,
    lines_shown,
    ngettext,
    same,
    shown_languages,
)
from sft.core.page import render
from tests.support.catalogue import MO, compiled, extracted, translations, written

CATALOGUE = [message for message in written() if message.id]
SAME_IN_BOTH = {"token", "tokens", "nats"}
CHINESE = re.compile("[一-鿿]")


@pytest.fixture
def in_language():
    """Choose a language for the test."""
    yield choose_language
    choose_language(None)


@pytest.mark.parametrize(
    ("variables", "languages"),
    [
        ({"LANG": "zh_CN.UTF-8"}, ("zh",)),
        ({"LANG": "en_GB.UTF-8"}, ("en",)),
        ({"LANG": "C.UTF-8"}, ("zh", "en")),
        ({"LANG": "de_DE.UTF-8"}, ("zh", "en")),
        ({}, ("zh", "en")),
        ({"LANG": "en_US.UTF-8", "LC_ALL": "zh_TW.UTF-8"}, ("zh",)),
        ({"LANG": "en_US.UTF-8", "LC_MESSAGES": "zh_CN.UTF-8"}, ("zh",)),
        ({"LANG": "zh_CN.UTF-8", "LANGUAGE": "en_US:zh"}, ("en",)),
        ({"LANG": "zh_CN.UTF-8", "LC_ALL": ""}, ("zh",)),
    ],
)
def test_the_locale_decides_in_gettexts_order(monkeypatch, variables, languages):
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert shown_languages() == languages


def test_a_choice_is_above_the_locale(monkeypatch, in_language):
    monkeypatch.setenv("LC_ALL", "zh_CN.UTF-8")
    in_language("en")
    assert str(Text("one", "一")) == "one"
    in_language(None)
    assert str(Text("one", "一")) == "一"


def test_in_both_languages_a_name_is_shown_once_and_a_paragraph_language_by_language(monkeypatch):
    monkeypatch.setenv("LC_ALL", "C")
    assert [str(Text("loss", "损失")), str(same("work_dirs/demo"))] == ["损失 / loss", "work_dirs/demo"]
    assert lines_shown([Text("a", "甲"), Text("b", "乙")]) == ["甲", "乙", "a", "b"]
    assert joined([Text("It is so.", "是这样。"), Text("Good.", "好。")]) == Text("It is so. Good.", "是这样。好。")


def test_values_are_put_into_both_languages():
    inner = Text("two words", "两个词")
    text = _filled("{count:,} of {what}", "{what}中的 {count:,} 个", {"count": 1234, "what": inner})
    assert text == Text("1,234 of two words", "两个词中的 1,234 个")
    finding = Finding(inner, [same("{x}")], same("rm -r {x}"))
    assert [line.en for line in finding.warning()] == ["warning: two words", "         {x}", "         do: rm -r {x}"]
    assert Finding.from_dict(finding.to_dict()) == finding


def test_a_sentence_that_is_not_in_the_catalogue_stays_english():
    assert _("quite unheard of: {what}", what=1) == Text("quite unheard of: 1", "quite unheard of: 1")
    assert ngettext("{count} ox", "{count} oxen", 2).en == "2 oxen"


@pytest.mark.parametrize(("language", "lang"), [("zh", "zh-CN"), ("en", "en"), (None, "zh-CN")])
def test_a_page_is_in_its_language_and_escapes_texts(monkeypatch, in_language, tmp_path, language, lang):
    monkeypatch.setenv("LC_ALL", "C")
    in_language(language)
    (tmp_path / "own.html").write_text('{% extends "base.html" %}{% block content %}{{ text }}{% endblock %}')
    page = render("own.html", tmp_path, title="t", text=Text("<b>", "<甲>"))
    assert f'<html lang="{lang}">' in page
    assert ("&lt;甲&gt;" in page, "&lt;b&gt;" in page) == (language != "en", language != "zh")
    assert "<b>" not in page


def test_every_sentence_of_the_code_is_in_the_catalogue_and_no_other():
    def ids(messages):
        return {message.id for message in messages if message.id}

    assert ids(extracted()) == ids(CATALOGUE)


def test_the_compiled_catalogue_is_that_of_the_text():
    assert MO.read_bytes() == compiled(written())


def test_no_sentence_lacks_its_chinese():
    for message in CATALOGUE:
        assert not message.fuzzy, message.id
        for chinese in translations(message):
            # A text of fields and figures alone says the same in both.
            words = set(re.findall("[A-Za-z]{2,}", re.sub(r"\{.*?\}", "", str(message.id))))
            assert CHINESE.search(chinese) or words <= SAME_IN_BOTH, message.id


def test_both_languages_have_the_same_fields_written_alike():
    for message in CATALOGUE:
        for english in message.id if isinstance(message.id, tuple) else (message.id,):
            for chinese in translations(message):
                assert _fields(chinese) == _fields(english), (english, chinese)


def _fields(sentence: str) -> set[tuple[str, str | None, str | None]]:
    return {(name, form, kind) for _, name, form, kind in string.Formatter().parse(sentence) if name is not None}
