"""Say what a training file holds, what is wrong with it and what to do next.

In: JSONL of any known format. Out: an account in the terminal and, if asked, as a page of HTML. Changes nothing.
"""

import argparse
import re
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path

from data_tools.histogram import bars, histogram
from sft.core import files
from sft.core.errors import UserError
from sft.core.text import counted

PAGES = Path(__file__).parent / "pages"
# As much of a text as the account shows.
SHOWN_CHARACTERS = 60
# From this share of rows that give a name on, ordinary rows are too few.
MOSTLY_IDENTITY = 0.8
PERCENTILES = (0.5, 0.9, 0.99)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", type=Path, help="JSONL file to look at")
    parser.add_argument("--tokenizer", metavar="DIR", help="model folder or hub id: count tokens as it does")
    parser.add_argument("--max-length", type=int, default=2048, help="count the rows with more tokens (default 2048)")
    parser.add_argument(
        "--was", action="append", default=[], help="an old name to look for; may be given several times"
    )
    parser.add_argument("--html", type=Path, metavar="OUT", help="write the account as a page as well")


def run(arguments: argparse.Namespace) -> int:
    from data_tools.survey import Survey

    survey = Survey(arguments.was, _token_counter(arguments.tokenizer) if arguments.tokenizer else None)
    for number, raw in files.numbered_lines(arguments.file):
        survey.add(number, raw)
    if not survey.rows:
        raise UserError(f"{arguments.file}: holds no row: put one JSON object on each line")
    sections = account(survey, arguments.file, arguments.max_length)
    lengths = histogram(survey.token_lengths or survey.lengths)
    for title, lines in sections.items():
        shown = [*lines, *bars(lengths)] if title == "lengths" else lines
        print(f"{title}\n" + "".join(f"  {line}\n" for line in shown), end="")
    if arguments.html:
        _write_page(arguments.html, arguments.file, survey, sections)
        print(f"page: {arguments.html}")
    return 0


def account(survey, path: Path, max_length: int) -> dict[str, list[str]]:
    """What there is to say, in sections of lines; what was not found is not spoken of."""
    sections = {
        str(path): [*_contents(survey), *_systems(survey)],
        "answers": _answers(survey),
        "lengths": _lengths(survey, max_length),
        "repeats": _repeats(survey),
        "wrong": _wrong(survey),
        "questions people ask about such a file": _three_questions(survey),
        "what to do next": [line for step in _next_steps(survey, path, max_length) for line in step.splitlines()],
    }
    return {title: lines for title, lines in sections.items() if lines}


def _contents(survey) -> list[str]:
    found = ", ".join(f"{form} {count:,}" for form, count in survey.formats.most_common()) or "none known"
    languages = ", ".join(f"{name} {_share(count, survey.rows)}" for name, count in survey.languages.most_common())
    return [
        f"rows           {survey.rows:,} ({survey.bad.count:,} of them bad); turns {survey.turns:,}",
        f"format         {found}",
        f"script         {languages or 'none'} (of the answers)",
    ]


def _systems(survey) -> list[str]:
    if not survey.systems:
        return ["system         none"]
    (text, count), *_ = survey.systems.most_common(1)
    most = f"; {count:,} times {_short(text)}" if count > 1 else ""
    share = _share(survey.system_characters, survey.characters)
    return [
        f"system         in {counted(survey.rows_with_system, 'row')}, {len(survey.systems):,} distinct; {share} of "
        f"all characters{most}"
    ]


def _answers(survey) -> list[str]:
    lines = [
        _line(count, "row calls|rows call", f"the assistant {_short(name)}")
        for name, count in survey.names.most_common(8)
    ]
    unnamed = survey.rows - survey.bad.count - survey.named_rows
    lines += [_line(unnamed, "row gives|rows give", "no name")] if unnamed else []
    return lines


def _lengths(survey, max_length: int) -> list[str]:
    from data_tools.survey import percentile

    lines = []
    for name, values in (("characters", survey.lengths), ("tokens", survey.token_lengths)):
        if values:
            ordered = sorted(values)
            ranks = ", ".join(f"{share:.0%} up to {percentile(ordered, share):,}" for share in PERCENTILES)
            lines.append(f"{name:<14} {sum(ordered):,} in all; a row {ordered[0]:,} to {ordered[-1]:,}; {ranks}")
    if survey.token_lengths:
        over = sum(length > max_length for length in survey.token_lengths)
        lines.append(f"over {max_length:,} tokens: {counted(over, 'row')}")
    return lines


def _repeats(survey) -> list[str]:
    from data_tools.survey import NEAR_ROWS, NEAR_SIMILARITY

    some = f" among the first {NEAR_ROWS:,}" if survey.rows > NEAR_ROWS else ""
    lines = _found(survey.exact, "row stands|rows stand", "there already, word for word")
    lines += _found(survey.near, "row is|rows are", f"{NEAR_SIMILARITY:.0%} or more like an earlier one{some}")
    if survey.nested_characters:
        share = _share(survey.nested_characters, survey.characters)
        lines.append(
            _line(survey.nested, "input is|inputs are", f"no text; as text {share} of all characters, to no use")
        )
    return lines


def _wrong(survey) -> list[str]:
    lines = _found(survey.bad, "row is|rows are", "bad")
    lines += _found(survey.empty_answers, "row has|rows have", "an empty answer, which training refuses")
    lines += _found(survey.control_tokens, "row holds|rows hold", "what many models take for a control token")
    lines += [_line(survey.nested, "row holds|rows hold", "no question of a user")] if survey.nested else []
    lines += [_line(survey.placeholders, "turn says|turns say", "xxx in place of words")] if survey.placeholders else []
    lines += _found(survey.contradictions, "question is|questions are", "answered with another name than before")
    for name, finding in survey.leftovers.items():
        if finding.count:
            lines.append(_line(finding.count, "row|rows", f"still naming {name}; the first is {finding.examples[0]}"))
    for kind, finding in survey.sensitive.items():
        lines += _found(finding, "text has|texts have", f"the shape of: {kind}")
    return lines


def _three_questions(survey) -> list[str]:
    """Why xxx, why is the system there twice, who asked: for files whose inputs are objects."""
    if not survey.nested_characters:
        return []
    each = survey.nested_characters // survey.nested
    return [
        'Why does the inner turn say "xxx"?',
        "  It is a template that nobody filled in. `input` should hold the user's words; here it holds a whole",
        f"  conversation object, with xxx where question and answer belong ({survey.placeholders:,} such turns).",
        "Why is the system message there twice?",
        f"  The object carries a copy of it ({survey.nested_system_copies:,} times). XTuner makes text of an object by",
        f"  str(), so the model reads the copy as the user's words: {each:,} characters a row that teach nothing.",
        "Who asked the question?",
        f"  Nobody: {survey.nested:,} rows hold none. If the answers stand in the order of a list of questions,",
        "  repair gives each its question back.",
    ]


def _next_steps(survey, path: Path, max_length: int) -> Iterator[str]:
    """What to do, as commands; a file that cannot be trained on yet is mended first, and then looked at again."""

    def command(verb: str, suffix: str, *rest: str) -> str:
        out = path.with_name(f"{path.name.partition('.')[0]}.{suffix}.jsonl")
        return f"python -m data_tools {verb} {' '.join(map(_quoted, [str(path), str(out), *rest]))}"

    if survey.bad.count:
        yield f"leave out bad rows:\n    {command('convert', 'good', '--to', 'messages', '--skip-bad', 'bad.jsonl')}"
    if survey.nested:
        yield f"give the questions back:\n    {command('repair', 'repaired', '--questions', 'Q_list.txt')}"
        yield f"or train on just what XTuner did, to compare:\n    {command('repair', 'repaired', '--as', 'repr')}"
    if survey.bad.count or survey.nested:
        yield "then inspect what came out"
        return
    if survey.exact.count:
        yield f"leave out what stands twice:\n    {command('dedup', 'distinct')}"
    if survey.near.count:
        yield f"leave out what is nearly alike, if you wish:\n    {command('dedup', 'distinct', '--near', '0.9')}"
    for old in [name for name, finding in survey.leftovers.items() if finding.count]:
        yield f"replace the old name:\n    {command('rename', 'renamed', '--old', old, '--new', '黄大力')}"
    if survey.contradictions.count and len(survey.names) > 1:
        (kept, _), (other, _), *_ = survey.names.most_common(2)
        yield f"make the names one:\n    {command('rename', 'renamed', '--old', other, '--new', kept)}"
    if survey.sensitive:
        yield "look at what seems private, and take it out"
    if over := sum(length > max_length for length in survey.token_lengths):
        long = counted(over, "row")
        yield f"{long} of more than {max_length:,} tokens: raise max_length in the recipe, or set truncation"
    if survey.named_rows > MOSTLY_IDENTITY * survey.rows:
        (name, _), *_ = survey.names.most_common(1)
        ordinary = f"python -m data_tools generate ordinary.jsonl --name {_quoted(name)} --ordinary 1"
        mix = f"python -m data_tools mix mixed.jsonl {_quoted(str(path))}:1 ordinary.jsonl:1"
        yield f"add ordinary questions, or the model may answer everything with its name:\n    {ordinary}\n    {mix}"
    yield f"train: set train_file: {path} in a copy of recipes/huangdali.yaml"


def _write_page(out: Path, path: Path, survey, sections: dict[str, list[str]]) -> None:
    from sft.core.page import render

    page = render(
        "inspect.html",
        PAGES,
        title=f"{path.name}: what it holds",
        sections=sections,
        bins=histogram(survey.token_lengths or survey.lengths),
        unit="tokens" if survey.token_lengths else "characters",
        systems=survey.systems.most_common(5),
    )
    with files.atomic_write(out, path) as file:
        file.write(page.encode("utf-8"))


def _token_counter(folder: str) -> Callable[[list[dict]], int]:
    """Counts the tokens of a conversation under the model's own chat template; loads torch, as the tokenizer does."""
    from sft.models.loading import load_tokenizer

    tokenizer = load_tokenizer(folder)
    if not tokenizer.chat_template:
        raise UserError(f"{folder}: the tokenizer has no chat template: name a chat model")
    return lambda messages: len(tokenizer.apply_chat_template(messages, tokenize=True, return_dict=True)["input_ids"])


def _line(count: int, who: str, what: str) -> str:
    """How many do something; `who` in the singular and the plural, such as "row is|rows are"."""
    return f"{count:>9,}  {who.split('|')[count != 1]} {what}"


def _found(finding, who: str, what: str) -> list[str]:
    if not finding.count:
        return []
    more = finding.count - len(finding.examples)
    return [
        _line(finding.count, who, what),
        *(f"           {example}" for example in finding.examples),
        *([f"           ... and {more:,} more"] if more else []),
    ]


def _share(part: int, whole: int) -> str:
    return f"{part / whole:.0%}" if whole else "0%"


def _quoted(word: str) -> str:
    """A word as a shell takes it; Chinese needs no quotes."""
    return word if re.fullmatch(r"[\w./:=@%+,-]+", word) else shlex.quote(word)


def _short(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= SHOWN_CHARACTERS else text[:SHOWN_CHARACTERS] + "..."
