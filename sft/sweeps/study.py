"""Lets Optuna choose which points of a grid to run, and give up a point that does worse than others did by then.

In: a sweep and its plan, scores as runs write them. Out: the next point; whether a run is hopeless. The study is kept
in `optuna.journal` in the sweep's folder and resumed from there.
"""

import hashlib
import json
from collections import defaultdict

import optuna
from optuna.storages.journal import JournalFileBackend, JournalStorage
from optuna.trial import TrialState

from sft.core.errors import UserError
from sft.evaluation.score import read_score
from sft.runs.run_files import SCORES, read_run
from sft.sweeps import grid
from sft.sweeps.grid import PlannedPoint, SweepPlan, Value
from sft.sweeps.runner import PointRun
from sft.sweeps.sweep import Sweep


class Study:
    """Trials over the grid's values as categories, maximising the balance of identity and what was kept.

    Raises:
        UserError: the recipe names nothing to score.
    """

    def __init__(self, sweep: Sweep, plan: SweepPlan, values: dict[str, list[Value]], trials: int):
        if not all(point.inputs.get("identity_name") for point in plan.points):
            raise UserError("--optuna needs identity_name in the recipe: the score is what it makes large")
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._sweep, self._rank, self._values = sweep, plan.rank, values
        self._points = {point.name: point for point in plan.points}
        self._trials: dict[str, list[optuna.Trial]] = defaultdict(list)
        self._reported: dict[str, int] = {}  # the last step that was reported of a running point
        self._sizes: dict[str, int] = {}  # of its scores.jsonl, when that was last read
        # A study is of these settings and these data; after a change, what was learned before does not count.
        inputs = json.dumps([point.inputs for point in plan.points], sort_keys=True).encode()
        self._study = optuna.create_study(
            storage=JournalStorage(JournalFileBackend(str(sweep.folder / "optuna.journal"))),
            study_name=hashlib.sha256(inputs).hexdigest()[:12],
            pruner=optuna.pruners.MedianPruner(),
            direction="maximize",
            load_if_exists=True,
        )
        for trial in self._study.get_trials(states=[TrialState.RUNNING]):
            self._study.tell(trial.number, state=TrialState.FAIL)
        # Another seed each time a study is resumed, or it would draw the same points again.
        seed = plan.seed + len(self._study.trials)
        self._study.sampler = optuna.samplers.TPESampler(seed=seed, constant_liar=True)
        self._left = trials - len(self._study.get_trials(states=[TrialState.COMPLETE, TrialState.PRUNED]))

    def next_point(self) -> PlannedPoint | None:
        """A point that waits to be run; None when all trials are asked for, or run."""
        while self._left > 0:
            self._left -= 1
            trial = self._study.ask()
            point = self._chosen(trial)
            self._trials[point.name].append(trial)
            if self._sweep.outcomes[point.name].status != "waiting":
                self._settle(point)
            elif len(self._trials[point.name]) == 1:
                return point
        return None

    def is_hopeless(self, run: PointRun) -> bool:
        """Whether the pruner gives the run up, by the scores it has written so far."""
        scores = run.folder / SCORES
        if not run.has_begun or not scores.is_file() or self._sizes.get(run.point.name) == scores.stat().st_size:
            return False
        self._sizes[run.point.name] = scores.stat().st_size
        files = read_run(run.folder)
        # After the last step only saving is left, which is quick.
        return files.last_step < files.max_steps and self.judge(run.point, files.scores)

    def judge(self, point: PlannedPoint, scores: list[dict]) -> bool:
        """Report what is new of a running point's scores; whether it is to be given up."""
        trial = self._trials[point.name][0]
        new = [record for record in scores if record["step"] > self._reported.get(point.name, 0)]
        for record in new:
            trial.report(_balance(record), record["step"])
            self._reported[point.name] = record["step"]
        return bool(new) and trial.should_prune()

    def tell(self, run: PointRun) -> None:
        """The run is over; the sweep knows how."""
        self._settle(run.point)

    def _chosen(self, trial: optuna.Trial) -> PlannedPoint:
        chosen = {}
        for key, values in self._values.items():
            texts = [grid.text_of(value) for value in values]
            chosen[key] = values[texts.index(trial.suggest_categorical(key, texts))]
        return self._points[grid.name_of(grid.resolve_alpha(chosen, self._rank))]

    def _settle(self, point: PlannedPoint) -> None:
        """End all trials of a point as the point ended."""
        score = self._sweep.final_score(point)
        is_pruned = self._sweep.outcomes[point.name].status == "pruned"
        for by_point in (self._reported, self._sizes):
            by_point.pop(point.name, None)
        for trial in self._trials.pop(point.name):
            if score is not None:
                self._study.tell(trial, _balance(score))
            else:
                self._study.tell(trial, state=TrialState.PRUNED if is_pruned else TrialState.FAIL)


def _balance(score: dict) -> float:
    """`Score.balance` of a line of `scores.jsonl`."""
    return read_score(score).balance
