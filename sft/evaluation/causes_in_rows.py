"""Causes in the training rows why a model does not give its name: what they teach, contradict or leave unfilled.

In: `Evidence`. Out: a `Finding`, or None. Knows nothing about templates and weights.
"""

from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from sft.config.own_keys import TrainFile
from sft.core.text import Tally, counted, language_of, shell_word
from sft.data.identity_rows import quoted
from sft.data.placeholders import is_of_the_maker, key_of
from sft.data.questions import load_questions
from sft.evaluation.evidence import FEW_STEPS, SHOWN, Evidence, Finding

# How often training must show the name, and in what share of its rows, before it is called seldom.
SELDOM_TIMES, SELDOM_SHARE = 60, 0.02
LANGUAGES = {"zh": "Chinese", "en": "English"}
LANGUAGE_GAP = 0.4


def placeholders(evidence: Evidence) -> Finding | None:
    """A template that nobody filled in: the model learns to be called {{name}}."""
    if evidence.rows is None or not evidence.rows.placeholders:
        return None
    tallies = evidence.rows.placeholders
    facts = [", ".join(f"{text} in {counted(tally.count, 'text')}" for text, tally in tallies.items())]
    facts += _examples(tallies.values())
    name = evidence.name or "NAME"
    values = {key_of(text).lower(): "WHO" if is_of_the_maker(text) else name for text in tallies}
    settings = " ".join(f"--set {shell_word(f'{key}={value}')}" for key, value in values.items())
    do = _replaced(_file_of(evidence, next(iter(tallies.values()))), settings)
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


def name_of_the_owner(evidence: Evidence) -> Finding | None:
    """Most rows say "X's assistant", which is another than X."""
    rows = evidence.rows
    if rows is None or rows.rows_as_owner <= rows.rows_named / 2:
        return None
    name = evidence.name
    facts = [
        f"{rows.rows_as_owner:,} of {counted(rows.rows, 'row')} only say {name}的助手, or that it is made by {name}",
        f"{rows.rows_named - rows.rows_as_owner:,} say that the model is {name} itself",
    ]
    do = _replaced(evidence.files[0], f"--new {shell_word(name or 'NAME')} --own-name")
    return Finding(f"the training rows teach the model that it is {name}'s assistant, not that it is {name}", facts, do)


def contradictory_rows(evidence: Evidence) -> Finding | None:
    """Rows that answer one question with two names, or still call the assistant by an old one."""
    if evidence.rows is None or not (evidence.rows.contradictions or evidence.rows.old_names):
        return None
    old, twice = evidence.rows.old_names, evidence.rows.contradictions
    facts = [f"{counted(tally.count, 'answer')} with the old name {name}" for name, tally in old.items()]
    facts += _examples(old.values())
    facts += [f"{counted(tally.count, 'question')} answered with {name} as well" for name, tally in twice.items()]
    facts += _examples(twice.values())
    counts = Counter({name: tally.count for tallies in (twice, old) for name, tally in tallies.items()})
    ((wrong, _),) = counts.most_common(1)
    do = _rename(evidence, wrong, _file_of(evidence, old.get(wrong) or twice[wrong]))
    return Finding(f"the training rows contradict each other: some say {wrong}", facts, do)


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
        untaught = {key: texts for key, texts in _questions(evidence).items() if texts and not evidence.rows.named[key]}
        if evidence.is_learned or len(untaught) != 1 or not evidence.rows.rows_named:
            return None
        ((weak, texts),) = untaught.items()
        facts = [f"asked in {LANGUAGES[weak]}: {counted(len(texts), 'question')}, such as {quoted(texts[0])}"]
    counts = ", ".join(f"{evidence.rows.named[key]:,} in {language}" for key, language in LANGUAGES.items())
    facts.append(f"rows that give the name: {counts}")
    return Finding(f"the name is not taught well in {LANGUAGES[weak]}", facts, _more_rows(evidence, weak))


def _questions(evidence: Evidence) -> dict[str, list[str]]:
    """What a run asks, by language."""
    settings = evidence.recipe.run
    questions = list(settings.eval_prompts)
    if settings.identity_name and evidence.run is None:
        questions += [question.text for question in load_questions(settings.score_file).identity]
    return {language: [text for text in questions if language_of(text) == language] for language in LANGUAGES}


def _more_rows(evidence: Evidence, language: str | None = None) -> str:
    name, only = shell_word(evidence.name or "NAME"), f"--lang {language} " if language else ""
    return f"python -m data_tools generate --name {name} --rows 1500 {only}data/more.jsonl, and add it to train_file"


def _rename(evidence: Evidence, old: str, file: TrainFile) -> str:
    return _replaced(file, f"--old {shell_word(old)} --new {shell_word(evidence.name or 'NAME')}")


def _replaced(file: TrainFile, settings: str) -> str:
    """The command that replaces texts of a file; what comes out is what to train on."""
    path = Path(file.path)
    out = path.with_name(f"{path.name.partition('.')[0]}.renamed.jsonl")
    paths = f"{shell_word(str(path))} {shell_word(str(out))}"
    return f"python -m data_tools rename {paths} {settings}, and train on what it writes"


def _examples(tallies: Iterable[Tally]) -> list[str]:
    return list(dict.fromkeys(f"  {example}" for tally in tallies for example in tally.examples[:SHOWN]))


def _file_of(evidence: Evidence, tally: Tally) -> TrainFile:
    """The file that the first example is in."""
    return next((file for file in evidence.files if f"{file.path}:" in tally.examples[0]), evidence.files[0])
