"""Several runs on one page: settings that differ, curves over one another, scores and answers side by side.

In: two or more `Run`s. Out: HTML. Loads no torch.
"""

from collections.abc import Iterator

from markupsafe import Markup

from sft.core.page import render
from sft.reports import report
from sft.reports.charts import Curve, line_chart
from sft.runs.run_files import Run, points

# What differs between any two runs and says nothing.
NEVER_COMPARED = {"output_dir", "run_name", "logging_dir"}
# Of which records, under which key, the chart's title, unit, and the values its axis must reach.
CHARTS = (
    ("log", "loss", "损失 / loss", "nats a token", ()),
    ("held_out", "eval_loss", "留出损失 / held-out loss", "nats a token", ()),
    ("log", "learning_rate", "学习率 / learning rate", "", (0,)),
    ("scores", "identity", "身份 / identity", "of the questions", (0, 1)),
    ("scores", "ordinary_kept", "保留 / ordinary kept", "of the questions", (0, 1)),
    ("scores", "divergence", "偏离 / divergence from the base", "nats a token", (0,)),
    ("scores", "perplexity_ratio", "困惑度之比 / perplexity ratio", "tuned / base", (1,)),
    ("log", "tokens_per_second", "速度 / speed", "tokens/s", (0,)),
)


def comparison_page(runs: list[Run]) -> str:
    """The comparison as HTML."""
    names = run_labels(runs)
    return render(
        "compare.html",
        report.PAGES,
        title=f"{len(runs)} 次训练的比较 / {len(runs)} runs compared",
        runs=list(zip(names, runs, strict=True)),
        states=[report.status_lines(run) for run in runs],
        warnings=[
            f"{name}: {problem}"
            for name, run in zip(names, runs, strict=True)
            for problem in (*report.nan_losses(run), *run.problems)
        ],
        settings=list(differing_settings(runs)),
        charts=comparison_charts(names, runs),
        figures=side_by_side([report.key_figures(run) | _times(run) for run in runs]),
        answers=side_by_side([last_answers(run) for run in runs]),
    )


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


def side_by_side(columns: list[dict]) -> list[tuple[str, list]]:
    """(name, its value in each column or nothing) of everything that any column has, in the order of the first."""
    names = dict.fromkeys(name for column in columns for name in column)
    return [(name, [column.get(name, "") for column in columns]) for name in names]


def last_answers(run: Run) -> dict[str, Markup]:
    """The newest answer to each prompt, escaped, the name marked."""
    return {
        record["prompt"]: report.highlight(record["answer"][: report.ANSWER_CHARACTERS], run.identity_name)
        for record in run.answers
    }


def _times(run: Run) -> dict[str, str]:
    return {label: report.format_duration(seconds) for label, seconds in report.seconds_by_activity(run)}
