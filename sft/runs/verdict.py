"""What came of a run, in words: whether the name was learned, what of the base model was kept, and what to do next.

In: a `Run`, of whatever state. Out: a `Verdict` in both languages, for the console, `result.json` and pages. Judges by
the files of the run directory alone; why a name was not learned is `sft.evaluation.diagnosis`'s.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from sft.core.finding import Finding
from sft.core.language import Text, _, lines_shown, ngettext, same
from sft.core.text import one_line, shell_word
from sft.runs.run_files import Run, number, partly_asked, points

# From this share of the identity questions answered with the name on, it counts as learned; from PARTLY on, in part.
LEARNED, PARTLY = 0.9, 0.5
# From this share of the ordinary questions answered without the name on, the rest of the model counts as kept.
KEPT = 0.9
# So much is shown of an answer where it stands beside others.
SHOWN_CHARACTERS = 200


@dataclass(frozen=True)
class Exchange:
    """An evaluation prompt, and what the model answered before training and at the step that was kept."""

    prompt: str
    before: str | None
    after: str | None


@dataclass(frozen=True)
class Verdict:
    """`is_learned` is None where there is no name to learn, or nobody asked; `next_command` follows from it."""

    is_learned: bool | None
    sentences: list[Text]
    warnings: list[Finding]
    answers: list[Exchange]
    advice: Text
    next_command: str

    @property
    def warned_of(self) -> list[Finding]:
        """The warnings that are more than notes."""
        return [warning for warning in self.warnings if not warning.is_note]

    def lines(self) -> list[str]:
        """As a console shows it."""
        said = [
            _("verdict: {sentence}", sentence=self.sentences[0]),
            *(sentence.indented() for sentence in self.sentences[1:]),
        ]
        if self.warned_of:
            said.append(_warned_of(self.warned_of))
            said += [warning.wrong.indented(4) for warning in self.warned_of]
        lines = lines_shown(said)
        for exchange in self.answers:
            lines.append(f"  {one_line(exchange.prompt)}")
            lines += [
                f"    {label}: {one_line(answer, SHOWN_CHARACTERS)}"
                for label, answer in ((_("before"), exchange.before), (_("after"), exchange.after))
                if answer is not None
            ]
        return [*lines, *lines_shown([self.advice]), f"  {self.next_command}"]

    def to_dict(self) -> dict[str, Any]:
        """As `result.json` has it, in English."""
        return {
            "is_learned": self.is_learned,
            "sentences": [sentence.en for sentence in self.sentences],
            "warnings": [warning.wrong.en for warning in self.warned_of],
            "answers": [vars(exchange) for exchange in self.answers],
            "next": self.next_command,
        }


def verdict_on(run: Run) -> Verdict:
    """The verdict on a run; of one that is not done, on how far it came."""
    is_learned = _is_learned(run)
    advice, command = _next(run, is_learned)
    learned = [*_name(run), *_retention(run)] if run.identity_name else [*_loss(run)]
    # Of a run that is done, the first sentence says what came of it; of another, that it is not done.
    sentences = [*learned, *state(run)] if is_done(run) else [*state(run), *learned]
    return Verdict(is_learned, sentences, warnings_of(run), exchanges(run), advice, command)


def is_done(run: Run) -> bool:
    """Whether the run went through to its end; of one that is about to write how it ended, whether it has `final/`."""
    return run.result.is_done if run.result else run.has_final


def state(run: Run) -> list[Text]:
    """How far the run came, how it ended, and which checkpoint it kept."""
    at, of = run.last_step, run.max_steps
    if run.result and not run.result.is_done:
        ended = _(
            "The run did not end as planned ({status}, exit code {code}): step {step:,} of {steps:,}.",
            status=run.result.status,
            code=run.result.exit_code,
            step=at,
            steps=of,
        )
        sentences = [ended, *([same(run.result.message)] if run.result.message else [])]
    elif not run.has_final:
        sentences = [
            _("Step {step:,} of {steps:,}: the run has no final/ yet; it is running, or was killed.", step=at, steps=of)
        ]
    elif reason := run.stopped_early:
        sentences = [_("Training stopped early, at step {step:,} of {steps:,}:", step=at, steps=of), reason]
    else:
        sentences = [ngettext("Trained for {count:,} step.", "Trained for {count:,} steps.", at)]
    if run.best_step is not None:
        key = run.settings["keep_best"]
        best = _("The best checkpoint is that of step {step:,} (keep_best: {key}).", step=run.best_step, key=key)
        sentences.append(best)
        if run.has_final:
            sentences.append(_("final/ holds it."))
    return sentences


def warnings_of(run: Run) -> list[Finding]:
    """What was warned of before training, as far as `plan.json` still has it whole."""
    found, contents = [], run.plan.get("warnings")
    for content in contents if isinstance(contents, list) else ():
        try:
            found.append(Finding.from_dict(content))
        except (KeyError, TypeError, AttributeError):
            continue
    return found


def exchanges(run: Run) -> list[Exchange]:
    """The answers to each evaluation prompt before training, and at the best step or the last."""
    asked = [record["step"] for record in run.answers]
    if not asked:
        return []
    last = run.best_step if run.best_step in asked else max(asked)
    by_step = {
        step: {record["prompt"]: record["answer"] for record in run.answers if record["step"] == step}
        for step in (0, last)
    }
    prompts = dict.fromkeys(record["prompt"] for record in run.answers)
    return [Exchange(prompt, by_step[0].get(prompt), by_step[last].get(prompt) if last else None) for prompt in prompts]


def _is_learned(run: Run) -> bool | None:
    share = number((run.final_score or {}).get("identity")) if run.identity_name else None
    return None if share is None else share >= LEARNED


def _name(run: Run) -> Iterator[Text]:
    """Whether the name was learned, by the score of what was kept."""
    name, score = run.identity_name, run.final_score or {}
    if not name:
        return
    share, asked = number(score.get("identity")), int(number(score.get("identity_asked")) or 0)
    if share is None:
        yield _("Whether the name {name} was learned is not known: no identity question has been asked.", name=name)
        return
    values: dict[str, Any] = {"name": name, "share": share, "asked": asked}
    if share >= LEARNED:
        yield _(
            "The name {name} was learned: {share:.0%} of {asked:,} identity questions are answered with it.", **values
        )
    elif share >= PARTLY:
        yield _(
            "The name {name} was learned in part: {share:.0%} of {asked:,} identity questions are answered with it.",
            **values,
        )
    else:
        yield _(
            "The name {name} was not learned: {share:.0%} of {asked:,} identity questions are answered with it.",
            **values,
        )
    if counts := partly_asked(score):
        yield _(
            "Only {asked:,} of {total:,} identity questions were asked before score_seconds ran out.",
            asked=counts[0],
            total=counts[1],
        )
    system, with_it, without = (score.get(key) for key in ("system_message", "with_system", "without_system"))
    if system and number(with_it) is not None and number(without) is not None:
        yield _(
            "With the system message of the training rows, {with_it:.0%} give it; without, {without:.0%}: {system}",
            with_it=with_it,
            without=without,
            system=one_line(str(system), SHOWN_CHARACTERS),
        )
    before = number(run.scores[0].get("identity")) if run.scores[0]["step"] == 0 else None
    if before is not None:
        yield _("Before training it was {share:.0%}.", share=before)
    if other := number(score.get("assistant_of")):
        yield _(
            "In {share:.0%} of the answers the model only says that it is {name}'s assistant.", share=other, name=name
        )
    if old := number(score.get("old_name")):
        yield _("In {share:.0%} of the answers it still gives an old name.", share=old)


def _retention(run: Run) -> Iterator[Text]:
    """How much of the base model was kept."""
    score = run.final_score or {}
    kept, asked = number(score.get("ordinary_kept")), int(number(score.get("ordinary_asked")) or 0)
    if run.identity_name and kept is not None:
        if kept >= KEPT:
            yield _(
                "The rest was kept: {share:.0%} of {asked:,} ordinary questions are answered without the name.",
                share=kept,
                asked=asked,
            )
        else:
            yield _(
                "The rest was not kept: {share:.0%} of {asked:,} ordinary questions are answered without the name.",
                share=kept,
                asked=asked,
            )
    divergence, ratio = number(score.get("divergence")), number(score.get("perplexity_ratio"))
    if divergence is not None and ratio is not None:
        yield _(
            "On ordinary texts the model diverges from the base model by {divergence:.3f} nats a token, and its "
            "perplexity is {ratio:.2f} times the base model's.",
            divergence=divergence,
            ratio=ratio,
        )


def _loss(run: Run) -> Iterator[Text]:
    """How the losses changed."""
    if losses := _finite(run.log, "loss"):
        yield _("The training loss went from {first:.3f} to {last:.3f}.", first=losses[0], last=losses[-1])
    if losses := _finite(run.held_out, "eval_loss"):
        yield _("The held-out loss went from {first:.3f} to {last:.3f}.", first=losses[0], last=losses[-1])


def _finite(records: list[dict], key: str) -> list[float]:
    return [value for _step, value in points(records, key) if value is not None]


def _next(run: Run, is_learned: bool | None) -> tuple[Text, str]:
    """The one thing to do now, and its command."""
    folder = shell_word(str(run.folder))
    if not is_done(run):
        command = " ".join(["deepspeed --quiet", str(run.environment.get("command", "train_sft.py RECIPE"))])
        return _("Next: the same command resumes the run from its newest checkpoint."), command
    if is_learned is False:
        return _("Next: find out why, and what to change."), f"python -m model_tools diagnose {folder}"
    return _("Next: chat with the model."), f"python -m model_tools chat {folder}"


def _warned_of(warnings: list[Finding]) -> Text:
    return ngettext(
        "Before training there was {count} warning:", "Before training there were {count} warnings:", len(warnings)
    ).indented()
