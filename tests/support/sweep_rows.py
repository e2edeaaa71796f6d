"""Rows of a sweep, made of the results that a test names."""

from sft.sweeps.results import Outcome, Results, Row


def results(**known) -> Results:
    """Results of which nothing but these is known."""
    nothing = dict.fromkeys(Results.__dataclass_fields__) | {"adapter_bytes": 0, "minutes": 1.0}
    return Results(**nothing | known)


def row(
    number: int, rank: int | None, *runs: dict, name: str | None = None, outcomes: list[Outcome] | None = None
) -> Row:
    """A row with one finished run for each mapping, or of these outcomes; a rank costs a thousand parameters."""
    cost = {"trainable_parameters": rank * 1000} if rank else {}
    finished = [Outcome("finished", results(**cost | run)) for run in runs]
    return Row(number, name or f"lora_r={rank}", {}, rank, outcomes or finished)


def scored(*ranks_and_shares: tuple[int, float], asked: int = 32) -> list[Row]:
    """Rows of these ranks and identity scores."""
    return [
        row(number, rank, {"identity": share, "identity_asked": asked})
        for number, (rank, share) in enumerate(ranks_and_shares, start=1)
    ]
