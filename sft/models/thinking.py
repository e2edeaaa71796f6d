"""How a chat template shows what a model thinks before it answers, learned from what it renders.

In: a chat template; answers with their special tokens. Out: whether an answer was cut while thinking, and what it says
after its thinking. Knows nothing about generation.
"""

from dataclasses import dataclass

from sft.core.errors import UserError
from sft.models.chat_template import ANSWER, QUESTION, ChatTemplate, common_start
from sft.models.own_words import END_OF_THINKING, START_OF_THINKING


@dataclass(frozen=True)
class Thinking:
    """The texts around a model's thinking; `opens` is empty where the prompt opens it."""

    opens: str
    closes: str

    def goes_on(self, answer: str) -> bool:
        """Whether an answer is, as far as it came, thinking still."""
        return self.opens in answer and self.closes not in answer

    def removed(self, answer: str) -> str:
        """What an answer says after its thinking."""
        return answer.rpartition(self.closes)[2].strip()


def find_thinking(template: ChatTemplate) -> Thinking | None:
    """How a model that is asked may think; None where it cannot, as where the prompt itself ends the thinking."""
    try:
        asked = template.question
    except UserError:
        return None
    question = asked.words[0]
    header = asked.text[question[1] :] if question else ""
    opening, closes = _around_reasoning(template) or _around_think_tags(template, header)
    if not closes or closes in header:
        return None
    return Thinking(opening[len(common_start(opening, header)) :].strip(), closes)


def _around_reasoning(template: ChatTemplate) -> tuple[str, str] | None:
    """What stands between a question and the reasoning of its answer, and between that and the answer's words."""
    try:
        [rendered] = template.locate([[QUESTION, ANSWER | {"reasoning_content": "Three."}]])
    except UserError:
        return None
    question, places = rendered.words[0], rendered.places[1]
    reasoning, answer = places["reasoning_content"], places["content"]
    if not (question and reasoning and answer):
        return None
    return rendered.text[question[1] : reasoning[0]], rendered.text[reasoning[1] : answer[0]].strip()


def _around_think_tags(template: ChatTemplate, header: str) -> tuple[str, str]:
    """The same where a template has no place for reasoning, but knows of it at the head of an answer."""
    if START_OF_THINKING not in str(template.tokenizer.chat_template):
        return "", ""
    is_open = header.rstrip().endswith(START_OF_THINKING)
    return header if is_open else header + START_OF_THINKING, END_OF_THINKING
