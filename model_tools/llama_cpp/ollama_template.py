"""Says a model's chat template in Ollama's words, a template of Go's, from what it renders; or says why it cannot.

In: a chat template. Out: a Go template that gives the same text for conversations of a system message, questions and
answers. Tools and thinking are not in it. Nothing is known of families of models: marked messages show what stands
before and after their words, and where one text does not stand wherever its role does, nothing is guessed.
"""

import itertools
import re
from dataclasses import dataclass

from sft.core.errors import UserError
from sft.models.chat_template import ChatTemplate
from sft.models.thinking import find_thinking

SYSTEM, USER, ASSISTANT = "system", "user", "assistant"
# Conversations that a template is learned from and then tried on: words that no template cleans or cuts.
_LEARNED = ("Be brief.", "One?", "Two.", "Three?", "Four.", "Five?")
_TRIED = ("你是助手：\n  一、二。", "你好，\n\n世界？", "**好**\n", "Hi {{ there }}?", "</b> ok.", "再见 🙂")
# Two braces begin Go's code, quotes may end the whole text, and Ollama leaves out what Go cannot print.
_NOT_PLAIN = re.compile(r'\{\{|"|[^\S \n\t]|[\x00-\x08\x0e-\x1f\x7f-\xa0\xad\u200b-\u200f\u2060-\u206f\ufeff]')


class CannotSay(Exception):
    """The chat template does what cannot be said in Ollama's; the message says what."""


@dataclass(frozen=True)
class Parts:
    """What a chat template writes around the words of messages."""

    opens: str  # before a first question
    opens_system: str | None  # before a system message; None where it takes none
    after_system: str  # between it and the first question
    after_question: str  # up to its answer
    asks: str  # after the last question, up to the answer that is asked for
    after_answer: str  # up to the next question

    def text(self, messages: list[dict[str, str]]) -> str:
        """The prompt of a conversation that ends with a question."""
        text = "" if messages[0]["role"] == SYSTEM else self.opens
        for number, message in enumerate(messages, start=1):
            role = message["role"]
            before = self.opens_system or "" if role == SYSTEM else ""
            after = {SYSTEM: self.after_system, USER: self.after_question, ASSISTANT: self.after_answer}[role]
            text += before + message["content"] + (self.asks if number == len(messages) else after)
        return text


def conversation(words: tuple[str, ...], turns: int, *, has_system: bool) -> list[dict[str, str]]:
    """Messages of a number of turns, the last a question, perhaps after a system message."""
    said = [{"role": SYSTEM, "content": words[0]}] if has_system else []
    roles = itertools.cycle((USER, ASSISTANT))
    return said + [{"role": role, "content": text} for role, text in zip(roles, words[1 : turns + 1], strict=False)]


def learn(template: ChatTemplate) -> Parts:
    """What the template writes around messages.

    Raises:
        CannotSay: it is not the same everywhere.
    """
    if find_thinking(template):
        raise CannotSay("it has a place for thinking, and takes it out of earlier answers")
    plain, system = (_between(template, has_system=has_system) for has_system in (False, True))
    if plain is None:
        raise CannotSay("it takes no plain question")
    parts = Parts(
        opens=plain[0],
        opens_system=system[0] if system else None,
        after_system=system[1] if system else "",
        after_question=plain[1],
        after_answer=plain[2],
        asks=plain[-1],
    )
    _try(template, parts)
    return parts


def go_template(parts: Parts, bos: str) -> str:
    """The template for a Modelfile; `bos` is the token that llama.cpp puts before every prompt by itself."""
    opens, asks = _go(parts.opens.removeprefix(bos)), _go(parts.asks)
    last = "(eq (len (slice $.Messages $i)) 1)"
    branches = []
    if parts.opens_system is not None:
        opens = f"{{{{ if not .System }}}}{opens}{{{{ end }}}}"
        before, after = _go(parts.opens_system.removeprefix(bos)), _go(parts.after_system)
        branches.append(f'if eq .Role "system" }}}}{before}{{{{ .Content }}}}{after}')
    if parts.asks != parts.after_question:
        asks = f"{{{{ if {last} }}}}{asks}{{{{ else }}}}{_go(parts.after_question)}{{{{ end }}}}"
    branches.append(f'if eq .Role "user" }}}}{{{{ .Content }}}}{asks}')
    after = f"{{{{ if not {last} }}}}{_go(parts.after_answer)}{{{{ end }}}}"
    branches.append(f'if eq .Role "assistant" }}}}{{{{ .Content }}}}{after}')
    return f"{opens}{{{{ range $i, $_ := .Messages }}}}{{{{ {'{{ else '.join(branches)}{{{{ end }}}}{{{{ end }}}}"


def is_sayable(text: str) -> bool:
    """Whether a Modelfile, between three quotes, holds a text as it is.

    Ollama leaves out what Go cannot print, such as a full-width space or a joiner within an emoji, and takes three
    quotes at the end of a line for the end of all.
    """
    is_printed = all(letter.isprintable() or letter in "\n\t" for letter in text)
    return is_printed and not re.search(r'"""[ \t]*\n', text)


def _between(template: ChatTemplate, *, has_system: bool) -> list[str] | None:
    """The texts before, between and after the messages' words; None where the template refuses them."""
    messages = conversation(_LEARNED, len(_LEARNED) - 1, has_system=has_system)
    try:
        [rendered] = template.locate([messages], generation_prompt=True)
    except UserError:
        return None
    if None in rendered.words:
        if has_system:
            return None
        raise CannotSay("it leaves out part of a conversation")
    places = [(0, 0), *[place for place in rendered.words if place], (len(rendered.text), len(rendered.text))]
    if any(before[1] > after[0] for before, after in itertools.pairwise(places)):
        raise CannotSay("it does not write messages in their order")
    return [rendered.text[before[1] : after[0]] for before, after in itertools.pairwise(places)]


def _try(template: ChatTemplate, parts: Parts) -> None:
    for words, turns, has_system in itertools.product((_LEARNED, _TRIED), (1, 3, 5), (False, True)):
        if has_system and parts.opens_system is None:
            continue
        # Some templates strip words, which Ollama's cannot.
        messages = conversation(tuple(word.strip() for word in words), turns, has_system=has_system)
        try:
            expected = template.prompt(messages)
        except UserError:
            raise CannotSay("it refuses some conversations") from None
        if parts.text(messages) != expected:
            raise CannotSay("what it writes around a message depends on more than who says it")


def _go(text: str) -> str:
    """A text as it stands in a Go template in a Modelfile; what either would not take as it is, is in Go's quotes."""
    return _NOT_PLAIN.sub(lambda found: f'{{{{ "{"".join(map(_escaped, found[0]))}" }}}}', text)


def _escaped(letter: str) -> str:
    return f"\\{letter}" if letter in '"\\' else letter if letter.isprintable() else f"\\U{ord(letter):08x}"
