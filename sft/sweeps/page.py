"""Shows the points of a sweep: `sweep.csv`, the page `sweep.html`, a table on the console.

In: rows with their results. Out: files and text. Knows nothing about runs or recipes.
"""

import csv
import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from rich.table import Table
from rich.text import Text

from sft.core.files import atomic_write
from sft.core.page import render
from sft.sweeps import results, scatter
from sft.sweeps.grid import text_of
from sft.sweeps.results import MEASURES, Row

PAGES = Path(__file__).parent / "pages"


@dataclass(frozen=True)
class Column:
    """One measure as it is shown: its heading and how its numbers are written."""

    measure: str
    heading: str
    show: Callable[[float], str]


COLUMNS = (
    Column("final_loss", "final loss", "{:.4f}".format),
    Column("identity", "identity", "{:.1%}".format),
    Column("assistant_of", "its assistant", "{:.1%}".format),
    Column("ordinary_kept", "kept", "{:.1%}".format),
    Column("divergence", "KL", "{:.3f}".format),
    Column("perplexity_ratio", "perplexity x", "{:.2f}".format),
    Column("trainable_parameters", "trainable", "{:,.0f}".format),
    Column("adapter_bytes", "MB", lambda count: f"{count / 1e6:,.1f}"),
    Column("tokens_per_second", "tokens/s", "{:,.0f}".format),
    Column("peak_memory_gib", "GiB", "{:.2f}".format),
    Column("minutes", "minutes", "{:.1f}".format),
)
AXES = {
    "identity": "identity score",
    "final_loss": "final loss (lower is better)",
    "trainable_parameters": "trainable parameters",
    "minutes": "minutes",
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
    shown.add_column("point")
    for column in columns:
        shown.add_column(column.heading, justify="right", no_wrap=True)
    shown.add_column("")
    for row in rows:
        status = "" if row.status == "finished" else row.status
        # Text, so that a name with brackets is not taken for a colour.
        shown.add_row(Text(row.name), *(_cell(row, column) for column in columns), Text(status))
    return shown


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
    part = f" ({row.asked_in_part})" if column.measure == "identity" and row.asked_in_part else ""
    return column.show(mean) + (f" ± {column.show(spread)}" if spread else "") + part


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
    return render(
        "sweep.html",
        PAGES,
        title=title,
        command=command,
        sentence=results.summary_sentence(rows),
        columns=columns,
        rows=[(row, [_cell(row, column) for column in columns]) for row in rows],
        front=front,
        chart=_chart(rows, front, cost, value),
        value=AXES[value],
        cost=AXES[cost],
        size=scatter,
        is_scored=value == "identity",
        is_seeded=any(len(row.outcomes) > 1 for row in rows),
    )


def _chart(rows: list[Row], front: set[int], cost: str, value: str) -> scatter.Scatter | None:
    spots = [
        scatter.Spot(str(row.number), price, good, row.spread(value) or 0.0, row.number in front)
        for row in rows
        if (good := row.mean(value)) is not None and (price := row.mean(cost)) is not None
    ]
    return scatter.lay_out(spots, _short, value == "identity") if spots else None


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
