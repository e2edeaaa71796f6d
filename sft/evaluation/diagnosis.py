"""Says why a model does not give its name: one function a cause, each with its evidence and the one thing to do.

In: a `Case`. Out: findings, first the cause that makes the ones after it meaningless. Reads no weights and loads no
model; causes that lie in the weights are `model_tools.diagnose`'s.
"""

import json
import math
import shlex
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from transformers import GenerationConfig, PreTrainedTokenizerBase

from data_tools.generate import language_of
from data_tools.survey import Finding as Places
from sft.config.own_keys import TrainFile
from sft.config.recipe import Recipe
from sft.core.errors import UserError
from sft.core.text import counted
from sft.data.chat_template import PROBES, training_template
from sft.data.dataset import DatasetCard
from sft.data.encoding import IGNORED, encode
from sft.data.identity import gives_name
from sft.data.identity_rows import quoted
from sft.data.questions import load_questions
from sft.evaluation.evidence import LEARNED, Case, case_of_plan, generation_settings, rendered
from sft.models.generation import end_tokens
from sft.runs.run_files import number

FEW_STEPS, ENOUGH_STEPS = 30, 60
# How often training must show the name, and in what share of its rows, before it is called seldom.
SELDOM_TIMES, SELDOM_SHARE = 60, 0.02
# LoRA's usual learning rates are 1e-4 and more; XTuner's is 2e-4.
LOW_RATE, USUAL_RATE = 1e-5, 2e-4
# Some part of this must have been reached, or the rate never rose.
RISEN_SHARE = 0.2
# A loss that ends above this share of where it began, and above so many nats, has learned little.
FLAT_SHARE, FLAT_NATS = 0.95, 0.7
LANGUAGES = {"zh": "Chinese", "en": "English"}
LANGUAGE_GAP, LOST = 0.4, 0.3
# A scaler that looks for its scale skips a step now and then; more than this share is too many.
SKIPPED_SHARE = 0.1
SHOWN = 3


@dataclass
class Finding:
    """What is wrong, the evidence for it, and the one thing to do: a command or an edit."""

    wrong: str
    evidence: list[str]
    do: str

    def lines(self) -> list[str]:
        return [self.wrong, *(f"  {line}" for line in self.evidence), f"  do: {self.do}"]


def diagnose(case: Case) -> list[Finding]:
    """What was found, the first cause first; of a plan, what can be known before training.

    Raises:
        UserError: a file that a cause looks into cannot be read.
    """
    return [finding for cause in IN_ORDER if (finding := cause(case))]


def warnings_before_training(recipe: Recipe, tokenizer: PreTrainedTokenizerBase, card: DatasetCard) -> list[str]:
    """Lines about what in the plan keeps a model from giving its name; none where the rows are not about a name.

    Raises:
        UserError: a training file or the file of questions cannot be read.
    """
    case = case_of_plan(recipe, tokenizer, card)
    # Rows that nobody filled in are about a name, though they give none.
    findings = diagnose(case) if case.name else list(filter(None, [placeholders(case)]))
    lines = []
    for finding in findings:
        first, *more = finding.lines()
        lines += [f"warning: {first}", *(f"       {line}" for line in more)]
    return lines + _note_on_control_tokens(card) + _note_on_the_default_system(case)


def _note_on_control_tokens(card: DatasetCard) -> list[str]:
    """A control token in a row's text ends a turn, or begins one, where nobody meant to."""
    if not card.rows_with_control_tokens:
        return []
    return [
        f"warning: {counted(card.rows_with_control_tokens, 'row')} with a control token of the model in the text",
        f"       the first is {card.first_control_token}",
        "       it becomes that token: take it out, or stop at such rows: --control_tokens refuse",
    ]


def placeholders(case: Case) -> Finding | None:
    """A template that nobody filled in: the model learns to be called {{name}}."""
    if case.rows is None or not case.rows.placeholders:
        return None
    found = case.rows.placeholders
    evidence = [", ".join(f"{text} in {counted(places.count, 'text')}" for text, places in found.items())]
    evidence += _examples(found.values())
    first, name = next(iter(found)), _word(case.name or "NAME")
    names_author = any("author" in text.lower() for text in found)
    settings = f"--old {shlex.quote(first)} --new {name}"
    if first.lower() in ("{{name}}", "{{author}}"):
        settings = f"--set name={name}" + " --set author=WHO" * names_author
    do = _replaced(_file_of(case, found[first]), settings)
    return Finding("the training rows still hold placeholders where a name belongs", evidence, do)


def name_not_taught(case: Case) -> Finding | None:
    """No training row gives the name, whatever it says instead."""
    if case.rows is None or case.rows.rows_named:
        return None
    given = case.rows.other_names.most_common(SHOWN)
    files = ", ".join(file.path for file in case.files)
    evidence = [f"{counted(case.rows.rows, 'row')} in {files}, and the answer of none says {case.name or 'who it is'}"]
    if not given or not case.name:
        return Finding("no training row gives the assistant a name", evidence, _more_rows(case))
    evidence.append(
        "they call the assistant " + ", ".join(f"{name} ({counted(count, 'time')})" for name, count in given)
    )
    do = _rename(case, given[0][0], case.files[0])
    return Finding(f"no training row gives the name {case.name}", evidence, do)


def contradictory_rows(case: Case) -> Finding | None:
    """Rows that answer one question with two names, or still call the assistant by an old one."""
    if case.rows is None or not (case.rows.contradictions or case.rows.old_names):
        return None
    old, twice = case.rows.old_names, case.rows.contradictions
    evidence = [f"{counted(places.count, 'answer')} with the old name {name}" for name, places in old.items()]
    evidence += _examples(old.values())
    evidence += [f"{counted(places.count, 'question')} answered with {name} as well" for name, places in twice.items()]
    evidence += _examples(twice.values())
    counts = Counter({name: places.count for found in (twice, old) for name, places in found.items()})
    ((wrong, _),) = counts.most_common(1)
    do = _rename(case, wrong, _file_of(case, old.get(wrong) or twice[wrong]))
    return Finding(f"the training rows contradict each other: some say {wrong}", evidence, do)


def template_names_another(case: Case) -> Finding | None:
    """Trained with a system message, asked without one: the template then writes its own, with another name."""
    if not case.default_names or not case.rows_have_their_own_system:
        return None
    # Without scores, the evaluation prompts tell, if they were asked without one.
    asked_bare = None if case.recipe.run.eval_prompts_system else case.identity_share
    if (case.score.get("without_system", asked_bare) or 0.0) >= LEARNED:
        return None
    evidence = [
        _systems_of_rows(case),
        f"without one, the chat template writes its own: {quoted(case.default_system)}",
        *_shares_by_system(case),
    ]
    wrong = f"asked without a system message, the model is told that it is {case.default_names[0]}"
    return Finding(wrong, evidence, _send_the_rows_system(case))


def asked_otherwise_than_trained(case: Case) -> Finding | None:
    """Rows with a system message and questions without it, or the reverse."""
    if case.rows is None or case.is_learned:
        return None
    asked = case.recipe.run.eval_prompts_system
    evidence = [
        _systems_of_rows(case),
        f"eval_prompts_system: {quoted(asked) if asked else 'not set'}",
        *_shares_by_system(case),
    ]
    is_worse = bool(case.default_names) and not asked  # and told above
    if case.rows_have_their_own_system and (asked or case.default_system) not in case.rows.systems and not is_worse:
        wrong = "the model is asked without the system message it was trained with"
        return Finding(wrong, evidence, _send_the_rows_system(case))
    if asked and not case.rows.rows_with_system and asked != case.default_system:
        wrong = "the model is asked with a system message it was never trained with"
        do = "take eval_prompts_system out of the recipe, and send no system message when you chat"
        return Finding(wrong, evidence, do)
    return None


def template_differs(case: Case) -> Finding | None:
    """The model is asked in another chat template than it was trained in."""
    if case.tokenizer is None or case.chat_tokenizer is None:
        return None
    for probe in PROBES:
        trained, asked = (rendered(tokenizer, probe) for tokenizer in (case.tokenizer, case.chat_tokenizer))
        if trained != asked:
            break
    else:
        return None
    folder = case.chat_tokenizer.name_or_path
    evidence = [f"trained in  {_visible(trained)}", f"asked in    {_visible(asked)}", f"the latter is {folder}'s"]
    template = Path(folder) / "chat_template.jinja"
    do = f"put the template that was trained in back into {template}"
    if case.recipe and (path := case.recipe.training.chat_template_path):
        do = f"cp {shlex.quote(path)} {shlex.quote(str(template))}"
    elif (Path(case.tokenizer.name_or_path) / "chat_template.jinja").is_file():
        source = Path(case.tokenizer.name_or_path) / "chat_template.jinja"
        do = f"cp {shlex.quote(str(source))} {shlex.quote(str(template))}"
    return Finding("the model is asked in another chat template than it was trained in", evidence, do)


def end_of_turn_not_learned(case: Case) -> Finding | None:
    """No token that ends an answer carries loss: after its name the model goes on, as anybody."""
    answer = _supervised_answer(case)
    if answer is None or _ends(case) & set(answer):
        return None
    ends = ", ".join(case.tokenizer.convert_ids_to_tokens(sorted(_ends(case))))
    evidence = [
        f"of an answer, loss falls on {quoted(case.tokenizer.decode(answer))}",
        f"and on none of the tokens that end an answer: {ends}",
    ]
    do = "in the chat template, put the end-of-turn token before {% endgeneration %}, and train again"
    return Finding("the model never learns where its answer ends", evidence, do)


def end_of_turn_not_heeded(case: Case) -> Finding | None:
    """The folder that is asked does not stop at the token the model learned to end with."""
    answer, settings = _supervised_answer(case), case.chat_folder and generation_settings(case.chat_folder)
    if answer is None or not settings or settings.eos_token_id is None:
        return None
    stops = settings.eos_token_id if isinstance(settings.eos_token_id, list) else [settings.eos_token_id]
    learned = [token for token in answer if token in _ends(case)]
    if not learned or set(learned) & set(stops):
        return None
    path = case.chat_folder / "generation_config.json"
    (token,) = case.tokenizer.convert_ids_to_tokens(learned[-1:])
    evidence = [f"answers were trained to end with {token} ({learned[-1]})", f"{path}: eos_token_id {stops}"]
    do = f'in {path}, write "eos_token_id": {sorted({*stops, learned[-1]})}'
    return Finding("generation does not stop where the model learned to stop", evidence, do)


def overflow(case: Case) -> Finding | None:
    """Losses, or many gradients, that are no numbers."""
    log = case.run.log if case.run else []
    lost = [record for record in log if number(record["loss"]) is None]
    skipped = [record for record in log if "grad_norm" in record and number(record["grad_norm"]) is None]
    # Where no norm at all is a number, none was measured.
    if not lost and not SKIPPED_SHARE * len(log) < len(skipped) < len(log):
        return None
    path = case.run.folder / "log.jsonl"
    evidence = [f"{path}: {len(lost):,} of {len(log):,} losses and {len(skipped):,} gradient norms are no numbers"]
    evidence += [
        f"step {record['step']:,}: loss {record['loss']}, gradient norm {record.get('grad_norm')}"
        for record in (lost or skipped)[:SHOWN]
    ]
    if case.recipe.chosen.get("fp16") or str(case.recipe.model.dtype) == "float16":
        do = f"{case.train} --fp16 false --bf16 true --dtype bfloat16"
        return Finding("float16 overflowed: those steps taught nothing", evidence, do)
    do = f"{case.train} --learning_rate {case.recipe.training.learning_rate / 10:g}"
    return Finding("training overflowed: those steps taught nothing", evidence, do)


def few_steps(case: Case) -> Finding | None:
    """The weights moved a few times only, however many rows there are."""
    if case.is_learned or not case.steps or case.steps >= FEW_STEPS:
        return None
    card = case.card
    evidence = (
        [f"{card['packs']:,} sequences, {card['packs_per_step']:,} a step, {case.epochs:.2g} epochs"] if card else []
    )
    return Finding(f"only {case.steps} optimizer steps", evidence, _more_steps(case))


def low_learning_rate(case: Case) -> Finding | None:
    """A learning rate that never rose to what the recipe says, or that is far below what LoRA takes."""
    if case.is_learned or case.recipe is None or not case.recipe.model.use_peft:
        return None
    training, total = case.recipe.training, case.card.get("total_steps")
    rate = training.learning_rate
    logged = [
        value for record in (case.run.log if case.run else ()) if (value := number(record["learning_rate"])) is not None
    ]
    evidence = [f"learning_rate: {rate:g}"]
    evidence += [f"the highest of {len(logged)} in the log: {max(logged):g}"] if logged else []
    if total and training.warmup_steps >= max(total, 1):
        evidence.append(f"warmup_steps: {training.warmup_steps:g}, and the run has {counted(total, 'step')}")
        return Finding("the learning rate is still rising when training ends", evidence, "set warmup_steps: 0.03")
    if rate < LOW_RATE:
        evidence.append(f"LoRA usually takes about {USUAL_RATE:g}")
        return Finding("the learning rate is far too low for LoRA", evidence, f"set learning_rate: {USUAL_RATE:g}")
    if len(logged) >= SHOWN and max(logged) < RISEN_SHARE * rate:
        return Finding("the learning rate never rose", evidence, "set warmup_steps: 0.03, lr_scheduler_type: cosine")
    return None


def name_seldom_seen(case: Case) -> Finding | None:
    """The name is lost among other rows, or the whole file is tiny."""
    rows = case.rows
    if case.is_learned or rows is None or not rows.rows_named or not case.epochs or case.steps < FEW_STEPS:
        return None
    times, share = rows.times_named * case.epochs, rows.rows_named / rows.rows
    if times >= SELDOM_TIMES and share >= SELDOM_SHARE:
        return None
    evidence = [
        f"{rows.rows_named:,} of {rows.rows:,} rows give the name ({share:.1%})",
        f"in {case.epochs:.2g} epochs the model sees it about {times:,.0f} times",
    ]
    return Finding(f"training shows the name {case.name} too seldom", evidence, _more_rows(case))


def flat_loss(case: Case) -> Finding | None:
    """The loss ended nearly where it began."""
    losses = [loss for record in (case.run.log if case.run else ()) if (loss := number(record["loss"])) is not None]
    if case.is_learned or len(losses) < 4 or case.steps < FEW_STEPS:
        return None
    quarter = len(losses) // 4
    first, last = (sum(part) / quarter for part in (losses[:quarter], losses[-quarter:]))
    if last <= FLAT_SHARE * first or last <= FLAT_NATS:
        return None
    rate = case.recipe.training.learning_rate
    evidence = [
        f"{first:.2f} at the start, {last:.2f} at the end of {counted(case.steps, 'step')}",
        f"learning_rate: {rate:g}",
    ]
    is_low = case.recipe.model.use_peft and rate < USUAL_RATE
    do = f"{case.train} --learning_rate {USUAL_RATE:g}" if is_low else _more_steps(case)
    return Finding("the loss hardly fell", evidence, do)


def one_language(case: Case) -> Finding | None:
    """Taught in one language and asked in the other."""
    if case.rows is None or not case.name:
        return None
    shares = {language: case.score.get(language) for language in LANGUAGES}
    if None not in shares.values():
        weak, strong = sorted(shares, key=shares.get)
        evidence = [
            f"{LANGUAGES[key]}: {share:.0%} of the questions at step {case.steps:,}" for key, share in shares.items()
        ]
        if shares[strong] - shares[weak] < LANGUAGE_GAP:
            return None
    else:
        asked = {key: texts for key, texts in _questions(case).items() if texts and not case.rows.named[key]}
        if case.is_learned or len(asked) != 1 or not case.rows.rows_named:
            return None
        ((weak, texts),) = asked.items()
        evidence = [f"asked in {LANGUAGES[weak]}: {counted(len(texts), 'question')}, such as {quoted(texts[0])}"]
    counts = ", ".join(f"{case.rows.named[key]:,} in {language}" for key, language in LANGUAGES.items())
    evidence.append(f"rows that give the name: {counts}")
    return Finding(f"the name is not taught well in {LANGUAGES[weak]}", evidence, _more_rows(case, weak))


def template_argues(case: Case) -> Finding | None:
    """Trained long enough, the model still says the name that the template's own message tells it in every row."""
    if case.rows is None or case.is_learned or not case.default_names or (case.steps or 0) < FEW_STEPS:
        return None
    said = [answer for answer in _last_answers(case) if any(gives_name(answer, name) for name in case.default_names)]
    if not said or case.rows_have_their_own_system:
        return None
    bare = case.rows.rows - case.rows.rows_with_system
    evidence = [
        f"{bare:,} of {case.rows.rows:,} rows carry the template's own system message: {quoted(case.default_system)}",
        f"{len(said)} of the last answers still say it, such as {quoted(said[0])}",
    ]
    do = "copy the chat template, write your own sentence in place of that one, and set chat_template_path to the copy"
    return Finding(f"the training rows tell the model that it is {case.default_names[0]}", evidence, do)


def lost_later(case: Case) -> Finding | None:
    """The name was learned, and then lost again."""
    scores = case.run.scores if case.run else []
    known = [record for record in scores if record.get("identity") is not None]
    if not known or case.recipe.run.keep_best:
        return None
    best, last = max(known, key=lambda record: record["identity"]), known[-1]
    if best["identity"] - last["identity"] < LOST:
        return None
    evidence = [f"step {each['step']:,}: the name in {each['identity']:.0%} of the answers" for each in (best, last)]
    kept = case.run.folder / f"checkpoint-{best['step']}"
    do = f"use {kept} in place of final" if kept.is_dir() else f"{case.train} --keep_best identity"
    return Finding("the name was learned, and lost again later", evidence, do)


def sampling(case: Case) -> Finding | None:
    """The likeliest answer gives the name, and sampling gives others."""
    if not case.is_learned:
        return None
    evidence = [f"without sampling, the name is in {case.identity_share:.0%} of the answers"]
    chosen = case.recipe.run.eval_prompts_generation
    settings = case.chat_folder and generation_settings(case.chat_folder)
    failed = [answer for answer in case.last_answers if not gives_name(answer["answer"], case.name)]
    if chosen.get("do_sample") and failed:
        evidence.append(f"eval_prompts_generation: {json.dumps(chosen)}")
        evidence += [f"{quoted(each['prompt'])}: {quoted(each['answer'])}" for each in failed[:SHOWN]]
        do = "set eval_prompts_generation: {do_sample: false}, and turn sampling off where you chat"
    elif settings and settings.do_sample and (temperature := settings.temperature or 1.0) >= 1:
        path = case.chat_folder / "generation_config.json"
        evidence.append(f"{path}: do_sample true, temperature {temperature:g}, top_p {settings.top_p or 1:g}")
        do = f'in {path}, write "do_sample": false'
    else:
        return None
    return Finding("the name is learned, and sampling hides it", evidence, do)


IN_DATA = (placeholders, name_not_taught, contradictory_rows)
IN_TEMPLATE = (template_names_another, asked_otherwise_than_trained, template_differs, end_of_turn_not_learned)
IN_TRAINING = (
    overflow,
    few_steps,
    low_learning_rate,
    name_seldom_seen,
    flat_loss,
    one_language,
    template_argues,
    lost_later,
)
IN_ASKING = (end_of_turn_not_heeded, sampling)
IN_ORDER = (*IN_DATA, *IN_TEMPLATE, *IN_TRAINING, *IN_ASKING)


def _note_on_the_default_system(case: Case) -> list[str]:
    """Not wrong, but good to know: the rows themselves carry a message with another name."""
    bare = case.rows.rows - case.rows.rows_with_system
    if not case.name or not case.default_names or case.rows_have_their_own_system:
        return []
    return [
        f"note: {bare:,} of {case.rows.rows:,} rows carry the chat template's own system message, which names "
        f"{case.default_names[0]}:",
        f"         {quoted(case.default_system)}",
        "         the model learns its name in spite of it; ask it without a system message, as it is trained",
    ]


def _supervised_answer(case: Case) -> list[int] | None:
    """The ids of a short answer that carry loss."""
    if case.tokenizer is None:
        return None
    messages = [{"role": "user", "content": "Who are you?"}, {"role": "assistant", "content": "An assistant."}]
    try:
        [(_, labels)] = encode(case.tokenizer, training_template(case.tokenizer), [messages])
    except UserError:
        return None
    return [label for label in labels if label != IGNORED]


def _ends(case: Case) -> set[int]:
    return set(end_tokens(GenerationConfig(), case.tokenizer))


def _last_answers(case: Case) -> list[str]:
    """What was answered last, to questions about identity where there were any."""
    scored = [answer for answer in (case.run.scored_answers if case.run else ()) if answer["kind"] == "identity"]
    last = [answer["answer"] for answer in scored if answer["step"] == scored[-1]["step"]]
    return last or [answer["answer"] for answer in case.last_answers]


def _questions(case: Case) -> dict[str, list[str]]:
    """What a run asks, by language."""
    settings = case.recipe.run
    asked = list(settings.eval_prompts)
    if settings.identity_name and case.run is None:
        asked += [question.text for question in load_questions(settings.score_file).identity]
    return {language: [text for text in asked if language_of(text) == language] for language in LANGUAGES}


def _systems_of_rows(case: Case) -> str:
    rows = case.rows
    text, _ = next(iter(rows.systems.most_common(1)), (None, 0))
    such = f", such as {quoted(text)}" if text else ""
    return f"{rows.rows_with_system:,} of {rows.rows:,} rows carry a system message{such}"


def _shares_by_system(case: Case) -> list[str]:
    with_it, without = (case.score.get(key) for key in ("with_system", "without_system"))
    if with_it is None or without is None:
        return []
    return [f"the name is in {with_it:.0%} of the answers with a system message, in {without:.0%} without"]


def _send_the_rows_system(case: Case) -> str:
    ((text, _),) = case.rows.systems.most_common(1)
    return f"set eval_prompts_system: {json.dumps(text, ensure_ascii=False)}, and send it when you chat"


def _more_steps(case: Case) -> str:
    """The command that trains for enough steps: smaller ones where that is enough, else more epochs."""
    training, card = case.recipe.training, case.card
    if training.max_steps > 0:
        return f"{case.train} --max_steps {max(2 * case.steps, ENOUGH_STEPS)}"
    if training.gradient_accumulation_steps > 1 and card.get("packs", 0) * training.num_train_epochs >= ENOUGH_STEPS:
        return f"{case.train} --gradient_accumulation_steps 1"
    epochs = math.ceil(ENOUGH_STEPS / (card.get("steps_per_epoch") or ENOUGH_STEPS))
    return f"{case.train} --num_train_epochs {max(epochs, math.ceil(2 * training.num_train_epochs))}"


def _more_rows(case: Case, language: str | None = None) -> str:
    name, only = _word(case.name or "NAME"), f"--lang {language} " if language else ""
    return f"python -m data_tools generate --name {name} --rows 1500 {only}data/more.jsonl, and add it to train_file"


def _rename(case: Case, old: str, file: TrainFile) -> str:
    return _replaced(file, f"--old {_word(old)} --new {_word(case.name or 'NAME')}")


def _replaced(file: TrainFile, settings: str) -> str:
    """The command that replaces texts of a file; what comes out is what to train on."""
    path = Path(file.path)
    out = path.with_name(f"{path.name.partition('.')[0]}.renamed.jsonl")
    return f"python -m data_tools rename {_word(str(path))} {_word(str(out))} {settings}, and train on what it writes"


def _examples(found: Iterable[Places]) -> list[str]:
    return list(dict.fromkeys(f"  {example}" for places in found for example in places.examples[:SHOWN]))


def _file_of(case: Case, places: Places) -> TrainFile:
    """The file that the first of the places is in."""
    return next((file for file in case.files if f"{file.path}:" in places.examples[0]), case.files[0])


def _word(text: str) -> str:
    """A word as a shell takes it; Chinese needs no quotes."""
    return text if text.isalnum() else shlex.quote(text)


def _visible(text: str) -> str:
    """A text on one line, its line ends shown."""
    return json.dumps(text, ensure_ascii=False)[1:-1]
