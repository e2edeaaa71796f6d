"""Says why a model does not give its name: the causes in their order, each with its evidence and the one thing to do.

In: `Evidence`. Out: findings, first the cause that makes the ones after it meaningless. Reads no weights and loads no
model; causes that lie in the weights are `model_tools.diagnose`'s.
"""

import json
from collections.abc import Callable

from transformers import PreTrainedTokenizerBase

from sft.config.recipe import Recipe
from sft.core.text import counted
from sft.data.dataset_card import DatasetCard
from sft.data.identity_rows import quoted
from sft.evaluation import causes_in_rows, causes_in_run
from sft.evaluation.evidence import Evidence, Finding, evidence_of_plan
from sft.models.chat_template import ChatTemplate

# As much of the end of a prompt as a warning shows.
PROMPT_CHARACTERS = 40

IN_ORDER: tuple[Callable[[Evidence], Finding | None], ...] = (
    causes_in_rows.placeholders,
    causes_in_rows.name_not_taught,
    causes_in_rows.name_of_the_owner,
    causes_in_rows.contradictory_rows,
    causes_in_run.template_names_another,
    causes_in_run.asked_otherwise_than_trained,
    causes_in_run.template_differs,
    causes_in_run.end_of_turn_not_learned,
    causes_in_run.overflow,
    causes_in_run.few_steps,
    causes_in_run.low_learning_rate,
    causes_in_rows.name_seldom_seen,
    causes_in_run.flat_loss,
    causes_in_rows.one_language,
    causes_in_run.template_argues,
    causes_in_run.lost_later,
    causes_in_run.end_of_turn_not_heeded,
    causes_in_run.sampling,
)


def diagnose(evidence: Evidence) -> list[Finding]:
    """What was found, the first cause first; of a plan, what can be known before training.

    Raises:
        UserError: a file that a cause looks into cannot be read.
    """
    return [finding for cause in IN_ORDER if (finding := cause(evidence))]


def warnings_before_training(recipe: Recipe, tokenizer: PreTrainedTokenizerBase, card: DatasetCard) -> list[str]:
    """Lines about what in the plan keeps a model from giving its name; none where the rows are not about a name.

    Raises:
        UserError: a training file or the file of questions cannot be read.
    """
    evidence = evidence_of_plan(recipe, tokenizer, card)
    # Rows that nobody filled in are about a name, though they give none.
    findings = diagnose(evidence) if evidence.name else list(filter(None, [causes_in_rows.placeholders(evidence)]))
    lines = []
    for finding in findings:
        first, *more = finding.lines()
        lines += [f"warning: {first}", *(f"       {line}" for line in more)]
    return lines + _notes_on_the_template(card, tokenizer) + _note_on_the_default_system(evidence)


def _notes_on_the_template(card: DatasetCard, tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """What the chat template makes of the rows that nobody may have meant."""
    return [
        *_note_on_control_tokens(card),
        *_note_on_missing_ends(card),
        *_note_on_the_prompt(card, tokenizer),
        *_note_on_words_left_out(card),
    ]


def _note_on_missing_ends(card: DatasetCard) -> list[str]:
    if not card.answers_without_end:
        return []
    return [
        f"warning: {card.answers_without_end:,} of {counted(card.answers, 'answer')} without an end-of-turn token: the "
        "chat template writes none after them",
        "       there the model does not learn to stop: name a copy of the template that writes one with "
        "chat_template_path",
    ]


def _note_on_the_prompt(card: DatasetCard, tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """The model is trained after other words than it will be asked with."""
    if not card.answers_asked_otherwise:
        return []
    template = ChatTemplate(tokenizer)
    prompt = json.dumps(template.question.text[-PROMPT_CHARACTERS:], ensure_ascii=False)
    kwargs = template.agreeing_kwargs()
    advice = "name a copy of the template that does so with chat_template_path"
    if kwargs:
        advice = (
            f"chat_template_kwargs: {{{', '.join(f'{key}: {json.dumps(value)}' for key, value in kwargs.items())}}}"
        )
    return [
        f"warning: {card.answers_asked_otherwise:,} of {counted(card.answers, 'answer')} trained otherwise than the "
        "model will be asked",
        f"       the question ends with {prompt}, which is not what stands before the answer in training",
        f"       to have both agree: {advice}",
    ]


def _note_on_words_left_out(card: DatasetCard) -> list[str]:
    if not card.samples_with_words_left_out:
        return []
    return [
        f"warning: {counted(card.samples_with_words_left_out, 'sample')} of which the chat template leaves words out",
        f"       the first is {card.first_left_out}",
        "       the model does not see them: name a template that writes them with chat_template_path",
    ]


def _note_on_control_tokens(card: DatasetCard) -> list[str]:
    """A control token in a row's text ends a turn, or begins one, where nobody meant to."""
    if not card.rows_with_control_tokens:
        return []
    return [
        f"warning: {counted(card.rows_with_control_tokens, 'row')} with a control token of the model in the text",
        f"       the first is {card.first_control_token}",
        "       it becomes that token: take it out, or stop at such rows: --control_tokens refuse",
    ]


def _note_on_the_default_system(evidence: Evidence) -> list[str]:
    """Not wrong, but good to know: the rows themselves carry a message with another name."""
    bare = evidence.rows.rows - evidence.rows.rows_with_system
    if not evidence.name or not evidence.default_names or evidence.rows_have_their_own_system:
        return []
    return [
        f"note: {bare:,} of {evidence.rows.rows:,} rows carry the chat template's own system message, which names "
        f"{evidence.default_names[0]}:",
        f"         {quoted(evidence.default_system)}",
        "         the model learns its name in spite of it; ask it without a system message, as it is trained",
    ]
