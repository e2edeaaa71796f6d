"""The state of a sweep: which points wait, finished, failed or were pruned; reported as it changes, kept on disk.

In: planned points and the runs that are over. Out: records beside the runs, `sweep.csv`, `sweep.html`, lines on the
console. Knows nothing about how runs are started.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sft.core.console import console, say
from sft.core.errors import UserError
from sft.core.files import exclusive_lock
from sft.core.language import _, lines_shown
from sft.runs.run_files import read_run
from sft.sweeps import page, results
from sft.sweeps.grid import PlannedPoint
from sft.sweeps.results import Outcome, Results, Row
from sft.sweeps.runner import PointRun
from sft.sweeps.summary import summary

# Columns that the table may take where the console has fewer.
WIDEST = 1000


class Sweep:
    """All points of a sweep in one folder; what finished in an earlier sweep and has not changed is finished here."""

    def __init__(self, folder: Path, points: list[PlannedPoint], command: str, shows_waiting: bool):
        self.folder, self.points, self.command, self._shows_waiting = folder, points, command, shows_waiting
        self.outcomes: dict[str, Outcome] = {}
        for point in points:
            record, changed = results.read_record(folder / point.name, point)
            self.outcomes[point.name] = Outcome("finished", record) if record else Outcome()
            if record:
                say(f"{point.name}: finished before; not repeated")
            elif changed:
                say(f"{point.name}: runs again, since this changed: {', '.join(changed)}")

    @property
    def has_failures(self) -> bool:
        """Whether any point has failed."""
        return any(outcome.status == "failed" for outcome in self.outcomes.values())

    def final_score(self, point: PlannedPoint) -> dict | None:
        """The line of `scores.jsonl` that a finished point ends with; None of any other."""
        if self.outcomes[point.name].status != "finished":
            return None
        return read_run(self.folder / point.name).final_score

    def keep(self, run: PointRun) -> None:
        """Record and report how a run ended, and bring `sweep.csv` and `sweep.html` up to date."""
        point = run.point
        if run.has_succeeded:
            record = results.read_results(run.folder)
            results.write_record(run.folder, point, record)
            self.outcomes[point.name] = Outcome("finished", record)
            say(f"{point.name}: {_line(record)}")
        elif run.was_ended:
            self.outcomes[point.name] = Outcome("pruned")
            say(f"{point.name}: given up after {run.seconds / 60:.1f} minutes: it did worse than others had by then")
        else:
            problem = run.error()
            self.outcomes[point.name] = Outcome("failed", problem=problem)
            say(f"{point.name}: failed: {problem} (all it said: {run.log})", style="red")
        self.report()

    def report(self) -> None:
        """Write `sweep.csv` and `sweep.html`."""
        page.write_tables(self.folder, self.folder.name, self.command, self._rows())

    def show(self) -> None:
        """Print the table, which point won and why, and where all results are."""
        rows = self._rows()
        table = page.console_table(rows)
        # A terminal may be narrower than the table; it then breaks lines where rich would cut numbers.
        needed = console.measure(table, options=console.options.update(width=WIDEST)).maximum
        width = max(console.width, needed)
        console.print(table, width=width, soft_wrap=False, crop=False)
        hint = _("{folder}/sweep.html and sweep.csv hold all results", folder=self.folder)
        for line in lines_shown([summary(rows), hint]):
            say(line)

    def _rows(self) -> list[Row]:
        shown = [point for point in self.points if self._shows_waiting or self.outcomes[point.name].status != "waiting"]
        return results.rows_of(shown, self.outcomes)


class InOrder:
    """Every point that is waiting, in the order of the grid, each to its end."""

    def __init__(self, sweep: Sweep):
        self._waiting = iter([point for point in sweep.points if sweep.outcomes[point.name].status == "waiting"])

    def next_point(self) -> PlannedPoint | None:
        """The next point that waits; None when all were started."""
        return next(self._waiting, None)

    def is_hopeless(self, run: PointRun) -> bool:
        """Never: every run is to reach its end."""
        return False

    def tell(self, run: PointRun) -> None:
        """Nothing depends on what came of a point."""


@contextmanager
def lock_folder(folder: Path) -> Iterator[int]:
    """Make the folder and keep every other sweep out of it; yields the lock's file descriptor for runs to inherit.

    Raises:
        UserError: another sweep, or a run of one that was killed, is at work in it; or it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = exclusive_lock(folder / ".lock")
    except OSError as problem:
        raise UserError(f"{folder}: {problem.strerror}: start the sweep where you may write") from None
    if file is None:
        raise UserError(f"{folder}: another sweep is at work here, or a run that it left: wait, or end it")
    with file:
        yield file.fileno()


def _line(results: Results) -> str:
    """What a point came to, as one line."""
    partly = results.partly_asked()
    asked = f"{partly[0]} of {partly[1]} asked" if partly else results.identity_asked
    parts = [] if results.identity is None else [f"identity {results.identity:.0%} of {asked}"]
    if results.assistant_of:
        parts.append(f"only the name's assistant {results.assistant_of:.0%}")
    parts.append("loss is NaN" if results.final_loss is None else f"loss {results.final_loss:.4f}")
    return ", ".join([*parts, f"{results.minutes:.1f} minutes"])
