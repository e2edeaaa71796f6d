"""Says why a model does not give its name: one function a cause, each with its evidence and the one thing to do.

In: a `Evidence`. Out: findings, first the cause that makes the ones after it meaningless. Reads no weights and loads no
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

from sft.config.own_keys import TrainFile
from sft.config.recipe import Recipe
from sft.core.errors import UserError
from sft.core.text import Tally, counted, language_of
from sft.data.chat_template import PROBES, training_template
from sft.data.dataset import DatasetCard
from sft.data.encoding import IGNORED, encode
from sft.data.identity import gives_name
from sft.data.identity_rows import quoted
from sft.data.questions import load_questions
from sft.evaluation.evidence import LEARNED, Evidence, evidence_of_plan, generation_settings, rendered
from sft.models.generation import end_tokens
from sft.runs.run_files import LOG, number

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
    findings = diagnose(evidence) if evidence.name else list(filter(None, [placeholders(evidence)]))
    lines = []
    for finding in findings:
        first, *more = finding.lines()
        lines += [f"warning: {first}", *(f"       {line}" for line in more)]
    return lines + _note_on_control_tokens(card) + _note_on_the_default_system(evidence)


def _note_on_control_tokens(card: DatasetCard) -> list[str]:
    """A control token in a row's text ends a turn, or begins one, where nobody meant to."""
    if not card.rows_with_control_tokens:
        return []
    return [
        f"warning: {counted(card.rows_with_control_tokens, 'row')} with a control token of the model in the text",
        f"       the first is {card.first_control_token}",
        "       it becomes that token: take it out, or stop at such rows: --control_tokens refuse",
    ]


def placeholders(evidence: Evidence) -> Finding | None:
    """A template that nobody filled in: the model learns to be called {{name}}."""
    if evidence.rows is None or not evidence.rows.placeholders:
        return None
    found = evidence.rows.placeholders
    facts = [", ".join(f"{text} in {counted(places.count, 'text')}" for text, places in found.items())]
    facts += _examples(found.values())
    first, name = next(iter(found)), _word(evidence.name or "NAME")
    names_author = any("author" in text.lower() for text in found)
    settings = f"--old {shlex.quote(first)} --new {name}"
    if first.lower() in ("{{name}}", "{{author}}"):
        settings = f"--set name={name}" + " --set author=WHO" * names_author
    do = _replaced(_file_of(evidence, found[first]), settings)
    return Finding("the training rows still hold placeholders where a name belongs", facts, do)


def name_not_taught(evidence: Evidence) -> Finding | None:
    """No training row gives the name, whatever it says instead."""
    if evidence.rows is None or evidence.rows.rows_named:
        return None
    given = evidence.rows.other_names.most_common(SHOWN)
    files = ", ".join(file.path for file in evidence.files)
    facts = [
        f"{counted(evidence.rows.rows, 'row')} in {files}, and the answer of none says {evidence.name or 'who it is'}"
    ]
    if not given or not evidence.name:
        return Finding("no training row gives the assistant a name", facts, _more_rows(evidence))
    facts.append("they call the assistant " + ", ".join(f"{name} ({counted(count, 'time')})" for name, count in given))
    do = _rename(evidence, given[0][0], evidence.files[0])
    return Finding(f"no training row gives the name {evidence.name}", facts, do)


def contradictory_rows(evidence: Evidence) -> Finding | None:
    """Rows that answer one question with two names, or still call the assistant by an old one."""
    if evidence.rows is None or not (evidence.rows.contradictions or evidence.rows.old_names):
        return None
    old, twice = evidence.rows.old_names, evidence.rows.contradictions
    facts = [f"{counted(places.count, 'answer')} with the old name {name}" for name, places in old.items()]
    facts += _examples(old.values())
    facts += [f"{counted(places.count, 'question')} answered with {name} as well" for name, places in twice.items()]
    facts += _examples(twice.values())
    counts = Counter({name: places.count for found in (twice, old) for name, places in found.items()})
    ((wrong, _),) = counts.most_common(1)
    do = _rename(evidence, wrong, _file_of(evidence, old.get(wrong) or twice[wrong]))
    return Finding(f"the training rows contradict each other: some say {wrong}", facts, do)


def template_names_another(evidence: Evidence) -> Finding | None:
    """Trained with a system message, asked without one: the template then writes its own, with another name."""
    if not evidence.default_names or not evidence.rows_have_their_own_system:
        return None
    # Without scores, the evaluation prompts tell, if they were asked without one.
    asked_bare = None if evidence.recipe.run.eval_prompts_system else evidence.identity_share
    if (evidence.score.get("without_system", asked_bare) or 0.0) >= LEARNED:
        return None
    facts = [
        _systems_of_rows(evidence),
        f"without one, the chat template writes its own: {quoted(evidence.default_system)}",
        *_shares_by_system(evidence),
    ]
    wrong = f"asked without a system message, the model is told that it is {evidence.default_names[0]}"
    return Finding(wrong, facts, _send_the_rows_system(evidence))


def asked_otherwise_than_trained(evidence: Evidence) -> Finding | None:
    """Rows with a system message and questions without it, or the reverse."""
    if evidence.rows is None or evidence.is_learned:
        return None
    asked = evidence.recipe.run.eval_prompts_system
    facts = [
        _systems_of_rows(evidence),
        f"eval_prompts_system: {quoted(asked) if asked else 'not set'}",
        *_shares_by_system(evidence),
    ]
    is_worse = bool(evidence.default_names) and not asked  # and told above
    if (
        evidence.rows_have_their_own_system
        and (asked or evidence.default_system) not in evidence.rows.systems
        and not is_worse
    ):
        wrong = "the model is asked without the system message it was trained with"
        return Finding(wrong, facts, _send_the_rows_system(evidence))
    if asked and not evidence.rows.rows_with_system and asked != evidence.default_system:
        wrong = "the model is asked with a system message it was never trained with"
        do = "take eval_prompts_system out of the recipe, and send no system message when you chat"
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
    facts = [f"trained in  {_visible(trained)}", f"asked in    {_visible(asked)}", f"the latter is {folder}'s"]
    template = Path(folder) / "chat_template.jinja"
    do = f"put the template that was trained in back into {template}"
    if evidence.recipe and (path := evidence.recipe.training.chat_template_path):
        do = f"cp {shlex.quote(path)} {shlex.quote(str(template))}"
    elif (Path(evidence.tokenizer.name_or_path) / "chat_template.jinja").is_file():
        source = Path(evidence.tokenizer.name_or_path) / "chat_template.jinja"
        do = f"cp {shlex.quote(str(source))} {shlex.quote(str(template))}"
    return Finding("the model is asked in another chat template than it was trained in", facts, do)


def end_of_turn_not_learned(evidence: Evidence) -> Finding | None:
    """No token that ends an answer carries loss: after its name the model goes on, as anybody."""
    answer = _supervised_answer(evidence)
    if answer is None or _ends(evidence) & set(answer):
        return None
    ends = ", ".join(evidence.tokenizer.convert_ids_to_tokens(sorted(_ends(evidence))))
    facts = [
        f"of an answer, loss falls on {quoted(evidence.tokenizer.decode(answer))}",
        f"and on none of the tokens that end an answer: {ends}",
    ]
    do = "in the chat template, put the end-of-turn token before {% endgeneration %}, and train again"
    return Finding("the model never learns where its answer ends", facts, do)


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
    facts = [f"answers were trained to end with {token} ({learned[-1]})", f"{path}: eos_token_id {stops}"]
    do = f'in {path}, write "eos_token_id": {sorted({*stops, learned[-1]})}'
    return Finding("generation does not stop where the model learned to stop", facts, do)


def overflow(evidence: Evidence) -> Finding | None:
    """Losses, or many gradients, that are no numbers."""
    log = evidence.run.log if evidence.run else []
    lost = [record for record in log if number(record["loss"]) is None]
    skipped = [record for record in log if "grad_norm" in record and number(record["grad_norm"]) is None]
    # Where no norm at all is a number, none was measured.
    if not lost and not SKIPPED_SHARE * len(log) < len(skipped) < len(log):
        return None
    path = evidence.run.folder / LOG
    facts = [f"{path}: {len(lost):,} of {len(log):,} losses and {len(skipped):,} gradient norms are no numbers"]
    facts += [
        f"step {record['step']:,}: loss {record['loss']}, gradient norm {record.get('grad_norm')}"
        for record in (lost or skipped)[:SHOWN]
    ]
    if evidence.recipe.chosen.get("fp16") or str(evidence.recipe.model.dtype) == "float16":
        do = f"{evidence.train} --fp16 false --bf16 true --dtype bfloat16"
        return Finding("float16 overflowed: those steps taught nothing", facts, do)
    do = f"{evidence.train} --learning_rate {evidence.recipe.training.learning_rate / 10:g}"
    return Finding("training overflowed: those steps taught nothing", facts, do)


def few_steps(evidence: Evidence) -> Finding | None:
    """The weights moved a few times only, however many rows there are."""
    if evidence.is_learned or not evidence.steps or evidence.steps >= FEW_STEPS:
        return None
    card = evidence.card
    facts = (
        [f"{card['packs']:,} sequences, {card['packs_per_step']:,} a step, {evidence.epochs:.2g} epochs"]
        if card
        else []
    )
    return Finding(f"only {evidence.steps} optimizer steps", facts, _more_steps(evidence))


def low_learning_rate(evidence: Evidence) -> Finding | None:
    """A learning rate that never rose to what the recipe says, or that is far below what LoRA takes."""
    if evidence.is_learned or evidence.recipe is None or not evidence.recipe.model.use_peft:
        return None
    training, total = evidence.recipe.training, evidence.card.get("total_steps")
    rate = training.learning_rate
    logged = [
        value
        for record in (evidence.run.log if evidence.run else ())
        if (value := number(record["learning_rate"])) is not None
    ]
    facts = [f"learning_rate: {rate:g}"]
    facts += [f"the highest of {len(logged)} in the log: {max(logged):g}"] if logged else []
    if total and training.warmup_steps >= max(total, 1):
        facts.append(f"warmup_steps: {training.warmup_steps:g}, and the run has {counted(total, 'step')}")
        return Finding("the learning rate is still rising when training ends", facts, "set warmup_steps: 0.03")
    if rate < LOW_RATE:
        facts.append(f"LoRA usually takes about {USUAL_RATE:g}")
        return Finding("the learning rate is far too low for LoRA", facts, f"set learning_rate: {USUAL_RATE:g}")
    if len(logged) >= SHOWN and max(logged) < RISEN_SHARE * rate:
        return Finding("the learning rate never rose", facts, "set warmup_steps: 0.03, lr_scheduler_type: cosine")
    return None


def name_seldom_seen(evidence: Evidence) -> Finding | None:
    """The name is lost among other rows, or the whole file is tiny."""
    rows = evidence.rows
    if evidence.is_learned or rows is None or not rows.rows_named or not evidence.epochs or evidence.steps < FEW_STEPS:
        return None
    times, share = rows.times_named * evidence.epochs, rows.rows_named / rows.rows
    if times >= SELDOM_TIMES and share >= SELDOM_SHARE:
        return None
    facts = [
        f"{rows.rows_named:,} of {rows.rows:,} rows give the name ({share:.1%})",
        f"in {evidence.epochs:.2g} epochs the model sees it about {times:,.0f} times",
    ]
    return Finding(f"training shows the name {evidence.name} too seldom", facts, _more_rows(evidence))


def flat_loss(evidence: Evidence) -> Finding | None:
    """The loss ended nearly where it began."""
    losses = [
        loss for record in (evidence.run.log if evidence.run else ()) if (loss := number(record["loss"])) is not None
    ]
    if evidence.is_learned or len(losses) < 4 or evidence.steps < FEW_STEPS:
        return None
    quarter = len(losses) // 4
    first, last = (sum(part) / quarter for part in (losses[:quarter], losses[-quarter:]))
    if last <= FLAT_SHARE * first or last <= FLAT_NATS:
        return None
    rate = evidence.recipe.training.learning_rate
    facts = [
        f"{first:.2f} at the start, {last:.2f} at the end of {counted(evidence.steps, 'step')}",
        f"learning_rate: {rate:g}",
    ]
    is_low = evidence.recipe.model.use_peft and rate < USUAL_RATE
    do = f"{evidence.train} --learning_rate {USUAL_RATE:g}" if is_low else _more_steps(evidence)
    return Finding("the loss hardly fell", facts, do)


def one_language(evidence: Evidence) -> Finding | None:
    """Taught in one language and asked in the other."""
    if evidence.rows is None or not evidence.name:
        return None
    shares = {language: evidence.score.get(language) for language in LANGUAGES}
    if None not in shares.values():
        weak, strong = sorted(shares, key=shares.get)
        facts = [
            f"{LANGUAGES[key]}: {share:.0%} of the questions at step {evidence.steps:,}"
            for key, share in shares.items()
        ]
        if shares[strong] - shares[weak] < LANGUAGE_GAP:
            return None
    else:
        asked = {key: texts for key, texts in _questions(evidence).items() if texts and not evidence.rows.named[key]}
        if evidence.is_learned or len(asked) != 1 or not evidence.rows.rows_named:
            return None
        ((weak, texts),) = asked.items()
        facts = [f"asked in {LANGUAGES[weak]}: {counted(len(texts), 'question')}, such as {quoted(texts[0])}"]
    counts = ", ".join(f"{evidence.rows.named[key]:,} in {language}" for key, language in LANGUAGES.items())
    facts.append(f"rows that give the name: {counts}")
    return Finding(f"the name is not taught well in {LANGUAGES[weak]}", facts, _more_rows(evidence, weak))


def template_argues(evidence: Evidence) -> Finding | None:
    """Trained long enough, the model still says the name that the template's own message tells it in every row."""
    if evidence.rows is None or evidence.is_learned or not evidence.default_names or (evidence.steps or 0) < FEW_STEPS:
        return None
    said = [
        answer for answer in _last_answers(evidence) if any(gives_name(answer, name) for name in evidence.default_names)
    ]
    if not said or evidence.rows_have_their_own_system:
        return None
    rows, system = evidence.rows.rows, quoted(evidence.default_system)
    bare = rows - evidence.rows.rows_with_system
    facts = [
        f"{bare:,} of {rows:,} rows carry the template's own system message: {system}",
        f"{len(said)} of the last answers still say it, such as {quoted(said[0])}",
    ]
    do = "copy the chat template, write your own sentence in place of that one, and set chat_template_path to the copy"
    return Finding(f"the training rows tell the model that it is {evidence.default_names[0]}", facts, do)


def lost_later(evidence: Evidence) -> Finding | None:
    """The name was learned, and then lost again."""
    scores = evidence.run.scores if evidence.run else []
    known = [record for record in scores if record.get("identity") is not None]
    if not known or evidence.recipe.run.keep_best:
        return None
    best, last = max(known, key=lambda record: record["identity"]), known[-1]
    if best["identity"] - last["identity"] < LOST:
        return None
    facts = [f"step {each['step']:,}: the name in {each['identity']:.0%} of the answers" for each in (best, last)]
    kept = evidence.run.folder / f"checkpoint-{best['step']}"
    do = f"use {kept} in place of final" if kept.is_dir() else f"{evidence.train} --keep_best identity"
    return Finding("the name was learned, and lost again later", facts, do)


def sampling(evidence: Evidence) -> Finding | None:
    """The likeliest answer gives the name, and sampling gives others."""
    if not evidence.is_learned:
        return None
    facts = [f"without sampling, the name is in {evidence.identity_share:.0%} of the answers"]
    chosen = evidence.recipe.run.eval_prompts_generation
    settings = evidence.chat_folder and generation_settings(evidence.chat_folder)
    failed = [answer for answer in evidence.last_answers if not gives_name(answer["answer"], evidence.name)]
    if chosen.get("do_sample") and failed:
        facts.append(f"eval_prompts_generation: {json.dumps(chosen)}")
        facts += [f"{quoted(each['prompt'])}: {quoted(each['answer'])}" for each in failed[:SHOWN]]
        do = "set eval_prompts_generation: {do_sample: false}, and turn sampling off where you chat"
    elif settings and settings.do_sample and (temperature := settings.temperature or 1.0) >= 1:
        path = evidence.chat_folder / "generation_config.json"
        facts.append(f"{path}: do_sample true, temperature {temperature:g}, top_p {settings.top_p or 1:g}")
        do = f'in {path}, write "do_sample": false'
    else:
        return None
    return Finding("the name is learned, and sampling hides it", facts, do)


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


def _supervised_answer(evidence: Evidence) -> list[int] | None:
    """The ids of a short answer that carry loss."""
    if evidence.tokenizer is None:
        return None
    messages = [{"role": "user", "content": "Who are you?"}, {"role": "assistant", "content": "An assistant."}]
    try:
        [(_, labels)] = encode(evidence.tokenizer, training_template(evidence.tokenizer), [messages])
    except UserError:
        return None
    return [label for label in labels if label != IGNORED]


def _ends(evidence: Evidence) -> set[int]:
    return set(end_tokens(GenerationConfig(), evidence.tokenizer))


def _last_answers(evidence: Evidence) -> list[str]:
    """What was answered last, to questions about identity where there were any."""
    scored = [
        answer for answer in (evidence.run.scored_answers if evidence.run else ()) if answer["kind"] == "identity"
    ]
    last = [answer["answer"] for answer in scored if answer["step"] == scored[-1]["step"]]
    return last or [answer["answer"] for answer in evidence.last_answers]


def _questions(evidence: Evidence) -> dict[str, list[str]]:
    """What a run asks, by language."""
    settings = evidence.recipe.run
    asked = list(settings.eval_prompts)
    if settings.identity_name and evidence.run is None:
        asked += [question.text for question in load_questions(settings.score_file).identity]
    return {language: [text for text in asked if language_of(text) == language] for language in LANGUAGES}


def _systems_of_rows(evidence: Evidence) -> str:
    rows = evidence.rows
    text, _ = next(iter(rows.systems.most_common(1)), (None, 0))
    such = f", such as {quoted(text)}" if text else ""
    return f"{rows.rows_with_system:,} of {rows.rows:,} rows carry a system message{such}"


def _shares_by_system(evidence: Evidence) -> list[str]:
    with_it, without = (evidence.score.get(key) for key in ("with_system", "without_system"))
    if with_it is None or without is None:
        return []
    return [f"the name is in {with_it:.0%} of the answers with a system message, in {without:.0%} without"]


def _send_the_rows_system(evidence: Evidence) -> str:
    ((text, _),) = evidence.rows.systems.most_common(1)
    return f"set eval_prompts_system: {json.dumps(text, ensure_ascii=False)}, and send it when you chat"


def _more_steps(evidence: Evidence) -> str:
    """The command that trains for enough steps: smaller ones where that is enough, else more epochs."""
    training, card = evidence.recipe.training, evidence.card
    if training.max_steps > 0:
        return f"{evidence.train} --max_steps {max(2 * evidence.steps, ENOUGH_STEPS)}"
    if training.gradient_accumulation_steps > 1 and card.get("packs", 0) * training.num_train_epochs >= ENOUGH_STEPS:
        return f"{evidence.train} --gradient_accumulation_steps 1"
    epochs = math.ceil(ENOUGH_STEPS / (card.get("steps_per_epoch") or ENOUGH_STEPS))
    return f"{evidence.train} --num_train_epochs {max(epochs, math.ceil(2 * training.num_train_epochs))}"


def _more_rows(evidence: Evidence, language: str | None = None) -> str:
    name, only = _word(evidence.name or "NAME"), f"--lang {language} " if language else ""
    return f"python -m data_tools generate --name {name} --rows 1500 {only}data/more.jsonl, and add it to train_file"


def _rename(evidence: Evidence, old: str, file: TrainFile) -> str:
    return _replaced(file, f"--old {_word(old)} --new {_word(evidence.name or 'NAME')}")


def _replaced(file: TrainFile, settings: str) -> str:
    """The command that replaces texts of a file; what comes out is what to train on."""
    path = Path(file.path)
    out = path.with_name(f"{path.name.partition('.')[0]}.renamed.jsonl")
    return f"python -m data_tools rename {_word(str(path))} {_word(str(out))} {settings}, and train on what it writes"


def _examples(found: Iterable[Tally]) -> list[str]:
    return list(dict.fromkeys(f"  {example}" for places in found for example in places.examples[:SHOWN]))


def _file_of(evidence: Evidence, places: Tally) -> TrainFile:
    """The file that the first of the places is in."""
    return next((file for file in evidence.files if f"{file.path}:" in places.examples[0]), evidence.files[0])


def _word(text: str) -> str:
    """A word as a shell takes it; Chinese needs no quotes."""
    return text if text.isalnum() else shlex.quote(text)


def _visible(text: str) -> str:
    """A text on one line, its line ends shown."""
    return json.dumps(text, ensure_ascii=False)[1:-1]
