"""What a run left is read back as it was written; what is damaged is skipped and reported."""

import json

import pytest

from sft.runs.run_files import RunResult, is_run_directory, read_plan, read_result, read_run, write_json, write_result
from tests.support.fake_run import write_run

RESULT = RunResult(
    status="failed",
    exit_code=3,
    message="step 7: 损失 is NaN",
    step=6,
    total_steps=10,
    final=None,
    score={"step": 5, "identity": 0.5},
    seconds=12.5,
    times={"training": 12.5},
    peak_memory_gib=1.25,
    trainable_parameters=8192,
)


def test_plan_and_result_are_read_as_they_were_written(tmp_path):
    folder = write_run(tmp_path / "run")
    assert (read_plan(folder), read_result(folder)) == ({}, None)
    write_json(folder / "plan.json", {"total_steps": 10})
    write_result(folder, RESULT)
    run = read_run(folder)
    assert run.plan == read_plan(folder) == {"total_steps": 10}
    assert run.result == read_result(folder) == RESULT
    assert run.problems == []


def test_a_result_of_before_runs_told_why_they_stopped_early_is_read(tmp_path):
    write_result(tmp_path, RESULT)
    content = json.loads((tmp_path / "result.json").read_text(encoding="utf-8"))
    del content["stopped_early"]
    write_json(tmp_path / "result.json", content)
    assert read_result(tmp_path) == RESULT


def test_a_value_of_a_later_version_is_ignored(tmp_path):
    write_result(tmp_path, RESULT)
    content = json.loads((tmp_path / "result.json").read_text(encoding="utf-8"))
    write_json(tmp_path / "result.json", content | {"more": 1})
    assert read_result(tmp_path) == RESULT


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("", "result.json is damaged and was skipped"),
        ('{"status": "done"', "result.json is damaged and was skipped"),
        ("[]", "result.json is damaged and was skipped"),
        ('{"status": "done"}', "result.json lacks exit_code, message, step"),
    ],
)
def test_a_damaged_result_is_none_and_reported(tmp_path, content, problem):
    folder = write_run(tmp_path / "run")
    (folder / "result.json").write_text(content)
    assert read_result(folder) is None
    run = read_run(folder)
    assert run.result is None
    assert len(run.problems) == 1
    assert run.problems[0].en.startswith(problem)


def test_a_damaged_plan_is_reported(tmp_path):
    folder = write_run(tmp_path / "run")
    (folder / "plan.json").write_text('{"total')
    assert [problem.en for problem in read_run(folder).problems] == ["plan.json is damaged and was skipped"]


def test_the_score_of_the_final_weights_is_the_last_or_that_of_the_best_step(tmp_path):
    folder = write_run(tmp_path / "run", steps=8, keep_best="identity")
    assert read_run(folder).final_score["step"] == 8
    (folder / "checkpoint-8").mkdir()
    (folder / "checkpoint-8" / "trainer_state.json").write_text('{"best_global_step": 4}')
    assert read_run(folder).final_score["step"] == 4
    assert read_run(write_run(tmp_path / "unscored", identity_name=None)).final_score is None


def test_a_run_directory_is_told_by_its_recipe(tmp_path):
    assert is_run_directory(write_run(tmp_path / "run"))
    assert not is_run_directory(tmp_path)
