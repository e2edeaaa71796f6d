"""Turns conversations into token ids and labels, many at a time.

In: a chat template, canonical rows, rules for the loss. Out: ids, and labels that are `IGNORED` where no loss falls.
Knows nothing about files, samples' lengths or packs.
"""

import itertools
from dataclasses import dataclass

import numpy

from sft.core.errors import UserError
from sft.data.answer_spans import Span, Spans, View, find_answers
from sft.data.labels import IGNORED, label_ranges
from sft.data.rows.canonical import texts_of
from sft.models.chat_template import ChatTemplate
from sft.models.own_words import END_OF_THINKING
from sft.models.text_tokens import TextTokens, tokens_of_texts


@dataclass(frozen=True)
class LossRules:
    """Which tokens carry loss, as a recipe has it."""

    loss_on: str = "answers"  # or "last_answer", "everything"
    split_turns: bool = True
    by_marks: bool = False  # the template's own {% generation %} marks decide


@dataclass(frozen=True)
class Sample:
    """One conversation as tokens, arrays of int32; of what its template did: answers not ended, words left out."""

    input_ids: numpy.ndarray
    labels: numpy.ndarray
    answers: int = 0
    answers_without_end: int = 0
    answers_asked_otherwise: int = 0
    left_out: str = ""


def encode(template: ChatTemplate, rows: list[dict], rules: LossRules) -> list[list[Sample]]:
    """The samples of each row: one, or several where the template shows an answer otherwise once others follow it.

    Ids are those of `apply_chat_template`; loss falls on answers from where the prompt leaves off to the end of the
    turn.

    Raises:
        UserError: of some row, the template refuses it, an answer is empty or not in its text, or it has nothing to
            learn.
    """
    views = [_views(template, row, rules) for row in rows]
    flat = [view for of_row in views for view in of_row]
    if rules.loss_on == "everything":
        texts = [Spans(template.render([view.messages], view.tools)[0]) for view in flat]
    elif rules.by_marks:
        texts = [_marked_answers(template, view) for view in flat]
    else:
        texts = find_answers(template, flat)
    in_order = iter(texts)
    of_rows = [_merged(list(itertools.islice(in_order, len(of_row)))) for of_row in views]
    tokens = iter(tokens_of_texts(template.tokenizer, [sample.text for of_row in of_rows for sample in of_row]))
    everything = rules.loss_on == "everything"
    return [[_sample(next(tokens), sample, everything) for sample in of_row] for of_row in of_rows]


def control_token(template: ChatTemplate, messages: list[dict]) -> str:
    """The first special token that a text of a message holds, and becomes; "" where none does."""
    search = template.special_tokens.search
    matches = (search(text) for message in messages for text in texts_of(message))
    return next((match[0] for match in matches if match), "")


def _views(template: ChatTemplate, row: dict, rules: LossRules) -> list[View]:
    """The conversations that a row is trained as, each with the numbers of its answers that carry loss."""
    _refuse_empty_answers(row["messages"])
    messages = [
        {key: value for key, value in message.items() if key != "loss"} if "loss" in message else message
        for message in row["messages"]
    ]
    tools = row.get("tools")
    all_answers = [number for number, message in enumerate(messages) if message["role"] == "assistant"]
    if rules.loss_on == "everything":
        return [View(messages, [], tools)]
    candidates = all_answers[-1:] if rules.loss_on == "last_answer" else all_answers
    answers = [number for number in candidates if row["messages"][number].get("loss", True)]
    if not answers:
        which = "its last answer" if rules.loss_on == "last_answer" else "every answer"
        raise UserError(f"{which} is marked as carrying no loss, so that nothing would be learned: drop the row")
    can_split = rules.split_turns and not rules.by_marks and len(all_answers) > 1
    if can_split and (template.rewrites_history or any(map(_thinks, messages))):
        return [View(messages[: number + 1], [number], tools) for number in answers]
    return [View(messages, answers, tools)]


def _thinks(message: dict) -> bool:
    return message["role"] == "assistant" and (
        "reasoning_content" in message or "tool_calls" in message or END_OF_THINKING in message["content"]
    )


def _refuse_empty_answers(messages: list[dict]) -> None:
    answers = [message for message in messages if message["role"] == "assistant"]
    for number, answer in enumerate(answers, start=1):
        if not answer["content"].strip() and not answer.get("tool_calls"):
            which = f"answer {number} of {len(answers)}" if len(answers) > 1 else "the answer"
            raise UserError(f"{which} is empty, which would teach the model to say nothing: write it, or drop the row")


def _marked_answers(template: ChatTemplate, view: View) -> Spans:
    """The answers as the template's own {% generation %} marks have them."""
    text, ranges = template.render_marked(view.messages, view.tools)
    answers = [number for number, message in enumerate(view.messages) if message["role"] == "assistant"]
    if len(ranges) != len(answers):
        if len(view.answers) != len(answers):
            raise UserError(
                f"the chat template marks {len(ranges)} ranges and the row has {len(answers)} answers, so that those "
                "without loss cannot be told from the others: mark each answer once"
            )
        chosen = ranges
    else:
        chosen = [ranges[answers.index(number)] for number in view.answers]
    return Spans(text, [Span(start, stop, template.is_ended(text[:stop]), True) for start, stop in chosen])


def _merged(views: list[Spans]) -> list[Spans]:
    """The views of a row, of which one that the next one begins with is part of that one."""
    merged: list[Spans] = []
    for view in views:
        if merged and view.text.startswith(merged[-1].text[: merged[-1].spans[-1].stop]):
            earlier = merged.pop()
            view = Spans(view.text, [*earlier.spans, *view.spans], [*earlier.left_out, *view.left_out])
        merged.append(view)
    return merged


def _sample(tokens: TextTokens, spans: Spans, everything: bool) -> Sample:
    labels = tokens.ids if everything else label_ranges(tokens, ((span.start, span.stop) for span in spans.spans))
    if (labels == IGNORED).all():
        raise UserError("no supervised token: the chat template marks no word of its answers")
    return Sample(
        tokens.ids,
        labels,
        answers=len(spans.spans),
        answers_without_end=sum(not span.has_end for span in spans.spans),
        answers_asked_otherwise=sum(not span.is_asked_alike for span in spans.spans),
        left_out=next(iter(spans.left_out), ""),
    )
