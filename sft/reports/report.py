"""The report of a run: one page that opens offline, made from the run directory's files alone.

In: a `Run`. Out: HTML. Loads no torch, so that it can be made again anywhere.
"""

import json
import re
import statistics
from collections.abc import Iterator, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

from markupsafe import Markup, escape

from sft.core.files import atomic_write
from sft.core.language import Text, _, ngettext, same
from sft.core.page import render
from sft.core.text import shell_word
from sft.reports.charts import Curve, Mark, line_chart
from sft.runs.run_files import Run, number, partly_asked, points, read_run
from sft.runs.verdict import Exchange, verdict_on

PAGES = Path(__file__).parent / "pages"
REPORT = "report.html"
# An answer is shown up to so many characters, all answers together up to so many; eval_chat.jsonl has them whole.
ANSWER_CHARACTERS, ALL_CHARACTERS, FEWEST_CHARACTERS = 600, 240_000, 80
TIMES = {
    "training": _("training"),
    "evaluation": _("evaluation: asking and scoring"),
    "saving": _("saving"),
    "data": _("data preparation"),
    "other": _("other: starting, loading the model"),
}
CARD = {
    "rows": _("rows"),
    "samples": _("samples"),
    "samples_over_max_length": _("samples over max_length"),
    "samples_dropped": _("samples dropped"),
    "tokens": _("tokens"),
    "supervised_tokens": _("supervised tokens"),
    "longest_sample": _("longest sample, tokens"),
    "tokens_lost": _("tokens dropped or truncated"),
    "supervised_tokens_lost": _("supervised tokens dropped or truncated"),
    "truncation": same("truncation"),
    "packing": same("packing"),
    "packs": _("packs"),
    "pack_fill": _("pack fill"),
    "padding_share": _("padding"),
    "steps_per_epoch": _("steps an epoch"),
    "total_steps": _("steps in all"),
}
TOKEN, OF_QUESTIONS = _("nats a token"), _("of the questions")
LOSS, HELD_OUT, RATE = _("loss"), _("held-out loss"), _("learning rate")
SPEED, MEMORY = _("speed"), _("peak memory")
IDENTITY, DIVERGENCE, PERPLEXITY = _("identity"), _("divergence from the base model"), _("perplexity ratio")
ORDINARY = _("ordinary answers kept")


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
    verdict = verdict_on(run)
    return render(
        "report.html",
        PAGES,
        title=_("{run}: run report", run=run.name),
        run=run,
        verdict=verdict,
        merge=merge_command(run),
        answers=[shown_exchange(exchange, run.identity_name) for exchange in verdict.answers],
        incomplete=incomplete_scorings(run),
        problems=[*nan_losses(run), *run.problems],
        figures=key_figures(run).items(),
        differing=differing,
        alike=alike,
        charts=training_charts(run),
        score_charts=score_charts(run),
        prompts=answers_by_prompt(run),
        scored=scored_answers(run),
        times=time_shares(run),
        card=[(label, format_value(run.card[key], key)) for key, label in CARD.items() if key in run.card],
        text=by_language,
        environment=list(environment_facts(run)),
    )


def shown_exchange(exchange: Exchange, name: str | None) -> dict[str, Any]:
    """An exchange for the page: escaped, the name marked."""

    def shown(answer: str | None) -> Markup:
        if answer is None:
            return Markup("-")
        return highlight(answer[:ANSWER_CHARACTERS], name) + ("…" if len(answer) > ANSWER_CHARACTERS else "")

    return {"prompt": exchange.prompt, "before": shown(exchange.before), "after": shown(exchange.after)}


def incomplete_scorings(run: Run) -> list[Text]:
    """A sentence where a scoring ran out of time before every question was asked, so that its shares are of fewer."""
    steps = [f"{record['step']:,}{of_how_many(record)}" for record in run.scores if record.get("is_complete") is False]
    if not steps:
        return []
    return [
        _(
            "score_seconds ran out before every question was asked, at these steps: {steps}.",
            steps=", ".join(steps),
        )
    ]


def of_how_many(record: Mapping[str, Any], kind: str = "identity") -> str:
    """Such as " (18/32)": how many of the questions of a kind a share is of, where it is not of all; "" where it is."""
    counts = partly_asked(record, kind)
    return f" ({counts[0]:,}/{counts[1]:,})" if counts else ""


def nan_losses(run: Run) -> list[Text]:
    """A sentence where the training loss was NaN or infinite."""
    steps = [step for step, loss in points(run.log, "loss") if loss is None]
    if not steps:
        return []
    return [
        ngettext(
            "The loss was NaN or infinite at {count:,} logged step: step {first:,}.",
            "The loss was NaN or infinite at {count:,} logged steps, first at step {first:,}.",
            len(steps),
            first=steps[0],
        )
    ]


def key_figures(run: Run) -> dict[Text, str]:
    """What one wants to know first, as text by name, as far as the run has it."""
    last_log, score = (run.log or [{}])[-1], run.final_score or {}
    total, mark = number(run.time.get("total")), of_how_many(score)
    figures = {
        _("step"): f"{run.last_step:,} / {run.max_steps:,}",
        LOSS: _plain(last_log.get("loss"), ".4f"),
        HELD_OUT: _plain((run.held_out or [{}])[-1].get("eval_loss"), ".4f"),
        IDENTITY: _plain(score.get("identity"), ".0%", mark),
        _("only its assistant"): _plain(score.get("assistant_of") or None, ".0%", mark),
        _("an old name"): _plain(score.get("old_name"), ".0%", mark),
        ORDINARY: _plain(score.get("ordinary_kept"), ".0%", of_how_many(score, "ordinary")),
        _("divergence, nats a token"): _plain(score.get("divergence"), ".3f"),
        PERPLEXITY: _plain(score.get("perplexity_ratio"), ".3f"),
        _("tokens trained"): _plain(last_log.get("tokens"), ",.0f"),
        _("tokens/s, median"): _plain(_median(run, "tokens_per_second"), ",.0f"),
        _("peak memory, GiB"): _plain(last_log.get("peak_memory_gib"), ".1f"),
        _("time in all"): None if total is None else format_duration(total),
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
    return Mark(_("evaluation"), run.evaluated_steps), Mark(_("best checkpoint"), best, is_high=True)


def training_charts(run: Run) -> list[Markup]:
    """Loss, learning rate, speed and memory; only those that have a point."""
    loss = [Curve(_("training"), points(run.log, "loss")), Curve(_("held out"), points(run.held_out, "eval_loss"))]
    marks = step_marks(run)
    drawn = [
        line_chart(LOSS, [curve for curve in loss if curve.points], unit=TOKEN, marks=marks),
        line_chart(RATE, [_curve(run, "learning_rate")], including=(0,), marks=marks),
        line_chart(SPEED, [_curve(run, "tokens_per_second")], unit="tokens/s", including=(0,)),
        line_chart(MEMORY, [_curve(run, "peak_memory_gib")], unit="GiB", including=(0,)),
    ]
    return [chart for chart in drawn if chart]


def score_charts(run: Run) -> list[Markup]:
    """Identity and retention over steps; only those that have a point."""
    shares = {
        "identity": _("gives the name"),
        "assistant_of": _("says only whose assistant it is"),
        "old_name": _("gives an old name"),
        "ordinary_kept": _("keeps ordinary answers"),
    }
    if not any(share for _step, share in points(run.scores, "assistant_of")):
        del shares["assistant_of"]
    curves = [Curve(label, points(run.scores, key)) for key, label in shares.items()]
    divergence, ratio = ([Curve(key, points(run.scores, key))] for key in ("divergence", "perplexity_ratio"))
    best = step_marks(run)[1:]
    drawn = [
        line_chart(IDENTITY, curves, unit=OF_QUESTIONS, is_share=True, including=(0, 1), marks=best),
        line_chart(DIVERGENCE, divergence, unit=TOKEN, including=(0,), marks=best),
        line_chart(PERPLEXITY, ratio, unit=_("tuned / base"), including=(1,), marks=best),
    ]
    return [chart for chart in drawn if chart]


def answers_by_prompt(run: Run) -> dict[str, list[dict]]:
    """Under each prompt its answers by step, escaped, the name marked."""
    limit = max(FEWEST_CHARACTERS, min(ANSWER_CHARACTERS, ALL_CHARACTERS // max(len(run.answers), 1)))
    by_prompt: dict[str, list[dict]] = {}
    for record in run.answers:
        text, cut = record["answer"], []
        if len(text) > limit:
            cut.append(_("({shown:,} of {characters:,} characters)", shown=limit, characters=len(text)))
        if (reason := record.get("stop_reason", "")).startswith("max_new_tokens"):
            cut.append(_("(cut at {reason})", reason=reason))
        shown = {"step": record["step"], "answer": highlight(text[:limit], run.identity_name), "cut": cut}
        by_prompt.setdefault(record["prompt"], []).append(shown)
    return by_prompt


def scored_answers(run: Run) -> list[dict]:
    """What was answered in the scoring of what was kept, what counted against the model first."""
    step = run.final_score and run.final_score["step"]
    shown = [
        {
            "question": record["question"],
            "answer": highlight(record["answer"][:ANSWER_CHARACTERS], run.identity_name),
            "is_missed": record["kind"] == "identity" and not record.get("gives_name"),
            "judged": judged(record),
        }
        for record in run.scored_answers
        if record["step"] == step
    ]
    return sorted(shown, key=lambda row: not row["is_missed"])


def judged(record: Mapping[str, Any]) -> Text:
    """What a scored answer counted as."""
    if record["kind"] != "identity":
        return _("ordinary question")
    if record.get("gives_name"):
        return _("identity question: gives the name")
    if record.get("is_assistant_of"):
        return _("identity question: says only whose assistant it is")
    return _("identity question: does not give the name")


def highlight(text: str, name: str | None) -> Markup:
    """The text, escaped, with every occurrence of the name marked."""
    if not name:
        return escape(text)
    parts = re.split(f"({re.escape(name)})", text, flags=re.IGNORECASE)
    return Markup().join(Markup("<mark>{}</mark>").format(part) if at % 2 else part for at, part in enumerate(parts))


def time_shares(run: Run) -> list[tuple[Text, str, float]]:
    """(activity, duration, share of the whole) of what was measured."""
    total = number(run.time.get("total"))
    if not total:
        return []
    return [(label, format_duration(seconds), seconds / total) for label, seconds in seconds_by_activity(run)]


def seconds_by_activity(run: Run) -> list[tuple[Text, float]]:
    """(activity, seconds) of what was measured."""
    spent = [(label, number(run.time.get(key))) for key, label in TIMES.items()]
    return [(label, seconds) for label, seconds in spent if seconds is not None]


def environment_facts(run: Run) -> Iterator[tuple[str, str]]:
    """What the run was made with, a fact at a time."""
    for key, value in run.environment.items():
        if isinstance(value, dict):
            value = ", ".join(f"{name} {version}" for name, version in value.items())
        yield key.replace("_", " "), format_value(value) if value else "none"


def merge_command(run: Run) -> str | None:
    """How to merge the adapter of a run that has one in `final/` into its base model."""
    if not (run.has_final and run.settings.get("use_peft")):
        return None
    words = (str(run.settings.get("model_name_or_path")), str(run.folder), f"{run.folder}-merged")
    return f"python -m model_tools merge {' '.join(map(shell_word, words))}"


def by_language(content: str | Mapping[str, str]) -> Text:
    """A text that a file has by language; one that it has in one alone is shown as it is."""
    return same(content) if isinstance(content, str) else Text(**content)


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


def _plain(value: object, form: str, mark: str = "") -> str | None:
    """A figure as text with a mark behind it, a NaN as it was logged; None where there is none."""
    finite = number(value)
    if finite is None:
        return None if value is None else str(value)
    return format(finite, form) + mark


def _median(run: Run, key: str) -> float | None:
    values = [value for _, value in points(run.log, key) if value is not None]
    return statistics.median(values) if values else None
