"""The report of a run: one page that opens offline, made from the run directory's files alone.

In: a `Run`. Out: HTML. Loads no torch, so that it can be made again anywhere.
"""

import json
import re
import shlex
import statistics
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

from markupsafe import Markup, escape

from sft.core.files import atomic_write
from sft.core.page import render
from sft.reports.charts import Curve, Mark, line_chart
from sft.runs.run_files import Run, number, points, read_run

PAGES = Path(__file__).parent / "pages"
REPORT = "report.html"
# An answer is shown up to so many characters, all answers together up to so many; eval_chat.jsonl has them whole.
ANSWER_CHARACTERS, ALL_CHARACTERS, FEWEST_CHARACTERS = 600, 300_000, 80
TIMES = {
    "training": "训练 / training",
    "evaluation": "评测 / evaluation: asking and scoring",
    "saving": "保存 / saving",
    "data": "数据准备 / data preparation",
    "other": "其他 / other: starting, loading the model",
}
CARD = {
    "rows": "rows",
    "samples": "samples",
    "samples_over_max_length": "samples over max_length",
    "samples_dropped": "samples dropped",
    "tokens": "tokens",
    "supervised_tokens": "supervised tokens",
    "longest_sample": "longest sample, tokens",
    "tokens_lost": "tokens lost",
    "supervised_tokens_lost": "supervised tokens lost",
    "truncation": "truncation",
    "packing": "packing",
    "packs": "packs",
    "pack_fill": "pack fill",
    "padding_share": "padding",
    "steps_per_epoch": "steps an epoch",
    "total_steps": "steps in all",
}


def write_report(folder: Path) -> Path:
    """Write `report.html` into a run directory, whole; returns its path.

    Raises:
        UserError: the folder is no run directory, or cannot be written.
    """
    path = folder / REPORT
    write_page(path, report_page(read_run(folder)))
    return path


def write_page(path: Path, html: str, *sources: Path) -> None:
    """Write a page whole or not at all; `sources`, what it was made from, are never written over."""
    with atomic_write(path, *sources) as file:
        # A lone surrogate, which JSON can hold and UTF-8 cannot, becomes a question mark.
        file.write(html.encode("utf-8", "replace"))


def report_page(run: Run) -> str:
    """The report as HTML."""
    differing, alike = split_settings(run)
    return render(
        "report.html",
        PAGES,
        title=f"{run.name}: 训练报告 / run report",
        run=run,
        state=status_lines(run),
        warnings=[*nan_losses(run), *run.problems],
        figures=key_figures(run),
        differing=differing,
        alike=alike,
        charts=training_charts(run),
        score_charts=score_charts(run),
        prompts=answers_by_prompt(run),
        scored=last_scored_answers(run),
        times=time_shares(run),
        card=[(label, format_value(run.card[key], key)) for key, label in CARD.items() if key in run.card],
        environment=list(environment_facts(run)),
        commands=next_commands(run),
    )


def status_lines(run: Run) -> list[str]:
    """How far the run came, how it ended, and which checkpoint it kept."""
    place = f"step {run.last_step:,} of {run.max_steps:,}"
    if run.result and not run.result.is_done:
        reason = f": {run.result.message}" if run.result.message else "."
        lines = [f"Ended as {run.result.status} (exit code {run.result.exit_code}) at {place}{reason}"]
    elif not run.has_final:
        lines = [f"At {place}; there is no final/ yet: the run is still running, or was killed."]
    elif run.stopped_early:
        lines = [f"Stopped early at {place}: {run.stopped_early}."]
    else:
        lines = [f"Ended at {place}."]
    if run.best_step is not None:
        holds = "final/ holds" if run.has_final else "final/ will hold"
        lines.append(f"Best checkpoint: step {run.best_step:,} (keep_best: {run.settings['keep_best']}); {holds} it.")
    return lines


def nan_losses(run: Run) -> list[str]:
    """A sentence where the training loss was NaN or infinite."""
    steps = [step for step, loss in points(run.log, "loss") if loss is None]
    return [f"the loss was NaN or infinite at {len(steps):,} logged steps, first at step {steps[0]:,}"] if steps else []


def key_figures(run: Run) -> dict[str, str]:
    """What one wants to know first, as text by name, as far as the run has it."""
    last_log, score = (records[-1] if records else {} for records in (run.log, run.scores))
    total = number(run.time.get("total"))
    figures = {
        "step": f"{run.last_step:,} / {run.max_steps:,}",
        "loss": _plain(last_log.get("loss"), ".4f"),
        "held-out loss": _plain((run.held_out or [{}])[-1].get("eval_loss"), ".4f"),
        "identity": _plain(score.get("identity"), ".0%"),
        "only its assistant": _plain(score.get("assistant_of") or None, ".0%"),
        "an old name": _plain(score.get("old_name"), ".0%"),
        "ordinary kept": _plain(score.get("ordinary_kept"), ".0%"),
        "divergence, nats": _plain(score.get("divergence"), ".3f"),
        "perplexity ratio": _plain(score.get("perplexity_ratio"), ".3f"),
        "tokens trained": _plain(last_log.get("tokens"), ",.0f"),
        "tokens/s, median": _plain(_median(run, "tokens_per_second"), ",.0f"),
        "peak memory, GiB": _plain(last_log.get("peak_memory_gib"), ".1f"),
        "time in all": None if total is None else format_duration(total),
    }
    return {name: text for name, text in figures.items() if text is not None}


def split_settings(run: Run) -> tuple[list[tuple], list[tuple]]:
    """(key, value, the stack's own value) of what a person set otherwise than the stack has it; and all the rest."""
    differing, alike = [], []
    for key, value in run.settings.items():
        if key not in run.stack_defaults:
            differing.append((key, format_value(value), ""))
        elif value != run.stack_defaults[key]:
            differing.append((key, format_value(value), format_value(run.stack_defaults[key])))
        else:
            alike.append((key, format_value(value)))
    return differing, alike + [(key, format_value(value)) for key, value in run.others.items()]


def step_marks(run: Run) -> tuple[Mark, ...]:
    """Where the run was evaluated, and which step was best."""
    best = [run.best_step] if run.best_step is not None else []
    return Mark("evaluation", run.evaluated_steps), Mark("best checkpoint", best, is_high=True)


def training_charts(run: Run) -> list[Markup]:
    """Loss, learning rate, speed and memory; only those that have a point."""
    loss = [Curve("training", points(run.log, "loss")), Curve("held out", points(run.held_out, "eval_loss"))]
    drawn = [
        line_chart("损失 / loss", loss, unit="nats a token", marks=step_marks(run)),
        line_chart("学习率 / learning rate", [_curve(run, "learning_rate")], including=(0,), marks=step_marks(run)),
        line_chart("速度 / speed", [_curve(run, "tokens_per_second")], unit="tokens/s", including=(0,)),
        line_chart("内存峰值 / peak memory", [_curve(run, "peak_memory_gib")], unit="GiB", including=(0,)),
    ]
    return [chart for chart in drawn if chart]


def score_charts(run: Run) -> list[Markup]:
    """Identity and retention over steps; only those that have a point."""
    shares = {
        "identity": "gives the name",
        "assistant_of": "says only whose assistant it is",
        "old_name": "gives an old name",
        "ordinary_kept": "keeps ordinary answers",
    }
    if not any(share for _, share in points(run.scores, "assistant_of")):
        del shares["assistant_of"]
    curves = [Curve(label, points(run.scores, key)) for key, label in shares.items()]
    divergence, ratio = ([Curve(key, points(run.scores, key))] for key in ("divergence", "perplexity_ratio"))
    _, best = step_marks(run)
    drawn = [
        line_chart("身份 / identity", curves, unit="of the questions", is_share=True, including=(0, 1), marks=(best,)),
        line_chart("偏离 / divergence from the base", divergence, unit="nats a token", including=(0,), marks=(best,)),
        line_chart("困惑度之比 / perplexity ratio", ratio, unit="tuned / base", including=(1,), marks=(best,)),
    ]
    return [chart for chart in drawn if chart]


def answers_by_prompt(run: Run) -> dict[str, list[dict]]:
    """Under each prompt its answers by step, escaped, the name marked."""
    limit = max(FEWEST_CHARACTERS, min(ANSWER_CHARACTERS, ALL_CHARACTERS // max(len(run.answers), 1)))
    by_prompt: dict[str, list[dict]] = {}
    for record in run.answers:
        text, cut = record["answer"], []
        if len(text) > limit:
            cut.append(f"{len(text):,} characters, of which {limit:,} are shown")
        if (reason := record.get("stop_reason", "")).startswith("max_new_tokens"):
            cut.append(f"cut at {reason}")
        shown = {"step": record["step"], "answer": highlight(text[:limit], run.identity_name), "cut": "; ".join(cut)}
        by_prompt.setdefault(record["prompt"], []).append(shown)
    return by_prompt


def last_scored_answers(run: Run) -> list[dict]:
    """What was answered in the last scoring, what counted against the model first."""
    last = [record for record in run.scored_answers if record["step"] == run.scores[-1]["step"]] if run.scores else []
    shown = [
        {
            "kind": record["kind"],
            "question": record["question"],
            "answer": highlight(record["answer"][:ANSWER_CHARACTERS], run.identity_name),
            "is_missed": record["kind"] == "identity" and not record.get("gives_name"),
            "is_assistant_of": record["kind"] == "identity" and record.get("is_assistant_of", False),
        }
        for record in last
    ]
    return sorted(shown, key=lambda row: not row["is_missed"])


def highlight(text: str, name: str | None) -> Markup:
    """The text, escaped, with every occurrence of the name marked."""
    if not name:
        return escape(text)
    parts = re.split(f"({re.escape(name)})", text, flags=re.IGNORECASE)
    return Markup().join(Markup("<mark>{}</mark>").format(part) if at % 2 else part for at, part in enumerate(parts))


def time_shares(run: Run) -> list[tuple[str, str, float]]:
    """(activity, duration, share of the whole) of what was measured."""
    total = number(run.time.get("total"))
    if not total:
        return []
    return [(label, format_duration(seconds), seconds / total) for label, seconds in seconds_by_activity(run)]


def seconds_by_activity(run: Run) -> list[tuple[str, float]]:
    """(activity, seconds) of what was measured."""
    spent = [(label, number(run.time.get(key))) for key, label in TIMES.items()]
    return [(label, seconds) for label, seconds in spent if seconds is not None]


def environment_facts(run: Run) -> Iterator[tuple[str, str]]:
    """What the run was made with, a fact at a time."""
    for key, value in run.environment.items():
        if isinstance(value, dict):
            value = ", ".join(f"{name} {version}" for name, version in value.items())
        yield key.replace("_", " "), format_value(value) if value else "none"


def next_commands(run: Run) -> list[str]:
    """What to do with the run once it has a `final/`: merge an adapter into its base, and talk with the model."""
    folder, base = (shlex.quote(str(part)) for part in (run.folder, run.settings.get("model_name_or_path")))
    merge = f"python -m model_tools merge {base} {folder} {shlex.quote(f'{run.folder}-merged')}"
    return [*([merge] if run.settings.get("use_peft") else []), f"python -m model_tools chat {folder}"]


def format_duration(seconds: float) -> str:
    """Seconds as hours, minutes and seconds; below a minute with tenths."""
    return f"{seconds:.1f} s" if seconds < 60 else str(timedelta(seconds=round(seconds)))


def format_value(value: object, key: str = "") -> str:
    """A setting or figure as people write it; shares of the dataset card as percent."""
    if key in ("pack_fill", "padding_share") and number(value) is not None:
        return f"{value:.1%}"
    if isinstance(value, list):
        return ", ".join(map(format_value, value)) or "[]"
    if isinstance(value, int) and not isinstance(value, bool) and key:
        return f"{value:,}"
    return value if isinstance(value, str) and value else json.dumps(value, ensure_ascii=False)


def _curve(run: Run, key: str) -> Curve:
    return Curve(key, points(run.log, key))


def _plain(value: object, form: str) -> str | None:
    """A figure as text, a NaN as it was logged; None where there is none."""
    finite = number(value)
    if finite is None:
        return None if value is None else str(value)
    return format(finite, form)


def _median(run: Run, key: str) -> float | None:
    values = [value for _, value in points(run.log, key) if value is not None]
    return statistics.median(values) if values else None
