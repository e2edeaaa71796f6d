"""Says why a model does not give its name: the causes in their order, each with its evidence and the one thing to do.

In: `Evidence`. Out: findings, first the cause that makes the ones after it meaningless. Reads no weights and loads no
model; causes that lie in the weights are `model_tools.diagnose`'s.
"""

import json
from collections.abc import Callable

from transformers import PreTrainedTokenizerBase

from sft.config.recipe import Recipe
from sft.core.finding import Finding
from sft.core.language import _, ngettext, same
from sft.data.dataset_card import DatasetCard
from sft.data.identity_rows import quoted
from sft.evaluation import causes_in_rows, causes_in_run
from sft.evaluation.evidence import Evidence, evidence_of_plan
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


def warnings_before_training(recipe: Recipe, tokenizer: PreTrainedTokenizerBase, card: DatasetCard) -> list[Finding]:
    """What in the rows and the plan nobody may have meant, and, where the rows are about a name, what keeps it away.

    Raises:
        UserError: a training file or the file of questions cannot be read.
    """
    evidence = evidence_of_plan(recipe, tokenizer, card)
    # Rows that nobody filled in are about a name, though they give none.
    found = diagnose(evidence) if evidence.name else [causes_in_rows.placeholders(evidence)]
    of_the_template = [
        _control_tokens(card),
        _missing_ends(card),
        _another_prompt(card, tokenizer),
        _dropped_words(card),
    ]
    return list(filter(None, [*found, *of_the_template, _note_on_the_default_system(evidence)]))


def _control_tokens(card: DatasetCard) -> Finding | None:
    """A control token in a row's text ends a turn, or begins one, where nobody meant to."""
    if not card.rows_with_control_tokens:
        return None
    wrong = ngettext(
        "{count:,} row contains a control token of the model in its text",
        "{count:,} rows contain a control token of the model in their text",
        card.rows_with_control_tokens,
    )
    facts = [
        _("the first: {place}", place=card.first_control_token),
        _("the model is trained on it as that token, not as text"),
    ]
    return Finding(wrong, facts, _("remove it, or have such rows refused with --control_tokens refuse"))


def _missing_ends(card: DatasetCard) -> Finding | None:
    if not card.answers_without_end:
        return None
    wrong = _(
        "{count:,} of {answers:,} answers have no end-of-turn token: the chat template writes none after them",
        count=card.answers_without_end,
        answers=card.answers,
    )
    do = _("set chat_template_path to a copy of the chat template that writes one")
    return Finding(wrong, [_("the model does not learn to stop after them")], do)


def _another_prompt(card: DatasetCard, tokenizer: PreTrainedTokenizerBase) -> Finding | None:
    """The model is trained after other words than it will be asked with."""
    if not card.answers_asked_otherwise:
        return None
    wrong = _(
        "{count:,} of {answers:,} answers follow a different prompt in training than when the model is asked",
        count=card.answers_asked_otherwise,
        answers=card.answers,
    )
    template = ChatTemplate(tokenizer)
    prompt = json.dumps(template.question.text[-PROMPT_CHARACTERS:], ensure_ascii=False)
    fact = _(
        "the prompt of a question ends with {prompt}, which does not precede the answer in training", prompt=prompt
    )
    do = _("set chat_template_path to a copy of the chat template in which the two agree")
    if kwargs := template.agreeing_kwargs():
        values = ", ".join(f"{key}: {json.dumps(value)}" for key, value in kwargs.items())
        setting = f"chat_template_kwargs: {{{values}}}"
        do = _("set {setting}", setting=setting)
    return Finding(wrong, [fact], do)


def _dropped_words(card: DatasetCard) -> Finding | None:
    if not card.samples_with_words_left_out:
        return None
    wrong = ngettext(
        "the chat template drops words of {count:,} sample",
        "the chat template drops words of {count:,} samples",
        card.samples_with_words_left_out,
    )
    facts = [_("the first that it drops: {place}", place=card.first_left_out), _("the model does not see them")]
    return Finding(wrong, facts, _("set chat_template_path to a chat template that writes them"))


def _note_on_the_default_system(evidence: Evidence) -> Finding | None:
    """Not wrong, but good to know: the rows themselves carry a message with another name."""
    if not evidence.name or not evidence.default_names or evidence.rows_have_their_own_system:
        return None
    wrong = _(
        "{count:,} of {rows:,} rows carry the chat template's own system message, which names {name}",
        count=evidence.rows.rows - evidence.rows.rows_with_system,
        rows=evidence.rows.rows,
        name=evidence.default_names[0],
    )
    facts = [same(quoted(evidence.default_system)), _("the model learns its name all the same")]
    return Finding(wrong, facts, _("ask it without a system message, as it is trained"), is_note=True)
