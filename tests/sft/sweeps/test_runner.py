"""A point is judged by the files of its run and its exit code, whatever its console output says."""

import time

import pytest

from sft.sweeps.grid import PlannedPoint
from sft.sweeps.runner import PointRun
from sft.sweeps.sweep import lock_folder

# In place of train_sft.py: prints what it is told to, leaves the files of a run, ends with a code.
SCRIPT = """
import sys
from pathlib import Path
sys.path.insert(0, {repository!r})
from sft.runs.run_files import RunResult, write_json, write_result
folder = Path({folder!r})
print({said!r}, flush=True)
if {opens}:
    folder.mkdir(exist_ok=True)
    (folder / "result.json").unlink(missing_ok=True)
    write_json(folder / "plan.json", {{}})
if {status!r}:
    write_result(folder, RunResult({status!r}, 0, {message!r}, 4, 4, "final", None, 9.0, {{}}, 1.5, 8192))
sys.exit({code})
"""
SAYS_DONE = "done: run/final holds the adapter, its tokenizer and a model card"


@pytest.fixture
def run_point(tmp_path, monkeypatch):
    """Run a stand-in of train_sft.py as a point of a sweep to its end."""

    def run(said: str, *, opens=True, status="done", message=None, code=0) -> PointRun:
        from sft.core.paths import REPOSITORY

        point, folder = PlannedPoint("point", "point", {}, {}, 8), tmp_path / "sweep"
        script = tmp_path / "script.py"
        known = {"said": said, "opens": opens, "status": status, "message": message, "code": code}
        script.write_text(SCRIPT.format(repository=str(REPOSITORY), folder=str(folder / "point"), **known))
        monkeypatch.setattr("sft.sweeps.runner.SCRIPT", script)
        with lock_folder(folder) as held:
            started = PointRun(point, {}, recipe="recipe.yaml", folder=folder, launcher="python", lock=held)
            deadline = time.monotonic() + 60
            while not started.has_ended():
                assert time.monotonic() < deadline
                time.sleep(0.05)
        return started

    return run


def test_a_run_whose_result_is_done_has_succeeded_whatever_it_printed(run_point):
    run = run_point("fertig: alles gut")
    assert run.has_begun
    assert run.has_succeeded
    assert run.result.trainable_parameters == 8192


@pytest.mark.parametrize(("status", "code"), [("", 0), ("failed", 0), ("stopped", 75), ("done", 1)])
def test_a_run_whose_result_is_not_done_has_failed_whatever_it_printed(run_point, status, code):
    assert not run_point(SAYS_DONE, status=status, code=code).has_succeeded


def test_the_problem_of_a_run_is_the_message_of_its_result(run_point):
    run = run_point(
        "SomeError: a line that only looks like the problem", status="failed", message="step 3: why", code=3
    )
    assert run.error() == "step 3: why"


def test_the_result_of_an_earlier_run_is_not_taken_for_that_of_one_that_never_opened_its_directory(run_point):
    assert run_point(SAYS_DONE).has_succeeded
    run = run_point("train_sft.py: recipe.yaml: a mistake", opens=False, status="", code=0)
    assert not run.has_begun
    assert run.result is None
    assert not run.has_succeeded
    assert run.error() == "train_sft.py: recipe.yaml: a mistake"


def test_a_point_that_is_run_again_is_judged_by_its_new_result(run_point):
    assert run_point(SAYS_DONE).has_succeeded
    assert not run_point(SAYS_DONE, status="failed", message="why", code=0).has_succeeded
    assert run_point("").has_succeeded
