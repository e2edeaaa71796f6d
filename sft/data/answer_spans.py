"""Finds which part of a rendered conversation is a model's own to say: each answer, from where the prompt leaves off
to the end of its turn.

In: a chat template, conversations. Out: text, and character ranges in it. Knows nothing about tokens or loss.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from sft.core.errors import UserError
from sft.models.chat_template import ChatTemplate
from sft.models.own_words import Rendered


@dataclass
class View:
    """A conversation as it is trained on: its messages, the numbers of the answers that carry loss, and tools."""

    messages: list[dict]
    answers: list[int]
    tools: list[dict] | None = None


@dataclass(frozen=True)
class Span:
    """Where one answer lies in a text, in characters."""

    start: int
    stop: int
    has_end: bool  # whether the template ends it with an end-of-turn token
    is_asked_alike: bool  # whether the text before it is what asks a model for it


@dataclass
class Spans:
    """A rendered conversation, where its answers lie, and what of its messages the template left out."""

    text: str
    spans: list[Span] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)


def find_answers(template: ChatTemplate, views: Sequence[View]) -> list[Spans]:
    """The text of each view and the ranges of its answers; all views are rendered together.

    Raises:
        UserError: the template refuses a conversation, or the words of an answer are not in its text.
    """
    results: dict[int, Spans] = {}
    for tools, numbers in _by_tools(views):
        chosen = [views[number] for number in numbers]
        rendered = template.locate([view.messages for view in chosen], tools)
        prompts = _prompts(template, chosen, tools)
        for number, view, one, prompt in zip(numbers, chosen, rendered, prompts, strict=True):
            results[number] = Spans(one.text, _spans(template, view, one, prompt), _left_out(view, one))
    return [results[number] for number in range(len(views))]


def _prompts(template: ChatTemplate, views: list[View], tools: list[dict] | None) -> list[str | None]:
    """What asks for the last answer of each view; None for all where that is the template's `constant_prompt`."""
    is_plain = all(message["role"] != "tool" for view in views for message in view.messages)
    if tools is None and is_plain and template.constant_prompt is not None:
        return [None] * len(views)
    asked = [view.messages[: view.answers[-1]] for view in views]
    return list(template.render(asked, tools, generation_prompt=True))


def _by_tools(views: Sequence[View]) -> Iterable[tuple[list[dict] | None, list[int]]]:
    """The numbers of the views that have the same tools, which are rendered in one call."""
    groups: dict[str, list[int]] = {}
    for number, view in enumerate(views):
        groups.setdefault(json.dumps(view.tools) if view.tools else "", []).append(number)
    return [(views[numbers[0]].tools, numbers) for numbers in groups.values()]


def _spans(template: ChatTemplate, view: View, rendered: Rendered, prompt: str | None) -> list[Span]:
    """The ranges of a view's answers; `prompt` is what asks for the last of them."""
    for answer in view.answers:
        _refuse_lost_answer(template, view.messages[answer], rendered, answer)
    last = view.answers[-1]
    before, asking = _words_before(rendered, last), view.messages[last - 1]
    # By the role of the message before an answer, what the prompt supplies after its words.
    supplied: dict[str, str] = {}
    if prompt is None:
        is_alike, supplied["user"] = True, template.constant_prompt or ""
    elif is_alike := rendered.text[:before] == prompt[:before]:
        supplied[asking["role"]] = _after_blanks_of(asking, prompt[before:])
    spans = []
    for answer in view.answers:
        role = view.messages[answer - 1]["role"]
        if role not in supplied:
            supplied[role] = _supplied(template, view, answer)
        spans.append(_span(template, view, rendered, answer, supplied[role], is_alike=is_alike))
    return spans


def _supplied(template: ChatTemplate, view: View, answer: int) -> str:
    """What the prompt that asks for an answer has after the words of the message before it."""
    (asked,) = template.locate([view.messages[:answer]], view.tools, generation_prompt=True)
    place = asked.words[answer - 1]
    return _after_blanks_of(view.messages[answer - 1], asked.text[place[1] :]) if place else ""


def _after_blanks_of(message: dict, text: str) -> str:
    """What follows a message's words without the blanks that are the message's own."""
    content = message["content"]
    return text.removeprefix(content[len(content.rstrip()) :])


def _span(
    template: ChatTemplate, view: View, rendered: Rendered, answer: int, supplied: str, *, is_alike: bool
) -> Span:
    message, text = view.messages[answer], rendered.text
    start, stop = rendered.words[answer]  # type: ignore[misc]
    first_word = _first_word(message, text, start)
    head = _after_blanks_of(view.messages[answer - 1], text[_words_before(rendered, answer) : first_word])
    following = (place for number in range(answer + 1, len(view.messages)) if (place := rendered.words[number]))
    tail = text[stop : next((place[0] for place in following if place[0] >= stop), len(text))]
    end = _end(template, tail, has_calls=bool(message.get("tool_calls")))
    return Span(
        start=first_word - len(head) + _shared(template, head, supplied),
        stop=stop + (end or 0),
        has_end=end is not None,
        is_asked_alike=is_alike and head.startswith(supplied),
    )


def _refuse_lost_answer(template: ChatTemplate, message: dict, rendered: Rendered, answer: int) -> None:
    # Thinking is the template's to keep or to leave out.
    parts = [place for part, place in rendered.places[answer].items() if part not in ("thinking", "reasoning_content")]
    if parts and None not in parts:
        return
    shown = message["content"].strip()[:40] or "a tool call"
    raise UserError(
        f"{template.tokenizer.name_or_path}: its chat template leaves out an answer ({shown!r}), so that nothing could "
        "be learned of it: drop the row, or name a template that writes it with chat_template_path"
    )


def _first_word(message: dict, text: str, start: int) -> int:
    """Where an answer's words begin, with the blanks before them that a template kept."""
    content = message["content"]
    blanks = content[: len(content) - len(content.lstrip())]
    return start - len(blanks) if blanks and text[:start].endswith(blanks) else start


def _words_before(rendered: Rendered, answer: int) -> int:
    """Where the words of the last message before an answer end in the text."""
    start = rendered.words[answer][0]  # type: ignore[index]
    for place in reversed(rendered.words[:answer]):
        if place and place[1] <= start:
            return place[1]
    return 0


def _shared(template: ChatTemplate, head: str, supplied: str) -> int:
    """How much of what stands before an answer's words the prompt supplies, cut where both have a token begin."""
    if head.startswith(supplied):
        return len(supplied)
    if supplied.startswith(head):
        return len(head)
    alike = next(index for index, (a, b) in enumerate(zip(head, supplied, strict=False)) if a != b)
    controls = [match.end() for match in template.controls.finditer(head[:alike])]
    both = template.token_starts(head) & template.token_starts(supplied)
    # Where they have nothing in common, the prompt is not made for such a place.
    return max([*controls, *(start for start in both if start <= alike)]) or len(head)


def _end(template: ChatTemplate, tail: str, *, has_calls: bool) -> int | None:
    """How far into the text after an answer's last word its end of turn reaches; None where it has none."""
    if has_calls:
        # After the name of the last tool there are its arguments still.
        ends = [match.end() for pattern in template.call_end_patterns if (match := pattern.search(tail))]
        return min(ends, default=None)
    for pattern in template.end_patterns:
        if match := pattern.match(tail):
            return match.end()
    return None


def _left_out(view: View, rendered: Rendered) -> list[str]:
    """What the template drops of the messages: the role of one, or the key of another text than its content.

    Of answers without loss, which are history, it may choose.
    """
    if all(None not in places.values() for places in rendered.places):
        return []
    return [
        message["role"] if part == "content" else part
        for number, message in enumerate(view.messages)
        if message["role"] != "assistant" or number in view.answers
        for part in rendered.missing(number)
    ]
