"""Loss, held-out loss and scores reach every tracker by the trainer's own log; the run's own log stays as it was."""

import json
import sqlite3

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from sft.runs.run_files import read_run
from tests.support.conversations import CONVERSATIONS, xtuner_row

KEYS = {
    "max_steps": 6,
    "logging_steps": 2,
    "eval_strategy": "steps",
    "eval_steps": 3,
    "eval_prompts_steps": 2,
    "eval_prompts": ["Who are you?"],
    "eval_prompts_generation": {"max_new_tokens": 2},
    "project": "黄大力",
    "report_to": ["trackio", "tensorboard"],
}
SCORES = {"eval/identity": "identity", "eval/old_name": "old_name", "eval/divergence": "divergence"}


@pytest.fixture
def recipe(write_recipe, tmp_path):
    (tmp_path / "questions.yaml").write_text('identity: ["Who?"]\nordinary: ["2+2?"]\ntexts: [Paris is big.]\n')
    rows = "".join(json.dumps(xtuner_row(row), ensure_ascii=False) + "\n" for row in CONVERSATIONS[:2])
    (tmp_path / "eval.jsonl").write_text(rows, encoding="utf-8")
    files = {"score_file": str(tmp_path / "questions.yaml"), "eval_file": str(tmp_path / "eval.jsonl")}
    return write_recipe(identity_name="黄大力", **files, **KEYS)


def test_trackio_and_tensorboard_have_what_the_run_wrote_down(runs, recipe, tmp_path):
    store = tmp_path / "trackio"
    ended = runs.run([recipe], tmp_path / "run", environment={"TRACKIO_DIR": str(store)})
    assert ended.codes == [0], ended.err[-3000:]
    run = read_run(tmp_path / "run")
    expected = {
        "train/loss": {record["step"]: record["loss"] for record in run.log},
        "eval/loss": {record["step"]: record["eval_loss"] for record in run.held_out},
        **{tag: {record["step"]: record[key] for record in run.scores} for tag, key in SCORES.items()},
    }
    assert [len(curve) for curve in expected.values()] == [3, 2, 4, 4, 4]
    for found in (of_trackio(store, expected), of_tensorboard(tmp_path / "run", expected)):
        for tag, curve in expected.items():
            assert found[tag] == pytest.approx(curve), tag


def of_trackio(store, tags) -> dict[str, dict[int, float]]:
    """What trackio's own file holds, by tag and step."""
    (database,) = store.glob("*.db")
    with sqlite3.connect(database) as connection:
        logs = [json.loads(metrics) for (metrics,) in connection.execute("SELECT metrics FROM metrics")]
    return {tag: {log["train/global_step"]: log[tag] for log in logs if tag in log} for tag in tags}


def of_tensorboard(folder, tags) -> dict[str, dict[int, float]]:
    (path,) = {file.parent for file in folder.rglob("events.out.tfevents.*")}
    events = EventAccumulator(str(path)).Reload()
    return {tag: {scalar.step: scalar.value for scalar in events.Scalars(tag)} for tag in tags}


def test_the_runs_own_log_is_the_same_with_scores_and_without(make_trainer, recipe, tmp_path):
    from sft.evaluation.score_eval import ScoreEval
    from sft.training.progress import ProgressLog

    logs = []
    for scores in (False, True):
        settings = {"identity_name": "黄大力", "score_file": str(tmp_path / "questions.yaml"), "eval_prompts_steps": 2}
        trainer, _ = make_trainer(max_steps=6, logging_steps=2, lora_dropout=0.1, **settings)
        (trainer.run_directory / "log.jsonl").unlink(missing_ok=True)
        trainer.add_callback(ProgressLog(trainer))
        if scores:
            trainer.add_callback(ScoreEval(trainer))
        trainer.train()
        lines = (trainer.run_directory / "log.jsonl").read_text(encoding="utf-8").splitlines()
        kept = ("step", "loss", "learning_rate", "grad_norm", "token_accuracy", "tokens")
        logs.append([[json.loads(line)[key] for key in kept] for line in lines])
    assert logs[0] == logs[1]
    assert len(logs[0]) == 3
    assert [entry["step"] for entry in trainer.state.log_history if "eval_identity" in entry] == [0, 2, 4, 6]
