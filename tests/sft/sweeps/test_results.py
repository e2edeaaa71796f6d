"""What a sweep says: numbers from a run's files, means and spreads, the efficient points, the sentence."""

import json
import math
import statistics

import pytest

from sft.core.errors import UserError
from sft.runs.run_files import RunResult, read_run, write_result
from sft.sweeps.grid import PlannedPoint
from sft.sweeps.page import console_table
from sft.sweeps.results import (
    Outcome,
    Results,
    Row,
    efficient_rows,
    read_record,
    read_results,
    rows_of,
    share_error,
    summary_sentence,
    write_record,
)


def results(**known) -> Results:
    nothing = dict.fromkeys(Results.__dataclass_fields__) | {"adapter_bytes": 0, "minutes": 1.0}
    return Results(**nothing | known)


def row(number: int, rank: int | None, *runs: dict, name: str | None = None) -> Row:
    """A row with one finished run for each mapping; a rank costs a thousand parameters."""
    cost = {"trainable_parameters": rank * 1000} if rank else {}
    outcomes = [Outcome("finished", results(**cost | run)) for run in runs]
    return Row(number, name or f"lora_r={rank}", {}, rank, outcomes)


def scored(*ranks_and_shares: tuple[int, float], asked: int = 32) -> list[Row]:
    return [
        row(number, rank, {"identity": share, "identity_asked": asked})
        for number, (rank, share) in enumerate(ranks_and_shares, start=1)
    ]


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
    assert summary_sentence(rows) == (
        "Smallest rank within noise of the best final loss: lora_r 32, which is the best itself (lora_r=32: 0.9000). "
        "One run a point says nothing about noise in the loss; --seeds 3 does."
    )


def test_the_sentence_names_the_smallest_rank_that_questions_cannot_tell_from_the_best():
    noise = share_error(0.9375, 32)
    assert 0.03125 < noise < 0.0625  # one question of 32 is within it, two are not
    assert summary_sentence(scored((8, 0.875), (16, 0.9063), (32, 0.9375), (64, 0.9375))) == (
        "Smallest rank within noise of the best identity score: lora_r 16 (lora_r=16: 90.6%; the best, lora_r=32: "
        f"93.8%). The noise is {noise:.1%}, the standard error of a share of 32 questions."
    )


@pytest.mark.parametrize(("small", "told"), [(0.625, True), (0.9583, False)])
def test_the_sentence_tells_where_a_rank_as_good_leaves_more_of_the_rest(small, told):
    rows = [
        row(1, 4, {"identity": 0.9375, "identity_asked": 32, "ordinary_kept": small}),
        row(2, 64, {"identity": 0.9688, "identity_asked": 32, "ordinary_kept": 0.9583}),
        row(3, 99, {"identity": 0.5, "identity_asked": 32, "ordinary_kept": 1.0}),
    ]
    assert "lora_r 4 (lora_r=4: 93.8%" in summary_sentence(rows)
    kept = "But lora_r=4 keeps the name out of 62.5% of the ordinary answers, and lora_r=64, within noise too, out of"
    assert (kept in summary_sentence(rows)) == told
    assert ("But" in summary_sentence(rows)) == told


def test_with_seeds_the_noise_is_the_spread_of_the_best_point():
    rows = [
        row(1, 8, *({"identity": share, "identity_asked": 32} for share in (0.65, 0.75, 0.85))),
        row(2, 16, *({"identity": share, "identity_asked": 32} for share in (0.7, 0.8, 0.9))),
    ]
    assert "lora_r 8 (lora_r=8: 75%; the best, lora_r=16: 80%)" in summary_sentence(rows)
    assert "The noise is 10%, the standard deviation over the best point's seeds." in summary_sentence(rows)


def test_seeds_that_agree_leave_the_error_of_the_questions():
    rows = [row(1, 8, *({"identity": 1.0, "identity_asked": 32} for _ in range(3)))]
    noise = f"{share_error(1.0, 32):.1%}"
    assert (
        f"The noise is {noise}, the standard error of a share of 32 questions, which is more than"
        in summary_sentence(rows)
    )


def test_where_only_other_settings_differ_the_sentence_names_the_best_and_its_equals():
    rows = [
        row(number, 8, {"identity": share, "identity_asked": 32}, name=name)
        for number, share, name in ((1, 0.5, "learning_rate=1e-4"), (2, 1.0, "learning_rate=2e-4"), (3, 0.97, "c"))
    ]
    assert summary_sentence(rows).startswith("Best identity score: 100% by learning_rate=2e-4; within noise of it: c. ")


def test_where_the_name_was_never_learned_no_rank_is_recommended():
    assert summary_sentence(scored((8, 0.0), (16, 0.0))) == "No point learned the name: the best identity score is 0%."
    owned = [row(1, 8, {"identity": 0.0, "assistant_of": 0.9}), row(2, 16, {"identity": 0.0, "assistant_of": 0.5})]
    assert summary_sentence(owned).endswith("0%; up to 90% of the answers say that the model is its assistant.")


def test_before_anything_has_finished_the_sentence_says_so():
    assert summary_sentence([Row(1, "lora_r=8", {}, 8, [Outcome()])]) == "No point has finished."
    assert summary_sentence([]) == "No point has finished."


def test_the_error_of_a_share_is_that_of_agresti_and_coull_and_never_nothing():
    assert share_error(0.5, 96) == pytest.approx(math.sqrt(0.25 / 100))
    assert share_error(1.0, 32) == pytest.approx(math.sqrt((34 / 36) * (2 / 36) / 36))


def test_shares_of_which_not_every_question_was_asked_are_marked(run_directory):
    score = {"step": 4, "identity": 0.0, "identity_asked": 18, "identity_total": 32, "is_complete": False}
    found = read_results(run_directory([1.0], [score]))
    assert (found.identity, found.asked_in_part) == (0.0, "18 of 32")
    partial = row(1, 8, {"identity": 0.0, "identity_asked": 18, "identity_total": 32})
    whole = row(2, 16, {"identity": 0.5, "identity_asked": 32, "identity_total": 32})
    older = row(3, 32, {"identity": 0.5, "identity_asked": 32})
    said = summary_sentence([partial, whole, older])
    assert said.endswith(" Not every identity question was answered in score_seconds: lora_r=8 18 of 32.")
    assert "score_seconds" not in summary_sentence([whole, older])
    cells = console_table([partial, whole, older]).columns[1]._cells
    assert cells == ["0.0% (18 of 32)", "50.0%", "50.0%"]
