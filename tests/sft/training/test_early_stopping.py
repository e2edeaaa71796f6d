"""A run ends when the held-out loss improves no more, says why, and ends there too after a kill or in two processes."""

import json
import shutil

import pytest

from sft.config.load import load_recipe
from sft.core.errors import UserError
from sft.data.dataset import load_dataset
from sft.reports.report import report_page
from sft.runs import checkpoints
from sft.runs.run_files import read_result, read_run
from sft.training.plan import make_plan
from tests.support.conversations import CONVERSATIONS, xtuner_row
from tests.support.forked_runs import result

PATIENCE = 2
# A rate at which the training rows are soon known by heart, and others are answered worse and worse.
KEYS = {
    "learning_rate": 2e-2,
    "lora_dropout": 0.1,
    "max_steps": 60,
    "logging_steps": 2,
    "eval_strategy": "steps",
    "eval_steps": 3,
    "early_stopping_patience": PATIENCE,
    "save_strategy": "steps",
    "save_steps": 4,
    "eval_prompts": ["Who are you?"],
    "eval_prompts_generation": {"max_new_tokens": 2},
}


@pytest.fixture
def eval_file(tmp_path):
    path = tmp_path / "eval.jsonl"
    rows = [xtuner_row([(answer[::-1], question) for question, answer in rows]) for rows in CONVERSATIONS]
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return str(path)


@pytest.fixture
def recipe(write_recipe, eval_file):
    return write_recipe(eval_file=eval_file, **KEYS)


def stop_of(run) -> tuple[int, float, int]:
    """The step at which the held-out losses end a run; the best one, and its step."""
    best, best_step, worse = float("inf"), 0, 0
    for record in run.held_out:
        worse = worse + 1 if record["eval_loss"] >= best else 0
        if not worse:
            best, best_step = record["eval_loss"], record["step"]
        if worse == PATIENCE:
            return record["step"], best, best_step
    raise AssertionError("the losses fall to the end")


def test_the_run_ends_where_its_losses_say_and_is_explained(runs, recipe, tmp_path):
    ended = runs.run([recipe], tmp_path / "run")
    assert ended.codes == [0], ended.err[-2000:]
    run = read_run(tmp_path / "run")
    step, best, best_step = stop_of(run)
    assert run.held_out[-1]["step"] == step == run.last_step < 60
    assert run.answers[-1]["step"] == step
    why = f"The held-out loss has not been below {best:.4f}, that of step {best_step}, at 2 evaluations in a row"
    found = read_result(tmp_path / "run")
    assert (found.status, found.step, found.total_steps) == ("done", step, 60)
    assert found.stopped_early == f"{why} (early_stopping_patience)."
    page = report_page(run)
    assert f"Training stopped early, at step {step} of 60:" in page
    assert why in page
    assert f"step {step}: held-out loss " in ended.out
    assert f"{60 - step} steps saved" in ended.out
    checkpoints.verify(tmp_path / "run" / f"checkpoint-{step}")
    again = runs.run([recipe], tmp_path / "run")
    assert again.codes == [0], again.err[-2000:]


@pytest.mark.long
def test_the_count_is_resumed_to_the_same_stop(runs, recipe, tmp_path):
    """As a run is left that was killed: between the two evaluations that were worse, and after both."""
    arguments = [recipe, "--save_steps", "1"]
    assert runs.run(arguments, tmp_path / "run").codes == [0]
    unbroken = shutil.copytree(tmp_path / "run", tmp_path / "unbroken")
    expected, (step, _, _) = result(unbroken), stop_of(read_run(unbroken))
    for last in (step - 1, step):
        shutil.rmtree(tmp_path / "run" / "final")
        for checkpoint in checkpoints.in_order(tmp_path / "run"):
            if int(checkpoint.name.partition("-")[2]) > last:
                shutil.rmtree(checkpoint)
        again = runs.run(arguments, tmp_path / "run")
        assert again.codes == [0], again.err[-2000:]
        assert f"checkpoint-{last}" in again.out
        assert read_result(tmp_path / "run").step == step
        assert result(tmp_path / "run") == expected


@pytest.mark.long
def test_two_processes_end_at_the_same_step(runs, recipe, tmp_path):
    ended = runs.run([recipe, "--deepspeed", "ds_configs/zero2.json"], tmp_path / "run", processes=2)
    assert ended.codes == [0, 0], ended.err[-2000:]
    step, _, _ = stop_of(read_run(tmp_path / "run"))
    assert read_result(tmp_path / "run").step == step < 60


def test_the_best_weights_are_kept_where_the_stack_is_asked_for_them(runs, recipe, tmp_path):
    keys = ["--load_best_model_at_end", "true", "--save_steps", "3"]
    ended = runs.run([recipe, *keys], tmp_path / "run")
    assert ended.codes == [0], ended.err[-2000:]
    _, _, best_step = stop_of(read_run(tmp_path / "run"))
    weights = [tmp_path / "run" / name / "adapter_model.safetensors" for name in (f"checkpoint-{best_step}", "final")]
    assert weights[0].read_bytes() == weights[1].read_bytes()


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        (
            {"eval_file": None, "eval_strategy": "no", "eval_steps": None},
            "would change nothing by itself; add eval_file",
        ),
        ({"eval_strategy": "no"}, "early_stopping_patience: needs the held-out loss; leave out eval_strategy: no"),
        ({"greater_is_better": True}, "early_stopping_patience: of two losses the lower is the better"),
        ({"early_stopping_patience": 0}, "early_stopping_patience: 0 is not a number of evaluations"),
        (
            {"keep_best": "identity", "identity_name": "x", "eval_prompts_steps": 5},
            "early_stopping_patience: takes the best by the held-out loss, and keep_best by the name",
        ),
    ],
    ids=["no file", "no strategy", "greater", "0", "keep_best"],
)
def test_what_contradicts_it_is_refused_before_the_data_are_read(write_recipe, eval_file, keys, said):
    settings = {key: value for key, value in ({"eval_file": eval_file} | KEYS | keys).items() if value is not None}
    with pytest.raises(UserError, match=said):
        load_recipe([str(write_recipe(**settings))])


def test_a_patience_that_no_run_of_this_length_can_exhaust_is_refused(write_recipe, eval_file, tokenizer):
    recipe = load_recipe([str(write_recipe(eval_file=eval_file, **KEYS | {"early_stopping_patience": 20}))])
    with pytest.raises(UserError, match="early_stopping_patience: 20: the held-out loss is computed 20 times"):
        make_plan(recipe, load_dataset(recipe, tokenizer)[1])


@pytest.mark.long
def test_a_run_that_began_without_it_counts_from_where_it_is_resumed(runs, recipe, tmp_path):
    ended = runs.run([recipe, "--early_stopping_patience", "null", "--max_steps", "9"], tmp_path / "run")
    assert ended.codes == [0], ended.err[-2000:]
    shutil.rmtree(tmp_path / "run" / "final")
    again = runs.run([recipe, "--resume_anyway"], tmp_path / "run")
    assert again.codes == [0], again.err[-2000:]
    assert read_result(tmp_path / "run").stopped_early
    checkpoints.verify(checkpoints.in_order(tmp_path / "run")[-1])
