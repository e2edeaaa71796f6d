"""What came out of the points of a sweep: means and spreads, how many questions were asked, the efficient points.

In: run directories. Out: `Results` kept in `sweep_point.json`, `Row`s to show. Knows nothing about how a point is run
or a page is drawn.
"""

import json
import math
import statistics
from dataclasses import asdict, dataclass, field
from pathlib import Path

from sft.core.errors import UserError
from sft.runs import run_files
from sft.sweeps.grid import PlannedPoint, Point

RECORD = "sweep_point.json"
LAST_PART = 10  # the last tenth of the logged losses


@dataclass(frozen=True)
class Results:
    """What one run came to; None where a run has no such measure.

    `final_loss` is the mean of the last tenth of the logged losses (at least one), None where one of them is NaN. The
    score is that of the adapter in `final/`: the last one, or with `keep_best` the best checkpoint's.
    `tokens_per_second` counts time inside steps, `minutes` the whole run, what it took before a resumption included.
    """

    final_loss: float | None
    identity: float | None
    identity_asked: int | None
    ordinary_kept: float | None
    divergence: float | None
    perplexity_ratio: float | None
    trainable_parameters: int | None
    adapter_bytes: int
    tokens_per_second: float | None
    peak_memory_gib: float | None
    minutes: float
    assistant_of: float | None = None
    identity_total: int | None = None
    ordinary_asked: int | None = None
    ordinary_total: int | None = None

    def partly_asked(self, kind: str = "identity") -> tuple[int, int] | None:
        """How many of how many questions of a kind were asked; None where all were."""
        return run_files.partly_asked(vars(self), kind)


MEASURES = tuple(Results.__dataclass_fields__)


@dataclass
class Outcome:
    """Where a point stands: waiting, finished, failed or pruned; with results or the problem."""

    status: str = "waiting"
    results: Results | None = None
    problem: str = ""


@dataclass
class Row:
    """A point with all its seeds."""

    number: int
    name: str
    values: Point
    rank: int | None
    outcomes: list[Outcome] = field(default_factory=list)

    @property
    def results(self) -> list[Results]:
        """The results of the seeds that finished."""
        return [outcome.results for outcome in self.outcomes if outcome.results]

    @property
    def status(self) -> str:
        """The status of all seeds, or how many have which."""
        statuses = [outcome.status for outcome in self.outcomes]
        if len(set(statuses)) == 1:
            return statuses[0]
        return ", ".join(f"{statuses.count(status)} {status}" for status in dict.fromkeys(statuses))

    @property
    def problem(self) -> str:
        """What went wrong with the first seed that failed; empty where none did."""
        return next((outcome.problem for outcome in self.outcomes if outcome.problem), "")

    def partly_asked(self, kind: str = "identity") -> tuple[int, int] | None:
        """How many of how many questions of a kind the seed asked the fewest was asked; None where all were."""
        return min(filter(None, (results.partly_asked(kind) for results in self.results)), default=None)

    def mean(self, measure: str) -> float | None:
        """Mean over the seeds that have the measure; None where none has."""
        values = self._values(measure)
        return sum(values) / len(values) if values else None

    def spread(self, measure: str) -> float | None:
        """Standard deviation over the seeds; None with fewer than two."""
        values = self._values(measure)
        return statistics.stdev(values) if len(values) > 1 else None

    def _values(self, measure: str) -> list[float]:
        return [value for results in self.results if (value := getattr(results, measure)) is not None]


def read_results(folder: Path) -> Results:
    """The results of a run that is done, from its files.

    Raises:
        UserError: the folder holds no such run.
    """
    run = run_files.read_run(folder)
    if run.result is None:
        raise UserError(f"{folder}: holds no result of a run: run the point again")
    losses = [loss for _, loss in run_files.points(run.log, "loss")]
    last = losses[-math.ceil(len(losses) / LAST_PART) :] if losses else []
    numbers = [loss for loss in last if loss is not None]
    score = run.result.score or {}
    measures = ["identity", "identity_asked", "identity_total", "assistant_of"]
    measures += ["ordinary_kept", "ordinary_asked", "ordinary_total", "divergence", "perplexity_ratio"]
    return Results(
        final_loss=statistics.fmean(numbers) if numbers and len(numbers) == len(last) else None,
        **{key: score.get(key) for key in measures},
        trainable_parameters=run.result.trainable_parameters,
        adapter_bytes=sum(file.stat().st_size for file in (folder / run_files.FINAL).glob("*.safetensors")),
        tokens_per_second=_tokens_per_second(run.log),
        peak_memory_gib=run.result.peak_memory_gib,
        minutes=round(run.result.seconds / 60, 2),
    )


def write_record(folder: Path, point: PlannedPoint, results: Results) -> None:
    """Write `sweep_point.json`, the last file of a point, which says that it is finished and what it was made from."""
    record = {"point": point.name, "results": asdict(results), "inputs": point.inputs}
    run_files.write_json(folder / RECORD, record)


def read_record(folder: Path, point: PlannedPoint) -> tuple[Results | None, list[str]]:
    """The results of a point that is finished; None and what has changed since where it has to be run again."""
    try:
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        before, results = record["inputs"], Results(**record["results"])
    except (OSError, ValueError, KeyError, TypeError):
        return None, []
    keys = before.keys() | point.inputs.keys()
    changed = sorted(key for key in keys if before.get(key) != point.inputs.get(key))
    return (None if changed else results), changed


def rows_of(points: list[PlannedPoint], outcomes: dict[str, Outcome]) -> list[Row]:
    """One row for each point, its seeds together, in the order of the grid."""
    rows: dict[str, Row] = {}
    for point in points:
        row = rows.setdefault(point.group, Row(len(rows) + 1, point.group, point.values, point.rank))
        row.outcomes.append(outcomes[point.name])
    return list(rows.values())


def compared_by(rows: list[Row]) -> str:
    """The measure that tells good from bad: the identity score, or the final loss where nothing was scored."""
    return "identity" if any(row.mean("identity") is not None for row in rows) else "final_loss"


def cost_of(rows: list[Row]) -> str:
    """What a point costs: trainable parameters, or minutes where all points have equally many."""
    counts = {row.mean("trainable_parameters") for row in rows if row.results}
    return "trainable_parameters" if len(counts) > 1 else "minutes"


def efficient_rows(rows: list[Row]) -> list[Row]:
    """The rows that no other beats: none is as good for less, or better for as much (the Pareto front)."""
    cost, value = cost_of(rows), compared_by(rows)
    placed = [(mean_of(row, cost), goodness(row, value), row) for row in rows if row.mean(value) is not None]
    return [
        row
        for price, good, row in placed
        if not any(p <= price and g >= good and (p, g) != (price, good) for p, g, _ in placed)
    ]


def goodness(row: Row, value: str) -> float:
    """The measure that points are compared by, so that more is better."""
    return mean_of(row, value) if value == "identity" else -mean_of(row, value)


def mean_of(row: Row, measure: str) -> float:
    """The mean of a measure that the row is known to have."""
    mean = row.mean(measure)
    assert mean is not None, (row.name, measure)
    return mean


def _tokens_per_second(log: list[dict]) -> float | None:
    """All tokens over the time of all steps, from the tokens and the rate of each log line."""
    tokens, seconds, before = 0, 0.0, 0
    for record in log:
        new, before = record["tokens"] - before, record["tokens"]
        if record["tokens_per_second"]:
            tokens, seconds = tokens + new, seconds + new / record["tokens_per_second"]
    return round(tokens / seconds, 1) if seconds else None
