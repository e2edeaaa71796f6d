"""What a survey of a file comes to, as sections of facts and findings in whole sentences.

In: a `Survey`. Out: `Section`s for a console or a page. Knows nothing about how either shows them.
"""

import re
from collections import Counter
from dataclasses import dataclass, field
from functools import partial

from data_tools.inspecting.next_steps import Step, next_steps
from data_tools.inspecting.survey import NEAR_ROWS, NEAR_SIMILARITY, Survey, percentile
from sft.core.language import CHINESE, ENGLISH, Text, _, listed, ngettext, same
from sft.core.text import Tally, one_line
from sft.data.readers.row_file import RowFile

# As much of a text as the summary shows, and so many names.
SHOWN_CHARACTERS = 60
SHOWN_NAMES = 8
SCRIPTS = {
    "Chinese": _("Chinese"),
    "Japanese": _("Japanese"),
    "Korean": _("Korean"),
    "Cyrillic": _("Cyrillic"),
    "Arabic": _("Arabic"),
    "Latin": _("Latin"),
    "no letters": _("no letters"),
}
PRIVATE = {
    "API key": _("API key"),
    "private key": _("private key"),
    "identity number": _("identity number"),
    "phone number": _("phone number"),
    "e-mail address": _("e-mail address"),
}
_PLACE = re.compile(r" \(line (\d+)\)")


@dataclass(frozen=True)
class Fact:
    """One measure of the file."""

    label: Text
    value: Text


@dataclass(frozen=True)
class Observation:
    """How many rows or texts are so, the first of them, and how many more there are."""

    sentence: Text
    examples: list[Text] = field(default_factory=list)
    more: int = 0


@dataclass
class Section:
    """A part of the summary; `steps` are the chain of what to do next, and `has_bars` is where lengths are drawn."""

    title: Text
    facts: list[Fact] = field(default_factory=list)
    observations: list[Observation] = field(default_factory=list)
    steps: list[Step] = field(default_factory=list)
    has_bars: bool = False


def summarise(survey: Survey, file: RowFile, max_length: int, rows_holding: Counter[str]) -> list[Section]:
    """The sections that say anything, in the order they are read."""
    sections = [
        Section(same(file.described()), facts=[*_contents(survey), *_systems(survey)]),
        Section(_("answers"), observations=_answers(survey)),
        Section(_("lengths"), facts=_lengths(survey, max_length), has_bars=True),
        Section(_("repeats"), observations=_repeats(survey)),
        Section(_("wrong"), observations=_wrong(survey)),
        Section(_("what to do next"), steps=next_steps(survey, file, max_length, rows_holding)),
    ]
    return [section for section in sections if section.facts or section.observations or section.steps]


def _contents(survey: Survey) -> list[Fact]:
    formats = ", ".join(f"{form} {count:,}" for form, count in survey.formats.most_common())
    scripts = [
        _("{script} {share}", script=SCRIPTS[name], share=_share(count, survey.rows))
        for name, count in survey.languages.most_common()
    ]
    unused = [
        ngettext("{key} ({count:,} row)", "{key} ({count:,} rows)", count, key=key)
        for key, count in survey.unused_keys.most_common()
    ]
    return [
        Fact(_("rows"), _("{rows:,} ({bad:,} of them bad)", rows=survey.rows, bad=survey.bad.count)),
        Fact(_("turns"), same(f"{survey.turns:,}")),
        Fact(_("format"), same(formats) if formats else _("none known")),
        Fact(_("script of answers"), listed(scripts) if scripts else _("none")),
        *([Fact(_("columns not used"), listed(unused))] if unused else []),
    ]


def _systems(survey: Survey) -> list[Fact]:
    label = _("system message")
    if not survey.systems:
        return [Fact(label, _("none"))]
    value = ngettext(
        "in {count:,} row, {distinct:,} distinct; {share} of all characters",
        "in {count:,} rows, {distinct:,} distinct; {share} of all characters",
        survey.rows_with_system,
        distinct=len(survey.systems),
        share=_share(survey.system_characters, survey.characters),
    )
    text, count = survey.systems.most_common(1)[0]
    often = Fact(_("most frequent"), _("{count:,} times: {text}", count=count, text=one_line(text, SHOWN_CHARACTERS)))
    return [Fact(label, value), *([often] if count > 1 else [])]


def _answers(survey: Survey) -> list[Observation]:
    said = [
        ngettext(
            "{count:,} row calls the assistant {name}",
            "{count:,} rows call the assistant {name}",
            count,
            name=one_line(name, SHOWN_CHARACTERS),
        )
        for name, count in survey.names.most_common(SHOWN_NAMES)
    ]
    said += [
        ngettext(
            "{count:,} row says the assistant is {name}'s assistant",
            "{count:,} rows say the assistant is {name}'s assistant",
            count,
            name=one_line(name, SHOWN_CHARACTERS),
        )
        for name, count in survey.owners.most_common(SHOWN_NAMES)
    ]
    if unnamed := survey.rows - survey.bad.count - survey.named_rows:
        said.append(ngettext("{count:,} row gives no name", "{count:,} rows give no name", unnamed))
    return [Observation(sentence) for sentence in said]


def _lengths(survey: Survey, max_length: int) -> list[Fact]:
    facts = [
        Fact(label, _spread(sorted(values)))
        for label, values in ((_("characters"), survey.lengths), (_("tokens"), survey.token_lengths))
        if values
    ]
    if survey.token_lengths:
        over = sum(length > max_length for length in survey.token_lengths)
        label = _("over {length:,} tokens", length=max_length)
        facts.append(Fact(label, ngettext("{count:,} row", "{count:,} rows", over)))
    return facts


def _spread(ordered: list[int]) -> Text:
    return _(
        "{total:,} in all; a row {low:,} to {high:,}; 50% up to {half:,}, 90% up to {most:,}, 99% up to {nearly_all:,}",
        total=sum(ordered),
        low=ordered[0],
        high=ordered[-1],
        half=percentile(ordered, 0.5),
        most=percentile(ordered, 0.9),
        nearly_all=percentile(ordered, 0.99),
    )


def _repeats(survey: Survey) -> list[Observation]:
    exact, near, share = survey.exact, survey.near, f"{NEAR_SIMILARITY:.0%}"
    found = [
        *_tallied(
            exact,
            ngettext(
                "{count:,} row stands there already, word for word",
                "{count:,} rows stand there already, word for word",
                exact.count,
            ),
            [_("line {line:,} is line {first:,} again", line=line, first=first) for line, first in exact.examples],
        )
    ]
    if survey.rows > NEAR_ROWS:
        sentence = ngettext(
            "{count:,} row is {share} or more like an earlier one among the first {rows:,}",
            "{count:,} rows are {share} or more like an earlier one among the first {rows:,}",
            near.count,
            share=share,
            rows=NEAR_ROWS,
        )
    else:
        sentence = ngettext(
            "{count:,} row is {share} or more like an earlier one",
            "{count:,} rows are {share} or more like an earlier one",
            near.count,
            share=share,
        )
    found += _tallied(
        near,
        sentence,
        [_("line {line:,} is nearly line {first:,}", line=line, first=first) for line, first in near.examples],
    )
    if survey.nested_characters:
        sentence = ngettext(
            "{count:,} input is no text; as text it is {share} of all characters, to no use",
            "{count:,} inputs are no text; as text they are {share} of all characters, to no use",
            survey.nested,
            share=_share(survey.nested_characters, survey.characters),
        )
        found.append(Observation(sentence))
    return found


def _wrong(survey: Survey) -> list[Observation]:
    """The findings that spoil a model, those about names after what nobody can train on."""
    return [*_placeholders(survey), *_unreadable(survey), *_contradicting(survey), *_private(survey)]


def _placeholders(survey: Survey) -> list[Observation]:
    return [
        Observation(
            ngettext(
                "{count:,} text has {placeholder} in place of a name; the first is line {line}",
                "{count:,} texts have {placeholder} in place of a name; the first is line {line}",
                finding.count,
                placeholder=placeholder,
                line=finding.examples[0],
            )
        )
        for placeholder, finding in sorted(survey.placeholders.items(), key=lambda found: -found[1].count)
    ]


def _unreadable(survey: Survey) -> list[Observation]:
    bad, empty, control = survey.bad, survey.empty_answers, survey.control_tokens
    found = [
        *_tallied(bad, ngettext("{count:,} row is bad", "{count:,} rows are bad", bad.count), _at_lines(bad)),
        *_tallied(
            empty,
            ngettext(
                "{count:,} row has an empty answer, which training refuses",
                "{count:,} rows have an empty answer, which training refuses",
                empty.count,
            ),
            [_("line {line:,}", line=line) for line in empty.examples],
        ),
        *_tallied(
            control,
            ngettext(
                "{count:,} row holds what many models take for a control token",
                "{count:,} rows hold what many models take for a control token",
                control.count,
            ),
            _at_lines(control),
        ),
    ]
    if survey.nested:
        sentence = ngettext(
            "{count:,} row holds no question of a user", "{count:,} rows hold no question of a user", survey.nested
        )
        found.append(Observation(sentence))
    if inner := survey.nested_placeholders:
        sentence = ngettext(
            "{count:,} turn says xxx in place of words", "{count:,} turns say xxx in place of words", inner
        )
        found.append(Observation(sentence))
    return found


def _contradicting(survey: Survey) -> list[Observation]:
    found = [
        Observation(
            ngettext(
                "{count:,} row gives an old name, that of another model: {name}",
                "{count:,} rows give an old name, that of another model: {name}",
                count,
                name=name,
            )
        )
        for name, count in survey.old_names.most_common(SHOWN_NAMES)
    ]
    contradictions: Tally = Tally()
    for finding in survey.contradictions.values():
        contradictions.extend(finding)
    found += _tallied(
        contradictions,
        ngettext(
            "{count:,} question is answered with another name than before",
            "{count:,} questions are answered with another name than before",
            contradictions.count,
        ),
        list(map(_with_places, contradictions.examples)),
    )
    found += [
        Observation(
            ngettext(
                "{count:,} row still names {name}; the first is line {line:,}",
                "{count:,} rows still name {name}; the first is line {line:,}",
                finding.count,
                name=name,
                line=finding.examples[0],
            )
        )
        for name, finding in survey.leftovers.items()
        if finding.count
    ]
    return found


def _private(survey: Survey) -> list[Observation]:
    found: list[Observation] = []
    for kind, finding in survey.sensitive.items():
        sentence = ngettext(
            "{count:,} text has the shape of: {kind}",
            "{count:,} texts have the shape of: {kind}",
            finding.count,
            kind=PRIVATE[kind],
        )
        found += _tallied(finding, sentence, _at_lines(finding))
    return found


def _tallied(finding: Tally, sentence: Text, examples: list[Text]) -> list[Observation]:
    if not finding.count:
        return []
    return [Observation(sentence, examples, finding.count - len(examples))]


def _at_lines(finding: Tally[tuple[int, str]]) -> list[Text]:
    return [_("line {line:,}: {what}", line=line, what=what) for line, what in finding.examples]


def _with_places(example: str) -> Text:
    """Which names a question was answered with, each followed by "(line N)"."""

    def place(found: re.Match, language: str) -> str:
        return getattr(_(" (line {line})", line=found[1]), language)

    return Text(*(_PLACE.sub(partial(place, language=language), example) for language in (ENGLISH, CHINESE)))


def _share(part: int, whole: int) -> str:
    return f"{part / whole:.0%}" if whole else "0%"
