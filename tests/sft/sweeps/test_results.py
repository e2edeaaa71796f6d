"""What came out of a sweep: numbers from a run's files, means and spreads, the efficient points."""

import json
import statistics

import pytest

from sft.core.errors import UserError
from sft.runs.run_files import RunResult, read_run, write_result
from sft.sweeps.grid import PlannedPoint
from sft.sweeps.results import Outcome, efficient_rows, read_record, read_results, rows_of, write_record
from tests.support.sweep_rows import results, row, scored


@pytest.fixture
def run_directory(tmp_path):
    """A run directory with the given losses and scores, as train_sft.py writes them."""

    def write(losses, scores=(), settings="max_steps: 40\n", tokens_per_second=100.0):
        (tmp_path / "final").mkdir()
        (tmp_path / "final" / "adapter_model.safetensors").write_bytes(b"x" * 1234)
        (tmp_path / "final" / "tokenizer.json").write_bytes(b"x" * 99)
        (tmp_path / "recipe.yaml").write_text(settings)
        log = [
            {"step": step, "loss": loss, "tokens": step * 10, "tokens_per_second": tokens_per_second}
            for step, loss in enumerate(losses, start=1)
        ]
        for name, records in (("log.jsonl", log), ("scores.jsonl", scores)):
            (tmp_path / name).write_text("".join(json.dumps(record) + "\n" for record in records))
        score = read_run(tmp_path).final_score
        write_result(tmp_path, RunResult("done", 0, None, 40, 40, "final", score, 74.0, {}, 1.99, 8192))
        return tmp_path

    return write


def test_the_final_loss_is_the_mean_of_the_last_tenth_of_the_logged_losses(run_directory):
    folder = run_directory([5.0] * 18 + [2.0, 1.0])
    assert read_results(folder).final_loss == 1.5


def test_of_few_losses_the_last_one_counts(run_directory):
    assert read_results(run_directory([3.0, 2.0, 1.0])).final_loss == 1.0


def test_a_last_loss_of_nan_gives_no_final_loss(run_directory):
    assert read_results(run_directory([3.0, "nan"])).final_loss is None


def test_weights_memory_and_speed_are_those_of_the_runs_files(run_directory):
    results = read_results(run_directory([2.0, 1.0]))
    assert (results.adapter_bytes, results.peak_memory_gib, results.tokens_per_second) == (1234, 1.99, 100.0)
    assert (results.trainable_parameters, results.minutes) == (8192, 1.23)


def test_the_score_is_the_last_one(run_directory):
    folder = run_directory([1.0], [{"step": 0, "identity": 0.0}, {"step": 4, "identity": 0.5, "ordinary_kept": 1.0}])
    results = read_results(folder)
    assert (results.identity, results.ordinary_kept, results.divergence) == (0.5, 1.0, None)


def test_it_is_known_where_scoring_did_not_ask_every_question(run_directory):
    folder = run_directory([1.0], [{"step": 4, "identity": 0.5, "identity_asked": 18, "identity_total": 32}])
    (outcome,) = outcomes = [Outcome("finished", read_results(folder))]
    assert (outcome.results.identity_asked, outcome.results.identity_total) == (18, 32)
    whole = Outcome("finished", results(identity=1.0, identity_asked=32, identity_total=32))
    old = Outcome("finished", results(identity=1.0, identity_asked=32))
    assert row(1, 8, outcomes=[*outcomes, whole]).partly_asked() == (18, 32)
    assert row(1, 8, outcomes=[whole, old]).partly_asked() is None


def test_where_nothing_was_scored_there_is_no_score(run_directory):
    assert read_results(run_directory([1.0])).identity is None


def test_a_run_that_left_no_result_has_no_results(run_directory):
    folder = run_directory([1.0])
    (folder / "result.json").unlink()
    with pytest.raises(UserError, match="holds no result of a run"):
        read_results(folder)


def test_with_keep_best_the_score_is_that_of_the_checkpoint_in_final(run_directory):
    scores = [{"step": step, "identity": share} for step, share in ((0, 0.0), (2, 0.9), (4, 0.7))]
    folder = run_directory([1.0], scores, "keep_best: identity\n")
    checkpoint = folder / "checkpoint-4"
    checkpoint.mkdir()
    (checkpoint / "trainer_state.json").write_text('{"best_global_step": 2}')
    assert read_run(folder).final_score["identity"] == 0.9


def test_a_record_counts_as_long_as_all_that_made_it_is_the_same(tmp_path):
    def point(**inputs) -> PlannedPoint:
        return PlannedPoint("lora_r=8", "lora_r=8", {"lora_r": "8"}, inputs, 8)

    found = results(identity=0.5, minutes=2.0)
    write_record(tmp_path, point(lora_r=8, train_file="abc"), found)
    assert read_record(tmp_path, point(lora_r=8, train_file="abc")) == (found, [])
    assert read_record(tmp_path, point(lora_r=8, train_file="abd")) == (None, ["train_file"])
    assert read_record(tmp_path, point(lora_r=8, train_file="abc", seed=1)) == (None, ["seed"])
    assert read_record(tmp_path, point(train_file="abc")) == (None, ["lora_r"])


@pytest.mark.parametrize("content", [None, "", '{"inputs": {}', "[]", '{"inputs": {}, "results": {"loss": 1}}'])
def test_a_folder_without_a_whole_record_is_not_finished(tmp_path, content):
    if content is not None:
        (tmp_path / "sweep_point.json").write_text(content)
    assert read_record(tmp_path, PlannedPoint("a", "a", {}, {}, 8)) == (None, [])


def test_seeds_share_a_row_with_their_mean_and_standard_deviation():
    points = [PlannedPoint(name, "lora_r=8", {}, {}, 8) for name in ("lora_r=8", "lora_r=8,seed=43", "c")]
    shares = (0.5, 0.7, 0.9)
    outcomes = {
        point.name: Outcome("finished", results(identity=share)) for point, share in zip(points, shares, strict=True)
    }
    (found,) = rows_of(points, outcomes)
    assert found.mean("identity") == pytest.approx(0.7)
    assert found.spread("identity") == pytest.approx(statistics.stdev(shares))
    assert found.status == "finished"
    outcomes["c"] = Outcome("failed", problem="no memory")
    (found,) = rows_of(points, outcomes)
    assert (found.status, found.problem, len(found.results)) == ("2 finished, 1 failed", "no memory", 2)


def test_efficient_points_are_those_that_no_other_beats_in_cost_and_score():
    rows = scored((8, 0.5), (16, 0.8), (32, 0.7), (64, 0.8), (4, 0.5), (16, 0.6))
    assert [found.number for found in efficient_rows(rows)] == [2, 5]


def test_where_all_cost_the_same_parameters_time_is_the_cost():
    rows = [
        row(number, 8, {"identity": share, "minutes": minutes})
        for number, share, minutes in ((1, 0.5, 1.0), (2, 0.9, 3.0), (3, 0.6, 4.0))
    ]
    assert [found.number for found in efficient_rows(rows)] == [1, 2]


def test_without_scores_the_lower_loss_is_the_better():
    rows = [row(1, 8, {"final_loss": 1.0}), row(2, 16, {"final_loss": 1.2}), row(3, 32, {"final_loss": 0.9})]
    assert [found.number for found in efficient_rows(rows)] == [1, 3]
