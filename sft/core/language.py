"""What a person reads to decide, in Chinese and English: one catalogue of sentences, kept by gettext.

In: an English sentence with named fields, and their values. Out: a `Text`, the sentence in both languages, which shows
itself in the one that the person reads. Progress lines, log files, JSON keys, `--help` and errors are English alone.

The catalogue is locale/zh/LC_MESSAGES/messages.po; `python -m tests.support.catalogue` collects into it what the code
says and compiles it.
"""

import gettext as _gettext
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup, escape

LOCALE, DOMAIN = Path(__file__).parent / "locale", "messages"
ENGLISH, CHINESE = "en", "zh"
# What --language takes, and the key `language` of a recipe.
LANGUAGES = (CHINESE, ENGLISH)
# The variables that a locale is read from, in gettext's order.
VARIABLES = ("LANGUAGE", "LC_ALL", "LC_MESSAGES", "LANG")

_chinese = _gettext.translation(DOMAIN, LOCALE, [CHINESE])
_chosen: str | None = None


@dataclass(frozen=True)
class Text:
    """One sentence or name in both languages."""

    en: str
    zh: str

    def __str__(self) -> str:
        return self.zh if self.en == self.zh else " / ".join(getattr(self, name) for name in shown_languages())

    def __html__(self) -> Markup:
        """The text escaped, each language marked as such where both are shown."""
        languages = shown_languages()
        if len(languages) == 1 or self.en == self.zh:
            return escape(getattr(self, languages[0]))
        return Markup('<span lang="zh-CN">{}</span><span class="also" lang="en">{}</span>').format(self.zh, self.en)

    def indented(self, spaces: int = 2) -> "Text":
        """With so many spaces before it."""
        return Text(" " * spaces + self.en, " " * spaces + self.zh)

    def to_dict(self) -> dict[str, str]:
        """As JSON has it: the text by language."""
        return {ENGLISH: self.en, CHINESE: self.zh}


def _(sentence: str, /, **values: Any) -> Text:
    """A sentence of the catalogue, its fields filled in; a value that is a `Text` is put into each language as such."""
    return _filled(sentence, _chinese.gettext(sentence), values)


def ngettext(one: str, many: str, count: int, /, **values: Any) -> Text:
    """As `_`, of a sentence about `count` things, which is a field of it too."""
    sentence = one if count == 1 else many
    return _filled(sentence, _chinese.ngettext(one, many, count), {"count": count, **values})


def same(text: str) -> Text:
    """What is the same in both languages: a name, a path, a command, an answer of the model."""
    return Text(text, text)


def joined(texts: Iterable[Text]) -> Text:
    """Whole sentences as one paragraph."""
    texts = list(texts)
    return Text(" ".join(text.en for text in texts), "".join(text.zh for text in texts))


def listed(texts: Iterable[Text]) -> Text:
    """Names one after another, as each language lists them."""
    texts = list(texts)
    return Text(", ".join(text.en for text in texts), "、".join(text.zh for text in texts))


def choose_language(language: str | None) -> None:
    """Show what follows in "zh" or "en"; None is the language of the locale, both where it names neither."""
    global _chosen
    _chosen = language


def shown_languages() -> tuple[str, ...]:
    """The languages in which a text is shown now."""
    return (_chosen,) if _chosen else _of_locale()


def lines_shown(texts: Iterable[Text]) -> list[str]:
    """Lines as a console shows them: in both languages first all of them in Chinese, then all in English."""
    texts = list(texts)
    return [getattr(text, name) for name in shown_languages() for text in texts]


def html_language() -> str:
    """The language of a page, as HTML's `lang` has it."""
    return "en" if shown_languages() == (ENGLISH,) else "zh-CN"


def _of_locale() -> tuple[str, ...]:
    """The language of the first variable that names a locale; a list such as zh_CN:en counts by its first."""
    locale = next((value for name in VARIABLES if (value := os.environ.get(name))), "")
    language = locale.partition(":")[0][:2].lower()
    return (language,) if language in LANGUAGES else LANGUAGES


def _filled(english: str, chinese: str, values: dict[str, Any]) -> Text:
    def fill(sentence: str, language: str) -> str:
        return sentence.format(
            **{key: getattr(value, language) if isinstance(value, Text) else value for key, value in values.items()}
        )

    return Text(fill(english, ENGLISH), fill(chinese, CHINESE))
