"""Finds the training twin of a model's chat template: the same text, with the assistant's words marked.

In: a tokenizer. Out: a Jinja template whose {% generation %} marks enclose each answer and its end-of-turn
token. The model's own template is never changed: it is what is saved with the adapter.
"""

from pathlib import Path

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase
from trl.chat_template_utils import get_training_chat_template, has_generation_markers

from sft.core.errors import UserError

MARKED_TEMPLATES = Path(__file__).parent / "templates"

_QUESTION = {"role": "user", "content": "Who are you? 你是谁？"}
_ANSWER = {"role": "assistant", "content": "  An assistant.\n\n助手。"}
_SYSTEM = {"role": "system", "content": "Be brief."}

# What a template must render alike to be a twin: one turn and several, with and without a system message.
PROBES = (
    [_QUESTION],
    [_QUESTION, _ANSWER],
    [_SYSTEM, _QUESTION, _ANSWER],
    [_QUESTION, _ANSWER, _QUESTION, _ANSWER],
    [_SYSTEM, _QUESTION, _ANSWER, _QUESTION],
)


def training_template(tokenizer: PreTrainedTokenizerBase) -> str:
    """The marked template that renders every conversation exactly as the tokenizer's own does.

    Raises:
        UserError: the tokenizer has no chat template, or one of a family that has no marked twin here.
    """
    stock = tokenizer.chat_template
    if not stock:
        raise UserError(
            f"{tokenizer.name_or_path}: the tokenizer has no chat template: use a chat model, or name a template "
            "with chat_template_path"
        )
    if has_generation_markers(stock):
        return stock
    for path in sorted(MARKED_TEMPLATES.glob("*.jinja")):
        marked = path.read_text(encoding="utf-8")
        if _renders(tokenizer, marked) == _renders(tokenizer, stock):
            return marked
    try:
        return get_training_chat_template(tokenizer) or stock
    except ValueError:
        raise UserError(
            f"{tokenizer.name_or_path}: its chat template is of no family known here, so the assistant's words cannot "
            "be told from the rest: copy it, put {% generation %} ... {% endgeneration %} around the answer and its "
            "end-of-turn token, and name the copy with chat_template_path"
        ) from None


def _renders(tokenizer: PreTrainedTokenizerBase, template: str) -> list[str]:
    return [_render(tokenizer, template, probe, prompt) for probe in PROBES for prompt in (False, True)]


def _render(tokenizer: PreTrainedTokenizerBase, template: str, messages: list[dict], prompt: bool) -> str:
    try:
        text = tokenizer.apply_chat_template(
            messages, chat_template=template, add_generation_prompt=prompt, tokenize=False
        )
        return str(text)
    except TemplateError as refusal:
        return f"refused: {refusal}"
