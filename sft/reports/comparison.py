"""Several runs on one page: settings that differ, curves over one another, scores and answers side by side.

In: two or more `Run`s. Out: HTML. Loads no torch.
"""

from collections.abc import Iterator
from typing import Any

from markupsafe import Markup

from sft.core.language import Text, _
from sft.core.page import render
from sft.reports import report
from sft.reports.charts import Curve, line_chart
from sft.runs.run_files import Run, number, points
from sft.runs.verdict import verdict_on

# What differs between any two runs and says nothing.
NEVER_COMPARED = {"output_dir", "run_name", "logging_dir"}
# Of which records, under which key, the chart's title, unit, and the values its axis must reach.
CHARTS: tuple[tuple[str, str, Text, str | Text, tuple[int, ...]], ...] = (
    ("scores", "identity", report.IDENTITY, report.OF_QUESTIONS, (0, 1)),
    ("scores", "ordinary_kept", report.ORDINARY, report.OF_QUESTIONS, (0, 1)),
    ("scores", "divergence", report.DIVERGENCE, report.TOKEN, (0,)),
    ("scores", "perplexity_ratio", report.PERPLEXITY, _("tuned / base"), (1,)),
    ("log", "loss", report.LOSS, report.TOKEN, ()),
    ("held_out", "eval_loss", report.HELD_OUT, report.TOKEN, ()),
    ("log", "learning_rate", report.RATE, "", (0,)),
    ("log", "tokens_per_second", report.SPEED, "tokens/s", (0,)),
)


def comparison_page(runs: list[Run]) -> str:
    """The comparison as HTML."""
    names = run_labels(runs)
    return render(
        "compare.html",
        report.PAGES,
        title=_("{count} runs compared", count=len(runs)),
        runs=list(zip(names, runs, strict=True)),
        sentences=conclusion(names, runs),
        verdicts=[verdict_on(run) for run in runs],
        problems=[
            (name, problem)
            for name, run in zip(names, runs, strict=True)
            for problem in (*report.nan_losses(run), *run.problems)
        ],
        settings=list(differing_settings(runs)),
        charts=comparison_charts(names, runs),
        figures=side_by_side([report.key_figures(run) | _times(run) for run in runs]),
        answers=side_by_side([last_answers(run) for run in runs]),
    )


def conclusion(names: list[str], runs: list[Run]) -> list[Text]:
    """Which run learned its name best and, of equals, kept most; or had the lowest loss where no name was to learn."""
    scores = [(name, run.final_score or {}) for name, run in zip(names, runs, strict=True)]
    scored = [(name, score) for name, score in scores if number(score.get("identity")) is not None]
    sentences = []
    if scored:
        best = max(scored, key=lambda entry: _success(entry[1]))[1]
        if best["identity"]:
            winners = ", ".join(name for name, score in scored if _success(score) == _success(best))
            sentences.append(
                _(
                    "The name was learned best in {runs}: {share:.0%} of the identity questions are answered with it.",
                    runs=winners,
                    share=best["identity"],
                )
            )
        else:
            sentences.append(_("No run learned its name."))
        if part := [name for name, score in scored if report.of_how_many(score)]:
            sentences.append(
                _("Not every question was asked in {runs}: those shares are of fewer questions.", runs=", ".join(part))
            )
        return sentences
    losses = [(loss, name) for name, run in zip(names, runs, strict=True) if (loss := _last_loss(run)) is not None]
    if losses:
        loss, name = min(losses)
        sentences.append(_("{run} ended with the lowest training loss: {loss:.4f}.", run=name, loss=loss))
    return sentences


def _success(score: dict) -> tuple[float, float]:
    """Greater for a score that gives the name more often and, of equals, keeps more ordinary answers."""
    return score["identity"], number(score.get("ordinary_kept")) or 0.0


def _last_loss(run: Run) -> float | None:
    return number(run.log[-1]["loss"]) if run.log else None


def run_labels(runs: list[Run]) -> list[str]:
    """The runs' names; their paths where two have the same name."""
    names = [run.name for run in runs]
    return names if len(set(names)) == len(names) else [str(run.folder) for run in runs]


def differing_settings(runs: list[Run]) -> Iterator[tuple[str, list[str]]]:
    """(key, its value in each run) of every setting that is not the same in all.

    A key that nobody set and some run does not know, as with another release of the stack, is no difference.
    """
    resolved = [run.others | run.settings for run in runs]
    for key in dict.fromkeys(key for settings in resolved for key in settings):
        is_comparable = any(key in run.settings for run in runs) or all(key in settings for settings in resolved)
        values = [report.format_value(settings[key]) if key in settings else "" for settings in resolved]
        if is_comparable and len(set(values)) > 1 and key not in NEVER_COMPARED:
            yield key, values


def comparison_charts(names: list[str], runs: list[Run]) -> list[Markup]:
    """One chart a figure, one curve a run; only those that have a point."""
    drawn = []
    for records, key, title, unit, including in CHARTS:
        curves = [Curve(name, points(getattr(run, records), key)) for name, run in zip(names, runs, strict=True)]
        is_share = including == (0, 1)
        drawn.append(line_chart(title, curves, unit=unit, is_share=is_share, including=including))
    return [chart for chart in drawn if chart]


def side_by_side(columns: list[dict]) -> list[tuple[Any, list]]:
    """(name, its value in each column or nothing) of everything that any column has, in the order of the first."""
    names = dict.fromkeys(name for column in columns for name in column)
    return [(name, [column.get(name, "") for column in columns]) for name in names]


def last_answers(run: Run) -> dict[str, Markup]:
    """The newest answer to each prompt, escaped, the name marked."""
    return {
        record["prompt"]: report.highlight(record["answer"][: report.ANSWER_CHARACTERS], run.identity_name)
        for record in run.answers
    }


def _times(run: Run) -> dict[Text, str]:
    return {label: report.format_duration(seconds) for label, seconds in report.seconds_by_activity(run)}
