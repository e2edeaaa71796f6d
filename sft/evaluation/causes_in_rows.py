"""Causes in the training rows why a model does not give its name: what they teach, contradict or leave unfilled.

In: `Evidence`. Out: a `Finding`, or None. Knows nothing about templates and weights.
"""

from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from sft.config.own_keys import TrainFile
from sft.core.finding import Finding
from sft.core.language import Text, _, ngettext, same
from sft.core.text import Tally, language_of, shell_word
from sft.data.identity_rows import quoted
from sft.data.placeholders import is_of_the_maker, key_of
from sft.data.questions import load_questions
from sft.evaluation.evidence import FEW_STEPS, SHOWN, Evidence

# How often training must show the name, and in what share of its rows, before it is called seldom.
SELDOM_TIMES, SELDOM_SHARE = 60, 0.02
LANGUAGES = {"zh": _("Chinese"), "en": _("English")}
LANGUAGE_GAP = 0.4


def placeholders(evidence: Evidence) -> Finding | None:
    """A template that nobody filled in: the model learns to be called {{name}}."""
    if evidence.rows is None or not evidence.rows.placeholders:
        return None
    tallies = evidence.rows.placeholders
    counts = ", ".join(f"{text} ({tally.count:,})" for text, tally in tallies.items())
    facts = [_("training texts with a placeholder: {counts}", counts=counts), *_examples(tallies.values())]
    name = evidence.name or "NAME"
    values = {key_of(text).lower(): "WHO" if is_of_the_maker(text) else name for text in tallies}
    settings = " ".join(f"--set {shell_word(f'{key}={value}')}" for key, value in values.items())
    do = _replaced(_file_of(evidence, next(iter(tallies.values()))), settings)
    return Finding(_("the training rows still contain placeholders where a name belongs"), facts, do)


def name_not_taught(evidence: Evidence) -> Finding | None:
    """No training row gives the name, whatever it says instead."""
    rows, name = evidence.rows, evidence.name
    if rows is None or rows.rows_named:
        return None
    fact = _(
        "training rows in {files}: {count:,}", count=rows.rows, files=", ".join(each.path for each in evidence.files)
    )
    given = rows.other_names.most_common(SHOWN)
    if not given or not name:
        return Finding(_("no training row gives the assistant a name"), [fact], _more_rows(evidence))
    names = ", ".join(f"{other} ({count:,})" for other, count in given)
    facts = [fact, _("names that their answers give the assistant, and how often: {names}", names=names)]
    do = _rename(evidence, given[0][0], evidence.files[0])
    return Finding(_("no training row gives the name {name}", name=name), facts, do)


def name_of_the_owner(evidence: Evidence) -> Finding | None:
    """Most rows say "X's assistant", which is another than X."""
    rows = evidence.rows
    if rows is None or rows.rows_as_owner <= rows.rows_named / 2:
        return None
    name = evidence.name
    itself = rows.rows_named - rows.rows_as_owner
    facts = [
        _(
            "{count:,} of {rows:,} rows only say {name}的助手, or that {name} made the model",
            count=rows.rows_as_owner,
            rows=rows.rows,
            name=name,
        ),
        ngettext(
            "{count:,} row says that the model is {name} itself",
            "{count:,} rows say that the model is {name} itself",
            itself,
            name=name,
        ),
    ]
    do = _replaced(evidence.files[0], f"--new {shell_word(name or 'NAME')} --own-name")
    wrong = _("the training rows teach the model that it is {name}'s assistant, not that it is {name}", name=name)
    return Finding(wrong, facts, do)


def contradictory_rows(evidence: Evidence) -> Finding | None:
    """Rows that answer one question with two names, or still call the assistant by an old one."""
    if evidence.rows is None or not (evidence.rows.contradictions or evidence.rows.old_names):
        return None
    old, twice = evidence.rows.old_names, evidence.rows.contradictions
    facts = [
        ngettext(
            "{count:,} answer gives the old name {name}",
            "{count:,} answers give the old name {name}",
            tally.count,
            name=name,
        )
        for name, tally in old.items()
    ]
    facts += _examples(old.values())
    facts += [
        ngettext(
            "{count:,} answer gives the name {name} to a question that another answers otherwise",
            "{count:,} answers give the name {name} to questions that others answer otherwise",
            tally.count,
            name=name,
        )
        for name, tally in twice.items()
    ]
    facts += _examples(twice.values())
    counts = Counter({name: tally.count for tallies in (twice, old) for name, tally in tallies.items()})
    other = max(counts, key=counts.get)
    do = _rename(evidence, other, _file_of(evidence, old.get(other) or twice[other]))
    return Finding(_("the training rows contradict each other: some give the name {name}", name=other), facts, do)


def name_seldom_seen(evidence: Evidence) -> Finding | None:
    """The name is lost among other rows, or the whole file is tiny."""
    rows = evidence.rows
    if evidence.is_learned or rows is None or not rows.rows_named or not evidence.epochs or evidence.steps < FEW_STEPS:
        return None
    times, share = rows.times_named * evidence.epochs, rows.rows_named / rows.rows
    if times >= SELDOM_TIMES and share >= SELDOM_SHARE:
        return None
    facts = [
        _("{count:,} of {rows:,} rows give the name ({share:.1%})", count=rows.rows_named, rows=rows.rows, share=share),
        _(
            "the model sees it about {times:,.0f} times (epochs: {epochs:.2g})",
            times=times,
            epochs=evidence.epochs,
        ),
    ]
    wrong = _("the name {name} appears too seldom in training", name=evidence.name)
    return Finding(wrong, facts, _more_rows(evidence))


def one_language(evidence: Evidence) -> Finding | None:
    """Taught in one language and asked in the other."""
    if evidence.rows is None or not evidence.name:
        return None
    shares = {language: evidence.score.get(language) for language in LANGUAGES}
    if None not in shares.values():
        weak, strong = sorted(shares, key=shares.get)
        facts = [
            _(
                "step {step:,}: {share:.0%} of the answers to questions in {language} give the name",
                step=evidence.steps,
                share=share,
                language=LANGUAGES[key],
            )
            for key, share in shares.items()
        ]
        if shares[strong] - shares[weak] < LANGUAGE_GAP:
            return None
    else:
        untaught = {key: texts for key, texts in _questions(evidence).items() if texts and not evidence.rows.named[key]}
        if evidence.is_learned or len(untaught) != 1 or not evidence.rows.rows_named:
            return None
        [(weak, texts)] = untaught.items()
        facts = [
            ngettext(
                "{count:,} question is asked in {language}: {example}",
                "{count:,} questions are asked in {language}, such as {example}",
                len(texts),
                language=LANGUAGES[weak],
                example=quoted(texts[0]),
            )
        ]
    named = evidence.rows.named
    facts.append(
        _(
            "rows that give the name: {chinese:,} in Chinese, {english:,} in English",
            chinese=named["zh"],
            english=named["en"],
        )
    )
    wrong = _("too few training rows give the name in {language}", language=LANGUAGES[weak])
    return Finding(wrong, facts, _more_rows(evidence, weak))


def _questions(evidence: Evidence) -> dict[str, list[str]]:
    """What a run asks, by language."""
    settings = evidence.recipe.run
    questions = list(settings.eval_prompts)
    if settings.identity_name and evidence.run is None:
        questions += [question.text for question in load_questions(settings.score_file).identity]
    return {language: [text for text in questions if language_of(text) == language] for language in LANGUAGES}


def _more_rows(evidence: Evidence, language: str | None = None) -> Text:
    name, only = shell_word(evidence.name or "NAME"), f"--lang {language} " if language else ""
    file = "data/more.jsonl"
    command = f"python -m data_tools generate --name {name} --rows 1500 {only}{file}"
    return _("{command}, and add {file} to train_file", command=command, file=file)


def _rename(evidence: Evidence, old: str, file: TrainFile) -> Text:
    return _replaced(file, f"--old {shell_word(old)} --new {shell_word(evidence.name or 'NAME')}")


def _replaced(file: TrainFile, settings: str) -> Text:
    """The command that replaces texts of a file; what comes out is what to train on."""
    path = Path(file.path)
    out = path.with_name(f"{path.name.partition('.')[0]}.renamed.jsonl")
    paths = f"{shell_word(str(path))} {shell_word(str(out))}"
    command = f"python -m data_tools rename {paths} {settings}"
    return _("{command}, and train on the file that it writes", command=command)


def _examples(tallies: Iterable[Tally]) -> list[Text]:
    examples = dict.fromkeys(example for tally in tallies for example in tally.examples[:SHOWN])
    return [same(f"  {example}") for example in examples]


def _file_of(evidence: Evidence, tally: Tally) -> TrainFile:
    """The file that the first example is in."""
    return next((file for file in evidence.files if f"{file.path}:" in tally.examples[0]), evidence.files[0])
