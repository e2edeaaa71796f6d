"""Scores the model while it trains, stops when the name is learned, and has the best checkpoint saved.

In: a trainer whose recipe names an `identity_name`. Out: `scores.jsonl`, `score_answers.jsonl`, numbers for every
tracker, and the trainer's own best checkpoint. Training stays bit-identical to a run that scored nothing.
"""

import json
import time
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from typing import cast

import torch
from accelerate.utils import broadcast_object_list

from sft.core.console import say, waiting
from sft.core.text import counted
from sft.data.identity import OLD_NAMES
from sft.data.questions import load_questions
from sft.evaluation.chat_eval import Evaluation
from sft.evaluation.score import Score, read_score, score
from sft.models.model_state import is_in_parts
from sft.runs.run_files import SCORED_ANSWERS, SCORES, read_run
from sft.training.plan import evaluation_steps
from sft.training.trainer import RecipeTrainer

# What trackers are given of a score; they show `eval_identity` as eval/identity.
TRACKED = ("identity", "assistant_of", "old_name", "ordinary_kept", "divergence", "perplexity_ratio")
# Scoring that takes more than this share of the training time is worth a hint.
COSTLY = 0.02


class ScoreEval(Evaluation):
    """Scores at step 0, every `eval_prompts_steps` and after the last step; `latest` is the newest score."""

    def __init__(self, trainer: RecipeTrainer):
        super().__init__(trainer)
        self.questions = load_questions(self.run.score_file, trainer.asked_system)
        self.folder = trainer.run_directory
        self.latest: Score | None = None
        self._base_states: dict[str, torch.Tensor] = {}
        self._reached = 0
        self._seconds = 0.0
        self._started = time.perf_counter()

    def on_train_begin(self, args, state, control, **kwargs):
        """Count earlier evaluations of a resumed run towards `stop_patience`; then as any evaluation."""
        self._started = time.perf_counter()
        for earlier in read_run(self.folder).scores if state.global_step else ():
            self._count_as_reached(read_score(earlier))
        super().on_train_begin(args, state, control, **kwargs)

    def evaluate(self, state, control) -> None:
        """Score and record; keep the step where it is the best, stop where the name is learned."""
        scores: list[Score | None] = [None]
        if state.is_world_process_zero or is_in_parts(self.trainer.model):
            with waiting(f"step {state.global_step}: scoring identity and retention"):
                scores = [
                    score(
                        self.trainer.model,
                        self.trainer.processing_class,
                        self.questions,
                        cast(str, self.run.identity_name),
                        [*OLD_NAMES, *self.run.identity_old_names],
                        self.run.score_seconds,
                        self._base_states,
                    )
                ]
        # Every process must decide the same below.
        (latest,) = broadcast_object_list(scores)
        self.latest = latest
        self._seconds += latest.seconds
        if state.is_world_process_zero:
            self._record(state, latest)
        tracked = (*TRACKED, *(("without_system",) if latest.system_message else ()))
        values = {f"eval_{key}": getattr(latest, key) for key in tracked}
        self.trainer.log_scores({key: value for key, value in values.items() if value is not None})
        if state.global_step:
            self._save_if_best(state, control, latest)
            self._stop_if_learned(state, control, latest)

    def _record(self, state, score: Score) -> None:
        """Write and print a score, with the share of the training time that all scoring has cost so far."""
        trained = time.perf_counter() - self._started - self._seconds
        share = self._seconds / trained if state.global_step and trained > 0 else None
        record = {"step": state.global_step, **score.to_dict(), "share_of_training": share and round(share, 4)}
        _append(self.folder / SCORES, [record])
        answers = [{"step": state.global_step, **asdict(answer)} for answer in score.answers]
        _append(self.folder / SCORED_ANSWERS, answers)
        cost = f"{score.seconds:.1f} s"
        if share is not None:
            cost += f", all scoring {share:.1%} of the training time"
            cost += f" ({self._cheaper(state.max_steps)})" if share > COSTLY else ""
        say(f"step {state.global_step}: {score.line()}; {cost}", style="cyan")
        if not score.is_complete:
            say(f"  {self._more_time(score)}", style="yellow")

    def _cheaper(self, max_steps: int) -> str:
        """What lowers the cost: fewer evaluations, where there are any beside the first and the last."""
        if len(evaluation_steps(self.trainer.recipe, max_steps)) > 2:
            return "to ask less often, raise eval_prompts_steps"
        return "to spend less on each, lower score_seconds or name fewer questions in score_file"

    def _more_time(self, score: Score) -> str:
        """That a scoring was cut short, and what would let it ask everything."""
        asked = len(score.answers)
        needed = f", and all takes about {score.seconds * self.questions.count / asked:.0f} s" if asked else ""
        return (
            f"score_seconds ({self.run.score_seconds:g}) ran out before everything was asked{needed}: raise it, or "
            "name fewer questions in score_file"
        )

    def _save_if_best(self, state, control, score: Score) -> None:
        """Let the trainer save and keep this step where it is the best so far; of equals, the one that retains more."""
        if not self.run.keep_best or not score.is_decisive:
            return
        value = score.balance if self.run.keep_best == "balance" else score.identity or 0.0
        # The balance, from 0 to 1, only breaks ties.
        value += score.balance / 1000
        if state.best_metric is None or value > state.best_metric:
            state.best_metric, state.best_global_step = value, state.global_step
            control.should_save = True

    def _stop_if_learned(self, state, control, score: Score) -> None:
        if self.run.stop_when_identity is None or control.should_training_stop:
            return
        self._count_as_reached(score)
        if self._reached >= self.run.stop_patience:
            control.should_training_stop = control.should_save = True
            left = state.max_steps - state.global_step
            seconds = (time.perf_counter() - self._started) / state.global_step * left
            say(
                f"step {state.global_step}: identity {score.identity:.0%} reaches stop_when_identity: "
                f"{counted(left, 'step')} and about {timedelta(seconds=round(seconds))} saved"
            )

    def _count_as_reached(self, score: Score) -> None:
        """Count at how many evaluations in a row, this one the last, `stop_when_identity` was reached."""
        wanted = self.run.stop_when_identity
        is_reached = wanted is not None and (score.identity or 0.0) >= wanted and score.is_decisive
        self._reached = self._reached + 1 if is_reached else 0


def _append(path: Path, records: list[dict]) -> None:
    with open(path, "a", encoding="utf-8") as file:
        file.writelines(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
