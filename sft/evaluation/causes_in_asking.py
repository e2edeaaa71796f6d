"""Causes in how a model is asked why it does not give its name: template, system message, where it stops, sampling.

In: `Evidence`. Out: a `Finding`, or None. Knows nothing about what the rows say, save for their system messages.
"""

import json
import shlex
from pathlib import Path

from transformers import GenerationConfig

from sft.core.errors import UserError
from sft.core.finding import Finding
from sft.core.language import Text, _, ngettext, same
from sft.data.dataset import loss_rules
from sft.data.encoding import LossRules, encode
from sft.data.identity import gives_name, role_of_name
from sft.data.identity_rows import quoted
from sft.data.labels import IGNORED
from sft.evaluation.evidence import FEW_STEPS, SHOWN, Evidence, generation_settings, rendered
from sft.models.chat_template import ChatTemplate
from sft.models.generate import end_tokens
from sft.runs.verdict import LEARNED

# What two templates must render alike to be one: a turn and several, with and without a system message.
_QUESTION, _ANSWER = (
    {"role": "user", "content": "Who are you? 你是谁？"},
    {"role": "assistant", "content": " A.\n\n助手。"},
)
_SYSTEM = {"role": "system", "content": "Be brief."}
PROBES = (
    [_QUESTION],
    [_SYSTEM, _QUESTION],
    [_QUESTION, _ANSWER, _QUESTION],
    [_SYSTEM, _QUESTION, _ANSWER, _QUESTION],
)


def template_names_another(evidence: Evidence) -> Finding | None:
    """Trained with a system message, asked without one: the template then writes its own, with another name."""
    if not evidence.default_names or not evidence.rows_have_their_own_system:
        return None
    # Without scores, the evaluation prompts show it, if they were asked without one.
    asked_bare = None if evidence.asked_system else evidence.identity_share
    if (evidence.score.get("without_system", asked_bare) or 0.0) >= LEARNED:
        return None
    facts = [
        _systems_of_rows(evidence),
        _("without one, the chat template writes its own: {message}", message=quoted(evidence.default_system)),
        *_shares_by_system(evidence),
    ]
    wrong = _(
        "asked without a system message, the model gets the chat template's own, which names {name}",
        name=evidence.default_names[0],
    )
    return Finding(wrong, facts, _send_the_rows_system(evidence))


def asked_otherwise_than_trained(evidence: Evidence) -> Finding | None:
    """Rows with a system message and questions without it, or the reverse."""
    if evidence.rows is None or evidence.is_learned:
        return None
    system, chosen = evidence.asked_system, evidence.recipe.run.eval_prompts_system
    facts = [
        _systems_of_rows(evidence),
        same(f"eval_prompts_system: {quoted(chosen)}") if chosen else _("eval_prompts_system is not set"),
        *_shares_by_system(evidence),
    ]
    is_worse = bool(evidence.default_names) and not system  # template_names_another
    if (
        evidence.rows_have_their_own_system
        and (system or evidence.default_system) not in evidence.rows.systems
        and not is_worse
    ):
        wrong = _("the model is asked without the system message it was trained with")
        return Finding(wrong, facts, _send_the_rows_system(evidence))
    if system and not evidence.rows.rows_with_system and system != evidence.default_system:
        wrong = _("the model is asked with a system message it was never trained with")
        do = _("remove eval_prompts_system from the recipe, and chat without a system message")
        return Finding(wrong, facts, do)
    return None


def template_differs(evidence: Evidence) -> Finding | None:
    """The model is asked in another chat template than it was trained in."""
    if evidence.tokenizer is None or evidence.chat_tokenizer is None:
        return None
    for probe in PROBES:
        trained, asked = (rendered(tokenizer, probe) for tokenizer in (evidence.tokenizer, evidence.chat_tokenizer))
        if trained != asked:
            break
    else:
        return None
    folder = evidence.chat_tokenizer.name_or_path
    facts = [
        _("prompt in training: {prompt}", prompt=_visible(trained)),
        _("prompt when asked: {prompt}", prompt=_visible(asked)),
        _("the latter comes from the chat template of {folder}", folder=folder),
    ]
    template = Path(folder) / "chat_template.jinja"
    do = _("replace {file} with the chat template of the training", file=template)
    if evidence.recipe and (path := evidence.recipe.training.chat_template_path):
        do = same(f"cp {shlex.quote(path)} {shlex.quote(str(template))}")
    elif (Path(evidence.tokenizer.name_or_path) / "chat_template.jinja").is_file():
        source = Path(evidence.tokenizer.name_or_path) / "chat_template.jinja"
        do = same(f"cp {shlex.quote(str(source))} {shlex.quote(str(template))}")
    return Finding(_("the model is asked with a chat template that differs from that of the training"), facts, do)


def end_of_turn_not_learned(evidence: Evidence) -> Finding | None:
    """No token that ends an answer carries loss: after its name the model runs on."""
    answer = _supervised_answer(evidence)
    if answer is None or _ends(evidence) & set(answer):
        return None
    ends = ", ".join(evidence.tokenizer.convert_ids_to_tokens(sorted(_ends(evidence))))
    facts = [
        _("the supervised part of an answer: {text}", text=quoted(evidence.tokenizer.decode(answer))),
        _("no token that ends an answer is supervised: {tokens}", tokens=ends),
    ]
    do = _("set chat_template_path to a chat template that ends an answer with one of them, and train again")
    if ChatTemplate(evidence.tokenizer).has_marks:
        mark = "{% endgeneration %}"
        do = _("in the chat template, put the end-of-turn token before {mark}, and train again", mark=mark)
    return Finding(_("the model never learns where its answer ends"), facts, do)


def end_of_turn_not_heeded(evidence: Evidence) -> Finding | None:
    """The folder that is asked does not stop at the token the model learned to end with."""
    answer, settings = _supervised_answer(evidence), evidence.chat_folder and generation_settings(evidence.chat_folder)
    if answer is None or not settings or settings.eos_token_id is None:
        return None
    stops = settings.eos_token_id if isinstance(settings.eos_token_id, list) else [settings.eos_token_id]
    learned = [token for token in answer if token in _ends(evidence)]
    if not learned or set(learned) & set(stops):
        return None
    path = evidence.chat_folder / "generation_config.json"
    (token,) = evidence.tokenizer.convert_ids_to_tokens(learned[-1:])
    facts = [
        _("answers were trained to end with {token} ({id})", token=token, id=learned[-1]),
        same(f"{path}: eos_token_id {stops}"),
    ]
    setting = f'"eos_token_id": {sorted({*stops, learned[-1]})}'
    do = _("in {file}, set {setting}", file=path, setting=setting)
    return Finding(_("generation does not stop where the model learned to stop"), facts, do)


def template_argues(evidence: Evidence) -> Finding | None:
    """Trained long enough, the model still says the name that the template's own message gives in every row."""
    if evidence.rows is None or evidence.is_learned or not evidence.default_names or (evidence.steps or 0) < FEW_STEPS:
        return None
    names = evidence.default_names
    answers = [answer for answer in _last_answers(evidence) if any(role_of_name(answer, name) for name in names)]
    if not answers or evidence.rows_have_their_own_system:
        return None
    rows, system = evidence.rows.rows, quoted(evidence.default_system)
    bare = rows - evidence.rows.rows_with_system
    facts = [
        _(
            "{count:,} of {rows:,} rows carry the chat template's own system message: {message}",
            count=bare,
            rows=rows,
            message=system,
        ),
        ngettext(
            "{count:,} of the last answers still gives that name: {example}",
            "{count:,} of the last answers still give that name, such as {example}",
            len(answers),
            example=quoted(answers[0]),
        ),
    ]
    do = _(
        "copy the chat template, write your own sentence in place of that message, and set chat_template_path to the "
        "copy"
    )
    wrong = _("the system message that the training rows carry names {name}", name=names[0])
    return Finding(wrong, facts, do)


def sampling(evidence: Evidence) -> Finding | None:
    """The likeliest answer gives the name, and sampling gives others."""
    if not evidence.is_learned:
        return None
    facts = [_("without sampling, {share:.0%} of the answers give the name", share=evidence.identity_share)]
    chosen = evidence.recipe.run.eval_prompts_generation
    settings = evidence.chat_folder and generation_settings(evidence.chat_folder)
    failed = [answer for answer in evidence.last_answers if not gives_name(answer["answer"], evidence.name)]
    if chosen.get("do_sample") and failed:
        facts.append(same(f"eval_prompts_generation: {json.dumps(chosen)}"))
        facts += [same(f"{quoted(each['prompt'])}: {quoted(each['answer'])}") for each in failed[:SHOWN]]
        setting = "eval_prompts_generation: {do_sample: false}"
        do = _("set {setting}, and turn sampling off where you chat", setting=setting)
    elif settings and settings.do_sample and (temperature := settings.temperature or 1.0) >= 1:
        path = evidence.chat_folder / "generation_config.json"
        facts.append(same(f"{path}: do_sample true, temperature {temperature:g}, top_p {settings.top_p or 1:g}"))
        do = _("in {file}, set {setting}", file=path, setting='"do_sample": false')
    else:
        return None
    return Finding(_("the name is learned, and sampling hides it"), facts, do)


def _supervised_answer(evidence: Evidence) -> list[int] | None:
    """The ids of a short answer that carry loss."""
    if evidence.tokenizer is None:
        return None
    messages = [{"role": "user", "content": "Who are you?"}, {"role": "assistant", "content": "An assistant."}]
    try:
        rules = loss_rules(evidence.recipe, evidence.tokenizer) if evidence.recipe else LossRules()
        [[sample]] = encode(ChatTemplate(evidence.tokenizer), [{"messages": messages}], rules)
    except UserError:
        return None
    return [label for label in sample.labels.tolist() if label != IGNORED]


def _ends(evidence: Evidence) -> set[int]:
    return set(end_tokens(GenerationConfig(), evidence.tokenizer))


def _last_answers(evidence: Evidence) -> list[str]:
    """What was answered last, to questions about identity where there were any."""
    scored = [
        answer for answer in (evidence.run.scored_answers if evidence.run else ()) if answer["kind"] == "identity"
    ]
    last = [answer["answer"] for answer in scored if answer["step"] == scored[-1]["step"]]
    return last or [answer["answer"] for answer in evidence.last_answers]


def _systems_of_rows(evidence: Evidence) -> Text:
    rows = evidence.rows
    counts = {"count": rows.rows_with_system, "rows": rows.rows}
    if not rows.systems:
        return _("{count:,} of {rows:,} rows carry a system message", **counts)
    message = quoted(_usual_system(evidence))
    return _("{count:,} of {rows:,} rows carry a system message, such as {message}", **counts, message=message)


def _shares_by_system(evidence: Evidence) -> list[Text]:
    with_it, without = (evidence.score.get(key) for key in ("with_system", "without_system"))
    if with_it is None or without is None:
        return []
    if system := evidence.score.get("system_message"):
        return [
            _(
                "the name is in {with_it:.0%} of the answers under {system}, in {without:.0%} without it",
                with_it=with_it,
                without=without,
                system=quoted(system),
            )
        ]
    return [
        _(
            "the name is in {with_it:.0%} of the answers with a system message, in {without:.0%} without",
            with_it=with_it,
            without=without,
        )
    ]


def _send_the_rows_system(evidence: Evidence) -> Text:
    text = _usual_system(evidence)
    if text == evidence.asked_system:
        return _(
            "send {system} wherever you chat; model_tools chat and web, and the scores, begin with it",
            system=quoted(text),
        )
    setting = f"eval_prompts_system: {json.dumps(text, ensure_ascii=False)}"
    return _("set {setting}, and chat with the same system message", setting=setting)


def _usual_system(evidence: Evidence) -> str:
    """The system message that most rows carry."""
    return evidence.rows.systems.most_common(1)[0][0]


def _visible(text: str) -> str:
    """A text on one line and between quotes, its line ends shown."""
    return json.dumps(text, ensure_ascii=False)
