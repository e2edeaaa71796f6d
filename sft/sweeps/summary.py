"""Which point of a sweep won and why, in whole sentences: the smallest rank that chance cannot tell from the best.

In: rows with their results. Out: a `Choice`, and a `Text`. Knows nothing about how either is shown.
"""

import math
from dataclasses import dataclass

from sft.core.language import Text, _, joined, listed, ngettext, same
from sft.sweeps.results import Row, compared_by, cost_of, goodness, mean_of


@dataclass(frozen=True)
class Choice:
    """The point that won; the best one, which it may be itself; those within noise of that; what the noise is."""

    winner: Row
    best: Row
    near: list[Row]
    noise: Text


def choose(rows: list[Row]) -> Choice | None:
    """The point of the smallest rank within noise of the best; None where none has finished or learned the name."""
    value = compared_by(rows)
    placed = _placed(rows)
    if not placed or _is_nothing_learned(placed):
        return None
    # Of equally good points the one of the smaller rank, then the cheaper one.
    cost = cost_of(rows)
    best = min(placed, key=lambda row: (-goodness(row, value), row.rank or 0, mean_of(row, cost)))
    noise, why = _noise(best, value)
    near = [row for row in placed if goodness(best, value) - goodness(row, value) <= noise]
    winner = min(near, key=lambda row: (row.rank or 0, -goodness(row, value))) if _has_ranks(rows) else best
    return Choice(winner, best, near, why)


def summary(rows: list[Row]) -> Text:
    """Which point won and why, what the noise is, and which points were not asked every question."""
    choice = choose(rows)
    if not choice:
        return joined([*_without_winner(rows), *_partly_asked(rows)])
    if _has_ranks(rows):
        said = [_won_by_rank(choice, rows), choice.noise, *_what_is_kept(choice)]
    else:
        said = [_won(choice, rows), _equals(choice), choice.noise]
    return joined([*said, *_partly_asked(rows)])


def asked_of(partly: tuple[int, int] | None) -> Text | None:
    """Such as "18 of 32 asked"; None where all were."""
    return _("{asked} of {total} asked", asked=partly[0], total=partly[1]) if partly else None


def share_error(share: float, asked: int) -> float:
    """Standard error of a share of so many questions.

    Two hits and two misses are added, after Agresti and Coull (1998), without which a share of 1 would have none.
    """
    likely = (share * asked + 2) / (asked + 4)
    return math.sqrt(likely * (1 - likely) / (asked + 4))


def _placed(rows: list[Row]) -> list[Row]:
    value = compared_by(rows)
    return [row for row in rows if row.mean(value) is not None]


def _has_ranks(rows: list[Row]) -> bool:
    """Whether the points that can be compared differ in their rank."""
    return len({row.rank for row in _placed(rows)}) > 1


def _is_nothing_learned(placed: list[Row]) -> bool:
    return compared_by(placed) == "identity" and not any(row.mean("identity") for row in placed)


def _without_winner(rows: list[Row]) -> list[Text]:
    placed = _placed(rows)
    if not placed:
        return [_("No point has finished.")]
    owned = max((share for row in placed if (share := row.mean("assistant_of"))), default=0.0)
    said = [_("No point learned the name: the best identity score is 0%.")]
    if owned:
        said.append(_("Up to {share} of the answers only say that the model is its assistant.", share=_percent(owned)))
    return said


def _won_by_rank(choice: Choice, rows: list[Row]) -> Text:
    value, winner, best = compared_by(rows), choice.winner, choice.best
    own, highest = _shown(winner, value), _shown(best, value)
    if value == "identity" and winner is best:
        return _(
            "{point} wins: its identity score, {share}, is the best, and no smaller rank comes within noise of it.",
            point=winner.name,
            share=own,
        )
    if value == "identity":
        return _(
            "{point} wins: with {share} it has the smallest rank within noise of the best identity score, {highest} "
            "by {best}.",
            point=winner.name,
            share=own,
            highest=highest,
            best=best.name,
        )
    if winner is best:
        return _(
            "{point} wins: its final loss, {loss}, is the lowest, and no smaller rank comes within noise of it.",
            point=winner.name,
            loss=own,
        )
    return _(
        "{point} wins: with {loss} it has the smallest rank within noise of the lowest final loss, {lowest} by {best}.",
        point=winner.name,
        loss=own,
        lowest=highest,
        best=best.name,
    )


def _won(choice: Choice, rows: list[Row]) -> Text:
    value, best = compared_by(rows), choice.best
    if value == "identity":
        return _("{point} wins: its identity score, {share}, is the best.", point=best.name, share=_shown(best, value))
    return _("{point} wins: its final loss, {loss}, is the lowest.", point=best.name, loss=_shown(best, value))


def _equals(choice: Choice) -> Text:
    others = [same(row.name) for row in choice.near if row is not choice.best]
    if not others:
        return _("No other point is within noise of it.")
    return _("Within noise of it: {points}.", points=listed(others))


def _what_is_kept(choice: Choice) -> list[Text]:
    """A sentence where another point of the same identity score lets the name into fewer ordinary answers."""
    kept = {row.name: share for row in choice.near if (share := row.mean("ordinary_kept")) is not None}
    name = choice.winner.name
    most = max(kept, key=lambda other: kept[other], default=name)
    if name not in kept or kept[most] <= kept[name]:
        return []
    return [
        _(
            "But {point} keeps the name out of {share} of the ordinary answers, and {other}, within noise too, out of "
            "{most}: take {other} where the rest matters.",
            point=name,
            share=_percent(kept[name]),
            other=most,
            most=_percent(kept[most]),
        )
    ]


def _partly_asked(rows: list[Row]) -> list[Text]:
    """A sentence that names the points whose scoring ended before every question was asked."""
    marked = [
        _("{point} ({asked})", point=row.name, asked=asked) for row in rows if (asked := asked_of(row.partly_asked()))
    ]
    if not marked:
        return []
    return [_("Not every identity question was asked, so these shares are uncertain: {points}.", points=listed(marked))]


def _noise(best: Row, value: str) -> tuple[float, Text]:
    """How far from the best a point may be by chance, and a sentence that says what that is.

    Seeds show how much training varies, but near a share of 1 they hardly can; that so few questions were asked is
    noise as well, and the larger of the two counts.
    """
    spread, is_seeded = best.spread(value) or 0.0, len(best.results) > 1
    asked = int(best.mean("identity_asked") or 0)
    error = share_error(mean_of(best, value), asked) if value == "identity" else 0.0
    if error > spread and is_seeded:
        return error, ngettext(
            "The noise is {noise}, the standard error of a share of {count} question, which is more than the standard "
            "deviation over the seeds.",
            "The noise is {noise}, the standard error of a share of {count} questions, which is more than the standard "
            "deviation over the seeds.",
            asked,
            noise=_percent(error),
        )
    if error > spread:
        return error, ngettext(
            "The noise is {noise}, the standard error of a share of {count} question.",
            "The noise is {noise}, the standard error of a share of {count} questions.",
            asked,
            noise=_percent(error),
        )
    if not is_seeded:
        return 0.0, _("One run a point does not show how much the loss varies by chance; --seeds 3 does.")
    show = _percent if value == "identity" else _plain
    return spread, _("The noise is {noise}, the standard deviation over the best point's seeds.", noise=show(spread))


def _shown(row: Row, value: str) -> str:
    return _percent(mean_of(row, value)) if value == "identity" else _plain(mean_of(row, value))


def _percent(share: float) -> str:
    return f"{share:.1%}".replace(".0%", "%")


def _plain(loss: float) -> str:
    return f"{loss:.4f}"
