"""Shows the points of a sweep: `sweep.csv`, the page `sweep.html`, a table on the console.

In: rows with their results. Out: files and text. Knows nothing about runs or recipes.
"""

import csv
import io
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from rich.table import Table
from rich.text import Text as Plain

from sft.core.files import atomic_write
from sft.core.language import Text, _, lines_shown, listed, same
from sft.core.page import render
from sft.sweeps import results, scatter
from sft.sweeps.grid import text_of
from sft.sweeps.results import MEASURES, Row
from sft.sweeps.summary import Choice, asked_of, choose, summary

PAGES = Path(__file__).parent / "pages"


@dataclass(frozen=True)
class Column:
    """One measure as it is shown: its heading, how its numbers are written, and how it comes about."""

    measure: str
    heading: Text
    show: Callable[[float], str]
    meaning: Text


COLUMNS = (
    Column(
        "final_loss",
        _("final loss"),
        "{:.4f}".format,
        _("The mean of the last tenth of the logged losses."),
    ),
    Column(
        "identity",
        _("identity"),
        "{:.1%}".format,
        _("Share of the identity questions that are answered with the name."),
    ),
    Column(
        "assistant_of",
        _("its assistant"),
        "{:.1%}".format,
        _("Share of the identity questions whose answer only says that the model is the name's assistant."),
    ),
    Column(
        "ordinary_kept",
        _("kept"),
        "{:.1%}".format,
        _("Share of the ordinary questions that are answered without the name."),
    ),
    Column(
        "divergence",
        same("KL"),
        "{:.3f}".format,
        _("How far the next token diverges from the base model's on ordinary texts, in nats."),
    ),
    Column(
        "perplexity_ratio",
        _("perplexity x"),
        "{:.2f}".format,
        _("The perplexity on ordinary texts, as a multiple of the base model's."),
    ),
    Column("trainable_parameters", _("trainable"), "{:,.0f}".format, _("How many parameters are trained.")),
    Column(
        "adapter_bytes",
        same("MB"),
        lambda count: f"{count / 1e6:,.1f}",
        _("The saved weights, in millions of bytes."),
    ),
    Column(
        "tokens_per_second",
        _("tokens/s"),
        "{:,.0f}".format,
        _("Tokens a second, counting the time inside steps only."),
    ),
    Column("peak_memory_gib", same("GiB"), "{:.2f}".format, _("The peak of memory, the GPU's where there is one.")),
    Column(
        "minutes",
        _("minutes"),
        "{:.1f}".format,
        _("The time of the whole run, loading and scoring included."),
    ),
)
# The shares, and the kind of questions that each is of.
SHARES = {"identity": "identity", "assistant_of": "identity", "ordinary_kept": "ordinary"}
STATUSES = {
    "waiting": _("waiting"),
    "finished": _("finished"),
    "failed": _("failed"),
    "pruned": _("pruned"),
}
AXES = {
    "identity": _("identity score"),
    "final_loss": _("final loss (lower is better)"),
    "trainable_parameters": _("trainable parameters"),
    "minutes": _("minutes"),
}
LOGARITHMIC_AXES = {
    "trainable_parameters": _("trainable parameters, logarithmic"),
    "minutes": _("minutes, logarithmic"),
}


def write_tables(folder: Path, title: str, command: str, rows: list[Row]) -> None:
    """Write `sweep.csv` and `sweep.html` anew, each whole."""
    with atomic_write(folder / "sweep.csv") as file:
        file.write(_csv(rows).encode())
    with atomic_write(folder / "sweep.html") as file:
        file.write(_page(title, command, rows).encode())


def console_table(rows: list[Row]) -> Table:
    """The rows for the console; a column without any number is not shown."""
    columns = _filled(rows)
    shown = Table(box=None, pad_edge=False)
    shown.add_column(_heading(_("point")), overflow="fold")
    for column in columns:
        shown.add_column(_heading(column.heading), justify="right", no_wrap=True)
    shown.add_column("")
    for row in rows:
        status = "" if row.status == "finished" else str(_status(row))
        # Plain, so that a name with brackets is not taken for a colour.
        shown.add_row(Plain(row.name), *(_console_cell(row, column) for column in columns), Plain(status))
    return shown


def _heading(text: Text) -> Plain:
    """One line a language, so that both make the column no wider."""
    return Plain("\n".join(dict.fromkeys(lines_shown([text]))))


def _status(row: Row) -> Text:
    """The status of all seeds, or how many have which."""
    counts = Counter(outcome.status for outcome in row.outcomes)
    if len(counts) == 1:
        return STATUSES[row.status]
    return listed(_("{count} {status}", count=count, status=STATUSES[status]) for status, count in counts.items())


def _filled(rows: list[Row]) -> list[Column]:
    """The columns that say something; that no answer names an owner is nothing to show."""

    def says_something(mean: float | None, measure: str) -> bool:
        return bool(mean) if measure == "assistant_of" else mean is not None

    return [
        column for column in COLUMNS if any(says_something(row.mean(column.measure), column.measure) for row in rows)
    ]


def _cell(row: Row, column: Column) -> str:
    mean, spread = row.mean(column.measure), row.spread(column.measure)
    if mean is None:
        return "-"
    return column.show(mean) + (f" ± {column.show(spread)}" if spread else "")


def _partly_asked(row: Row, column: Column) -> tuple[int, int] | None:
    """(asked, in all) questions of a cell that is a share of some of them; None for any other."""
    if column.measure not in SHARES or row.mean(column.measure) is None:
        return None
    return row.partly_asked(SHARES[column.measure])


def _console_cell(row: Row, column: Column) -> str:
    """The cell, with as little beside a share of some questions as a narrow column has room for."""
    cell, partly = _cell(row, column), _partly_asked(row, column)
    return f"{cell} ({partly[0]}/{partly[1]})" if partly else cell


def _csv(rows: list[Row]) -> str:
    """Settings and means in plain numbers; with several seeds, each standard deviation in a column behind its mean."""
    is_seeded = any(len(row.outcomes) > 1 for row in rows)
    written = io.StringIO()
    keys = list(rows[0].values) if rows else []
    names = ["point", *keys, "status", "runs"]
    names += [name for measure in MEASURES for name in (measure, f"{measure}_spread")[: 1 + is_seeded]]
    names.append("problem")
    writer = csv.DictWriter(written, names, lineterminator="\n")
    writer.writeheader()
    for row in rows:
        entry = {"point": row.name, "status": row.status, "runs": len(row.results), "problem": row.problem}
        entry |= {key: text_of(value) for key, value in row.values.items()}
        for measure in MEASURES:
            entry[measure] = _plain(row.mean(measure))
            if is_seeded:
                entry[f"{measure}_spread"] = _plain(row.spread(measure))
        writer.writerow(entry)
    return written.getvalue()


def _page(title: str, command: str, rows: list[Row]) -> str:
    columns = _filled(rows)
    front = {row.number for row in results.efficient_rows(rows)}
    value, cost = results.compared_by(rows), results.cost_of(rows)
    choice = choose(rows)
    chart = _chart(rows, front, cost, value)
    return render(
        "sweep.html",
        PAGES,
        title=title,
        command=command,
        summary=summary(rows),
        columns=columns,
        rows=[(row, _remark(row, choice, front), _cells(row, columns)) for row in rows],
        winner=choice.winner if choice else None,
        chart=chart,
        value=AXES[value],
        cost=LOGARITHMIC_AXES[cost] if chart and chart.is_logarithmic else AXES[cost],
        size=scatter,
        is_scored=value == "identity",
        is_seeded=any(len(row.outcomes) > 1 for row in rows),
        is_partly_asked=any(row.partly_asked() for row in rows),
    )


def _cells(row: Row, columns: list[Column]) -> list[tuple[str, Text | None]]:
    """Each cell, and how many questions were asked where that belongs beside it."""
    return [(_cell(row, column), asked_of(_partly_asked(row, column))) for column in columns]


def _remark(row: Row, choice: Choice | None, front: set[int]) -> Text:
    """What the table says of a row beside its numbers."""
    if row.status != "finished":
        return _status(row)
    if choice and row is choice.winner:
        return _("wins")
    return _("efficient") if row.number in front else same("")


def _chart(rows: list[Row], front: set[int], cost: str, value: str) -> scatter.Scatter | None:
    spots = [
        scatter.Spot(_label(row), price, good, row.spread(value) or 0.0, row.number in front)
        for row in rows
        if (good := row.mean(value)) is not None and (price := row.mean(cost)) is not None
    ]
    return scatter.lay_out(spots, _short, value == "identity") if spots else None


def _label(row: Row) -> str:
    """The row's number, with a star where its share is of some questions only."""
    return f"{row.number}*" if row.partly_asked() else str(row.number)


def _plain(number: float | None) -> str:
    if number is None:
        return ""
    return str(int(number)) if number == int(number) else str(round(number, 6))


def _short(count: float) -> str:
    """A count or a number of minutes in at most three figures."""
    for size, letter in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if count >= size:
            return f"{count / size:.3g}{letter}"
    return f"{count:.3g}"
