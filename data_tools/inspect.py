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
from sft.core.language import Text, _, lines_shown, shown_languages
from sft.core.verbs import add_language, add_output

if TYPE_CHECKING:
    from data_tools.inspecting.summary import Fact, Section
    from data_tools.inspecting.survey import Survey

PAGES = Path(__file__).parent / "pages"
# Ends with this where rows are bad, so that a script can tell; 2 is for mistakes on the command line.
BAD_ROWS = 1
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
    add_language(parser)


def run(arguments: argparse.Namespace) -> int:
    """Print the summary of the file, and write it as a page if wanted; returns 1 if training would refuse a row."""
    from data_tools.inspecting.next_steps import questions_of
    from data_tools.inspecting.summary import summarise
    from data_tools.inspecting.survey import Survey, rows_holding

    file = inputs.row_file(arguments.file, arguments)
    questions = questions_of(arguments.file)
    asked = sum(1 for _line in files.numbered_lines(questions)) if questions else None
    survey = Survey(
        arguments.was, _token_counter(arguments.tokenizer, arguments.file) if arguments.tokenizer else None, asked
    )
    for number, raw in file.lines():
        survey.add(number, raw)
    if not survey.rows:
        raise UserError(f"{arguments.file}: holds no row")
    # Whether a name is one, and no common word, is told by how many rows hold it: the file is read once more.
    holding = rows_holding(survey.contradictions, (raw for _number, raw in file.lines()))
    sections = summarise(survey, file, arguments.max_length, holding)
    lengths = histogram(survey.token_lengths or survey.lengths)
    for section in sections:
        print(section.title)
        for line in [*section_lines(section), *(bars(lengths) if section.has_bars else [])]:
            print(f"  {line}")
    if arguments.html:
        _write_page(arguments.html, arguments.file, survey, sections)
        print(_("page: {path}", path=arguments.html))
    return BAD_ROWS if survey.bad.count or survey.nested or survey.empty_answers.count else 0


def section_lines(section: "Section") -> list[str]:
    """A section as lines of a console: facts language by language, all else in both together."""
    lines = [line for language in shown_languages() for line in _fact_lines(section.facts, language)]
    for observation in section.observations:
        lines += _shown(observation.sentence)
        lines += [f"    {line}" for example in observation.examples for line in _shown(example)]
        if observation.more:
            lines += [f"    {line}" for line in _shown(_("... and {count:,} more", count=observation.more))]
    for step in section.steps:
        lines += [step] if isinstance(step, str) else [f"# {line}" for line in _shown(step)]
    return lines


def _fact_lines(facts: list["Fact"], language: str) -> list[str]:
    """The facts with their values in one column."""
    from rich.cells import cell_len

    shown = [(getattr(fact.label, language), getattr(fact.value, language)) for fact in facts]
    width = max((cell_len(label) for label, _value in shown), default=0) + 2
    return [label + " " * (width - cell_len(label)) + value for label, value in shown]


def _shown(text: Text) -> list[str]:
    """A line for each language, or one where both are the same."""
    return list(dict.fromkeys(lines_shown([text])))


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


def _write_page(out: Path, path: Path, survey: "Survey", sections: list["Section"]) -> None:
    from sft.core.page import render

    page = render(
        "inspect.html",
        PAGES,
        title=_("{file}: what it holds", file=path.name),
        sections=sections,
        bins=histogram(survey.token_lengths or survey.lengths),
        unit=_("tokens") if survey.token_lengths else _("characters"),
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
