"""Optuna's part in a sweep: which points it asks for, when it gives one up, and that a study is gone on with."""

import json
from types import SimpleNamespace

import optuna
import pytest
from optuna.storages.journal import JournalFileBackend, JournalStorage

from sft.core.errors import UserError
from sft.sweeps import grid
from sft.sweeps.grid import PlannedPoint, SweepPlan
from sft.sweeps.results import Outcome, Results
from sft.sweeps.study import Study
from sft.sweeps.sweep import Sweep

SCORE = {
    "old_name": 0.0, "zh": None, "en": None, "with_system": None, "without_system": None, "identity_asked": 32,
    "ordinary_kept": 1.0, "ordinary_asked": 4, "divergence": 0.0, "perplexity_ratio": 1.0, "is_complete": True,
    "seconds": 1.0, "share_of_training": 0.01,
}  # fmt: skip
WORDS = ["learning_rate=1e-4,2e-4,3e-4,4e-4", "lora_r=8,16", "lora_alpha=0.5x"]


def planned(words=WORDS, **inputs) -> tuple[SweepPlan, dict]:
    values = grid.read_grid(words)
    names = [(grid.name_of(point), point) for point in grid.points_of(values, 16, [42])]
    points = [
        PlannedPoint(name, name, point, {"identity_name": "黄大力", "point": name} | inputs, 8) for name, point in names
    ]
    return SweepPlan(points, [], 16, 42), values


@pytest.fixture
def begin(tmp_path):
    """Open (or go on with) a study in the same folder; returns it with its sweep."""

    def make(trials: int, **inputs) -> tuple[Study, Sweep]:
        plan, values = planned(**inputs)
        sweep = Sweep(tmp_path, plan.points, "python sweep.py", shows_waiting=False)
        return Study(sweep, plan, values, trials), sweep

    return make


def scores(*shares: float) -> list[dict]:
    return [SCORE | {"step": step * 10, "identity": share} for step, share in enumerate(shares)]


def finish(study: Study, sweep: Sweep, point: PlannedPoint, *shares: float) -> None:
    """Let a point have been trained with these scores."""
    folder = sweep.folder / point.name
    folder.mkdir()
    (folder / "recipe.yaml").write_text("max_steps: 40\n")
    (folder / "scores.jsonl").write_text("".join(json.dumps(record) + "\n" for record in scores(*shares)))
    nothing = dict.fromkeys(Results.__dataclass_fields__) | {"adapter_bytes": 0, "minutes": 1.0}
    sweep.outcomes[point.name] = Outcome("finished", Results(**nothing))
    study.tell(SimpleNamespace(point=point))


def test_it_asks_for_so_many_points_and_never_for_one_twice(begin):
    study, sweep = begin(6)
    asked = []
    while point := study.next_point():
        asked.append(point.name)
        finish(study, sweep, point, 0.0, 0.5)
    assert 1 < len(asked) <= 6
    assert len(set(asked)) == len(asked)


def test_a_point_that_does_worse_than_others_did_by_then_is_given_up(begin):
    study, sweep = begin(20)
    for _ in range(5):  # as many as the median wants to see first
        point = study.next_point()
        assert not study.judge(point, scores(0.0, 0.5))
        finish(study, sweep, point, 0.0, 0.5, 0.9)
    point = study.next_point()
    assert not study.judge(point, scores(0.0))
    assert not study.judge(point, scores(0.0, 0.6))
    assert not study.judge(point, scores(0.0, 0.6))
    study.tell(SimpleNamespace(point=point))
    assert study.judge(study.next_point(), scores(0.0, 0.1))


def test_what_is_made_large_is_the_balance_and_not_the_identity_alone(begin, tmp_path, monkeypatch):
    monkeypatch.setitem(SCORE, "ordinary_kept", 0.5)
    study, sweep = begin(1)
    finish(study, sweep, study.next_point(), 0.0, 0.8)
    storage = JournalStorage(JournalFileBackend(str(tmp_path / "optuna.journal")))
    (summary,) = optuna.get_all_study_summaries(storage)
    assert summary.best_trial.value == pytest.approx(0.4)


def test_a_study_is_gone_on_with_until_it_has_had_all_its_trials(begin):
    study, sweep = begin(3)
    finish(study, sweep, study.next_point(), 0.0, 0.5)
    assert study.next_point()  # and the sweep is killed
    study, after = begin(3)
    after.outcomes |= sweep.outcomes
    more = 0
    while point := study.next_point():
        more += 1
        finish(study, after, point, 0.0, 0.5)
    assert more <= 2
    study, _ = begin(3)
    assert study.next_point() is None


def test_a_study_that_is_gone_on_with_draws_other_points(begin):
    outcomes = {}
    for trials in range(1, 7):
        study, sweep = begin(trials)
        sweep.outcomes |= outcomes
        if point := study.next_point():
            finish(study, sweep, point, 0.0, 0.5)
            outcomes[point.name] = sweep.outcomes[point.name]
    assert len(outcomes) > 2


def test_other_data_begin_another_study(begin):
    study, sweep = begin(1)
    finish(study, sweep, study.next_point(), 0.0, 0.5)
    study, _ = begin(1, train_file="other")
    assert study.next_point()


def test_without_a_name_to_learn_there_is_nothing_to_make_large(tmp_path):
    plan, values = planned(identity_name=None)
    with pytest.raises(UserError, match="--optuna needs identity_name"):
        Study(Sweep(tmp_path, plan.points, "", False), plan, values, 2)
