"""Say what a training file holds, what is wrong with it and what to do next.

In: JSONL of any known format. Out: a summary in the terminal and, if wanted, as a page of HTML. Changes nothing.
"""

import argparse
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from data_tools import inputs
from sft.core import files
from sft.core.errors import UserError
from sft.core.text import Tally, counted, one_line
from sft.core.verbs import add_output
from sft.data.readers.row_file import RowFile

if TYPE_CHECKING:
    from data_tools.inspecting.survey import Survey

PAGES = Path(__file__).parent / "pages"
# As much of a text as the summary shows.
SHOWN_CHARACTERS = 60
# Ends with this where rows are bad, so that a script can tell; 2 is for mistakes on the command line.
BAD_ROWS = 1
PERCENTILES = (0.5, 0.9, 0.99)
# Characters of the longest bar.
BAR = 40


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what the verb takes."""
    inputs.add_arguments(parser, "file")
    parser.add_argument("--tokenizer", metavar="DIR", help="model folder or hub id: count tokens as it does")
    parser.add_argument("--max-length", type=int, default=2048, help="count the rows with more tokens (default 2048)")
    parser.add_argument(
        "--was", action="append", default=[], help="an old name to look for; may be given several times"
    )
    add_output(parser, "--html", metavar="OUT", help="write the summary as a page as well")


def run(arguments: argparse.Namespace) -> int:
    """Print the summary of the file, and write it as a page if wanted; returns 1 if training would refuse a row."""
    from data_tools.inspecting.next_steps import questions_of
    from data_tools.inspecting.survey import Survey, rows_holding

    file = inputs.row_file(arguments.file, arguments)
    questions = questions_of(arguments.file)
    asked = sum(1 for _ in files.numbered_lines(questions)) if questions else None
    survey = Survey(
        arguments.was, _token_counter(arguments.tokenizer, arguments.file) if arguments.tokenizer else None, asked
    )
    for number, raw in file.lines():
        survey.add(number, raw)
    if not survey.rows:
        raise UserError(f"{arguments.file}: holds no row")
    # Whether a name is one, and no common word, is told by how many rows hold it: the file is read once more.
    holding = rows_holding(survey.contradictions, (raw for _, raw in file.lines()))
    sections = summarise(survey, file, arguments.max_length, holding)
    lengths = histogram(survey.token_lengths or survey.lengths)
    for title, lines in sections.items():
        shown = [*lines, *bars(lengths)] if title == "lengths" else lines
        print(f"{title}\n" + "".join(f"  {line}\n" for line in shown), end="")
    if arguments.html:
        _write_page(arguments.html, arguments.file, survey, sections)
        print(f"page: {arguments.html}")
    return BAD_ROWS if survey.bad.count or survey.nested or survey.empty_answers.count else 0


def summarise(survey: "Survey", file: RowFile, max_length: int, rows_holding: Counter[str]) -> dict[str, list[str]]:
    """The summary in sections of lines; a section without a line is missing."""
    from data_tools.inspecting.next_steps import next_steps

    sections = {
        file.described(): [*_contents(survey), *_systems(survey)],
        "answers": _answers(survey),
        "lengths": _lengths(survey, max_length),
        "repeats": _repeats(survey),
        "wrong": _wrong(survey),
        "what to do next": next_steps(survey, file, max_length, rows_holding),
    }
    return {title: lines for title, lines in sections.items() if lines}


def _contents(survey: "Survey") -> list[str]:
    formats = ", ".join(f"{form} {count:,}" for form, count in survey.formats.most_common()) or "none known"
    languages = ", ".join(f"{name} {_share(count, survey.rows)}" for name, count in survey.languages.most_common())
    unused = [f"{key} ({counted(count, 'row')})" for key, count in survey.unused_keys.most_common()]
    return [
        f"rows           {survey.rows:,} ({survey.bad.count:,} of them bad); turns {survey.turns:,}",
        f"format         {formats}",
        f"script         {languages or 'none'} (of the answers)",
        *([f"columns not used: {', '.join(unused)}"] if unused else []),
    ]


def _systems(survey: "Survey") -> list[str]:
    if not survey.systems:
        return ["system         none"]
    (text, count), *_ = survey.systems.most_common(1)
    most = f"; {count:,} times {one_line(text, SHOWN_CHARACTERS)}" if count > 1 else ""
    share = _share(survey.system_characters, survey.characters)
    return [
        f"system         in {counted(survey.rows_with_system, 'row')}, {len(survey.systems):,} distinct; {share} of "
        f"all characters{most}"
    ]


def _answers(survey: "Survey") -> list[str]:
    lines = [
        _line(count, "row calls|rows call", f"the assistant {one_line(name, SHOWN_CHARACTERS)}")
        for name, count in survey.names.most_common(8)
    ]
    lines += [
        _line(count, "row says|rows say", f"the assistant is {one_line(name, SHOWN_CHARACTERS)}'s assistant")
        for name, count in survey.owners.most_common(8)
    ]
    unnamed = survey.rows - survey.bad.count - survey.named_rows
    lines += [_line(unnamed, "row gives|rows give", "no name")] if unnamed else []
    return lines


def _lengths(survey: "Survey", max_length: int) -> list[str]:
    from data_tools.inspecting.survey import percentile

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


def _repeats(survey: "Survey") -> list[str]:
    from data_tools.inspecting.survey import NEAR_ROWS, NEAR_SIMILARITY

    some = f" among the first {NEAR_ROWS:,}" if survey.rows > NEAR_ROWS else ""
    lines = _tallied(survey.exact, "row stands|rows stand", "there already, word for word")
    lines += _tallied(survey.near, "row is|rows are", f"{NEAR_SIMILARITY:.0%} or more like an earlier one{some}")
    if survey.nested_characters:
        share = _share(survey.nested_characters, survey.characters)
        lines.append(
            _line(survey.nested, "input is|inputs are", f"no text; as text {share} of all characters, to no use")
        )
    return lines


def _wrong(survey: "Survey") -> list[str]:
    lines = []
    for placeholder, finding in sorted(survey.placeholders.items(), key=lambda found: -found[1].count):
        what = f"{placeholder} in place of a name; the first is line {finding.examples[0]}"
        lines.append(_line(finding.count, "text has|texts have", what))
    lines += _tallied(survey.bad, "row is|rows are", "bad")
    lines += _tallied(survey.empty_answers, "row has|rows have", "an empty answer, which training refuses")
    lines += _tallied(survey.control_tokens, "row holds|rows hold", "what many models take for a control token")
    lines += [_line(survey.nested, "row holds|rows hold", "no question of a user")] if survey.nested else []
    inner = survey.nested_placeholders
    lines += [_line(inner, "turn says|turns say", "xxx in place of words")] if inner else []
    for name, count in survey.old_names.most_common(8):
        lines.append(_line(count, "row gives|rows give", f"an old name, that of another model: {name}"))
    contradictions = Tally()
    for finding in survey.contradictions.values():
        contradictions.extend(finding)
    lines += _tallied(contradictions, "question is|questions are", "answered with another name than before")
    for name, finding in survey.leftovers.items():
        if finding.count:
            lines.append(_line(finding.count, "row|rows", f"still naming {name}; the first is {finding.examples[0]}"))
    for kind, finding in survey.sensitive.items():
        lines += _tallied(finding, "text has|texts have", f"the shape of: {kind}")
    return lines


@dataclass
class Bin:
    """Values from `low` to `high`, both included, and the share of the fullest bin that this one holds."""

    low: int
    high: int
    count: int
    share: float


def histogram(values: Sequence[int], bins: int = 12) -> list[Bin]:
    """At most `bins` bins of a width that is 1, 2 or 5 times a power of ten; values that are empty give none."""
    if not values:
        return []
    low, high = min(values), max(values)
    width = next(
        width
        for power in range(12)
        for width in (10**power, 2 * 10**power, 5 * 10**power)
        if high // width - low // width < bins
    )
    counts = Counter(value // width for value in values)
    most = max(counts.values())
    return [
        Bin(index * width, (index + 1) * width - 1, counts[index], counts[index] / most)
        for index in range(low // width, high // width + 1)
    ]


def bars(bins: list[Bin]) -> list[str]:
    """One line a bin: its bounds, a bar, its count; a bin that is not empty shows at least a sliver."""
    wide = max((len(f"{entry.high:,}") for entry in bins), default=0)
    return [
        f"{entry.low:>{wide},} - {entry.high:>{wide},}  {_bar(entry.share):<{BAR}} {entry.count:,}" for entry in bins
    ]


def _bar(share: float) -> str:
    eighths = max(round(share * BAR * 8), 1) if share else 0
    return "█" * (eighths // 8) + " ▏▎▍▌▋▊▉"[eighths % 8].strip()


def _write_page(out: Path, path: Path, survey: "Survey", sections: dict[str, list[str]]) -> None:
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


def _token_counter(folder: str, path: Path) -> Callable[[int, dict], int]:
    """Counts the tokens of a line's row under the model's own chat template; loads torch, as the tokenizer does."""
    from sft.models.model_folder import require_model

    require_model(folder, with_weights=False)
    from sft.models.chat_template import ChatTemplate
    from sft.models.loading import load_tokenizer

    tokenizer = load_tokenizer(folder)
    template = ChatTemplate(tokenizer)

    def count(number: int, row: dict) -> int:
        try:
            (text,) = template.render([row["messages"]], row.get("tools"))
        except UserError as problem:
            raise UserError(f"{path}:{number}: {problem}: name another model, or leave --tokenizer out") from None
        return len(tokenizer(text, add_special_tokens=False)["input_ids"])

    return count


def _line(count: int, who: str, what: str) -> str:
    """How many do something; `who` in the singular and the plural, such as "row is|rows are"."""
    return f"{count:>9,}  {who.split('|')[count != 1]} {what}"


def _tallied(finding: Tally, who: str, what: str) -> list[str]:
    """How many do something, and the first examples, one a line."""
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
