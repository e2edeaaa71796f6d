"""What came out of the points of a sweep, and what it means: means and spreads, the efficient points, one sentence.

In: run directories. Out: `Results` kept in `sweep_point.json`, `Row`s to show. Knows nothing about how a point is run
or a page is drawn.
"""

import json
import math
import statistics
from collections.abc import Callable
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

    @property
    def asked_in_part(self) -> str:
        """Such as "18 of 32" where not every identity question was answered; else empty."""
        is_part = self.identity_total is not None and self.identity_asked != self.identity_total
        return f"{self.identity_asked} of {self.identity_total}" if is_part else ""


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

    @property
    def asked_in_part(self) -> str:
        """`Results.asked_in_part` of the first seed that has one; else empty."""
        return next((results.asked_in_part for results in self.results if results.asked_in_part), "")

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
    shares = ("identity", "assistant_of", "ordinary_kept", "divergence", "perplexity_ratio")
    measures = (*shares, "identity_asked", "identity_total")
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
    placed = [(_mean(row, cost), _goodness(row, value), row) for row in rows if row.mean(value) is not None]
    return [
        row
        for price, good, row in placed
        if not any(p <= price and g >= good and (p, g) != (price, good) for p, g, _ in placed)
    ]


def summary_sentence(rows: list[Row]) -> str:
    """Which rank is enough: the smallest within noise of the best identity score, and what the noise is.

    And which points were not asked every question: their shares say less than the others'.
    """
    return _comparison(rows) + _asked_in_part(rows)


def _asked_in_part(rows: list[Row]) -> str:
    partial = [f"{row.name} {row.asked_in_part}" for row in rows if row.asked_in_part]
    if not partial:
        return ""
    return f" Not every identity question was answered in score_seconds: {', '.join(partial)}."


def _comparison(rows: list[Row]) -> str:
    value = compared_by(rows)
    placed = [row for row in rows if row.mean(value) is not None]
    if not placed:
        return "No point has finished."
    show = _percent if value == "identity" else _plain
    named = "identity score" if value == "identity" else "final loss"
    # Of equally good points the one of the smaller rank, then the cheaper one.
    cost = cost_of(rows)
    best = min(placed, key=lambda row: (-_goodness(row, value), row.rank or 0, _mean(row, cost)))
    if value == "identity" and not best.mean(value):
        owned = max((share for row in placed if (share := row.mean("assistant_of"))), default=0.0)
        why = f"; up to {_percent(owned)} of the answers say that the model is its assistant" if owned else ""
        return f"No point learned the name: the best identity score is 0%{why}."
    noise, why = _noise(best, value, show)
    near = [row for row in placed if _goodness(best, value) - _goodness(row, value) <= noise]
    if len({row.rank for row in placed}) == 1:
        others = ", ".join(row.name for row in near if row is not best) or "no other"
        return f"Best {named}: {show(_mean(best, value))} by {best.name}; within noise of it: {others}. {why}"
    chosen = min(near, key=lambda row: (row.rank or 0, -_goodness(row, value)))
    smallest = f"Smallest rank within noise of the best {named}: lora_r {chosen.rank}"
    why += _what_is_kept(chosen, near)
    if chosen is best:
        return f"{smallest}, which is the best itself ({best.name}: {show(_mean(best, value))}). {why}"
    own, highest = show(_mean(chosen, value)), show(_mean(best, value))
    return f"{smallest} ({chosen.name}: {own}; the best, {best.name}: {highest}). {why}"


def _what_is_kept(chosen: Row, near: list[Row]) -> str:
    """A sentence where another point of the same identity score lets the name into fewer ordinary answers."""
    kept = {row.name: share for row in near if (share := row.mean("ordinary_kept")) is not None}
    if chosen.name not in kept:
        return ""
    most = max(kept, key=lambda name: kept[name])
    if kept[most] <= kept[chosen.name]:
        return ""
    return (
        f" But {chosen.name} keeps the name out of {_percent(kept[chosen.name])} of the ordinary answers, and {most}, "
        f"within noise too, out of {_percent(kept[most])}: take that where the rest matters."
    )


def _noise(best: Row, value: str, show: Callable[[float], str]) -> tuple[float, str]:
    """How far from the best a point may be by chance, and a sentence that says what that is.

    Seeds tell how much training varies, but near a share of 1 they hardly can; that so few questions were asked is
    noise as well, and the larger of the two counts.
    """
    spread, is_seeded = best.spread(value) or 0.0, len(best.results) > 1
    asked = int(best.mean("identity_asked") or 0)
    error = share_error(_mean(best, value), asked) if value == "identity" else 0.0
    if error > spread:
        more = ", which is more than the spread over the seeds" if is_seeded else ""
        return error, f"The noise is {show(error)}, the standard error of a share of {asked} questions{more}."
    if not is_seeded:
        return 0.0, "One run a point says nothing about noise in the loss; --seeds 3 does."
    return spread, f"The noise is {show(spread)}, the standard deviation over the best point's seeds."


def share_error(share: float, asked: int) -> float:
    """Standard error of a share of so many questions.

    Two hits and two misses are added, after Agresti and Coull (1998), without which a share of 1 would have none.
    """
    likely = (share * asked + 2) / (asked + 4)
    return math.sqrt(likely * (1 - likely) / (asked + 4))


def _goodness(row: Row, value: str) -> float:
    return _mean(row, value) if value == "identity" else -_mean(row, value)


def _mean(row: Row, measure: str) -> float:
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


def _percent(share: float) -> str:
    return f"{share:.1%}".replace(".0%", "%")


def _plain(loss: float) -> str:
    return f"{loss:.4f}"
