"""The log of a run, whose figures add up, and its result, which says how it ended."""

import json
import math
from contextlib import suppress
from pathlib import Path

import pytest
from transformers import TrainerCallback

from sft.core.clock import ACTIVITIES, Clock
from sft.core.errors import RunFailed, Stopped, UserError
from sft.runs.run_files import RunResult, read_result
from sft.training.memory import peak_memory
from sft.training.plan import make_plan
from sft.training.progress import ProgressLog, ResultRecorder


def test_log_jsonl_has_every_figure_and_tokens_add_up(make_trainer, tmp_path, capsys):
    trainer, card = make_trainer(num_train_epochs=1, max_steps=-1, logging_steps=2)
    trainer.add_callback(ProgressLog(trainer))
    trainer.train()
    records = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records] == list(range(2, card.total_steps + 1, 2))
    tokens = [sum(trainer.train_dataset[index]["seq_lengths"]) for index in range(card.packs)]
    assert records[-1]["tokens"] == sum(tokens) if card.packs % 2 == 0 else records[-1]["tokens"] < sum(tokens)
    for record in records:
        assert record["loss"] > 0
        assert record["grad_norm"] > 0
        assert record["tokens_per_second"] > 0
        assert 0 < record["peak_memory_gib"] * 2**30 < 2 * peak_memory()
    assert records[-1]["eta_seconds"] <= records[0]["eta_seconds"]
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("step ")]
    assert len(lines) == len(records)
    assert all(word in lines[0] for word in ("loss", "lr", "grad norm", "tokens/s", "GiB", "left"))


def test_the_first_line_after_resuming_counts_the_tokens_since(make_trainer, tmp_path):
    keys = {"save_strategy": "steps", "save_steps": 3, "max_steps": 6, "logging_steps": 2}
    whole, _ = make_trainer(**keys)
    whole.add_callback(ProgressLog(whole))
    whole.train()
    trainer, _ = make_trainer(**keys)
    log = ProgressLog(trainer)
    trainer.add_callback(log)
    seconds = []
    log.on_log = lambda args, state, control, logs=None, **_: (
        seconds.append(log._step_seconds) or ProgressLog.on_log(log, args, state, control, logs=logs)
    )
    trainer.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-3"))
    records = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    first = next(record for record in records[3:] if record["step"] == 4)
    before = json.loads((tmp_path / "run" / "checkpoint-3" / "between_logs_0.json").read_text())["tokens"]
    assert first["tokens_per_second"] == pytest.approx((first["tokens"] - before) / seconds[0], rel=0.01)


def test_the_time_left_counts_evaluations_by_what_they_took_and_steps_by_what_they_took(make_trainer, monkeypatch):
    """Steps of a second, evaluations of a minute: ten of the ones and two of the others are to come after step 2."""
    now = [0.0]
    slow = Clock(lambda: now[0])
    monkeypatch.setattr("sft.training.progress.clock", slow)
    keys = {"max_steps": 12, "logging_steps": 2, "eval_prompts": ["Who are you?"], "eval_prompts_steps": 6}
    trainer, _ = make_trainer(**keys)

    class Passing(TrainerCallback):
        def on_train_begin(self, args, state, control, **_):
            with slow.spent_on("evaluation"):
                now[0] += 60

        def on_step_end(self, args, state, control, **_):
            now[0] += 1

    for callback in (ProgressLog(trainer), Passing()):
        trainer.add_callback(callback)
    trainer.train()
    log = [json.loads(line) for line in (Path(trainer.args.output_dir) / "log.jsonl").read_text().splitlines()]
    assert log[0]["step"] == 2
    assert log[0]["eta_seconds"] == 10 * 1 + 2 * 60


def test_a_loss_that_is_not_a_number_is_logged_as_such_in_valid_json(make_trainer, tmp_path):
    keys = {"max_grad_norm": 0, "logging_nan_inf_filter": False, "on_bad_step": "warn"}
    trainer, _ = make_trainer(max_steps=2, learning_rate=1e30, **keys)
    trainer.add_callback(ProgressLog(trainer))
    trainer.train()
    text = (tmp_path / "run" / "log.jsonl").read_text()
    last = json.loads(text.splitlines()[-1], parse_constant=lambda word: (_ for _ in ()).throw(ValueError(word)))
    assert last["loss"] in ("nan", "inf")
    assert not math.isfinite(float(last["loss"]))


@pytest.fixture
def ended(make_trainer, tmp_path):
    """Train two steps and let the run end by an exception, or none; returns its result."""

    def end(by: BaseException | None, **keys) -> RunResult | None:
        trainer, card = make_trainer(max_steps=2, **keys)
        (tmp_path / "run" / "recipe.yaml").write_text("max_steps: 2\n")
        with suppress(BaseException), ResultRecorder(tmp_path / "run", make_plan(trainer.recipe, card)) as result:
            trainer.add_callback(result)
            trainer.train()
            if by:
                raise by
        return read_result(tmp_path / "run")

    return end


def test_a_run_that_went_through_is_done(ended):
    result = ended(None)
    assert (result.status, result.exit_code, result.message, result.final) == ("done", 0, None, "final")
    assert (result.step, result.total_steps) == (2, 2)
    assert result.peak_memory_gib == pytest.approx(peak_memory() / 2**30, abs=0.01)
    assert result.trainable_parameters == 16_384
    assert tuple(result.times) == ACTIVITIES


ENDS = [
    (RunFailed("why"), "failed", 3, "why"),
    (Stopped("why"), "stopped", 75, "why"),
    (UserError("why"), "mistake", 2, "why"),
    (KeyboardInterrupt(), "interrupted", 130, "stopped before training began; nothing was to be saved"),
    (ZeroDivisionError("why"), "bug", 1, "ZeroDivisionError: why"),
]


@pytest.mark.parametrize(("end", "status", "code", "message"), ENDS, ids=[status for _, status, _, _ in ENDS])
def test_a_run_that_ended_otherwise_says_how_and_why(tmp_path, end, status, code, message, monkeypatch):
    from types import SimpleNamespace

    (tmp_path / "recipe.yaml").write_text("max_steps: 9\n")
    plan = SimpleNamespace(total_steps=9, trainable=5)
    with pytest.raises(type(end)), ResultRecorder(tmp_path, plan, first_step=4):
        raise end
    result = read_result(tmp_path)
    assert (result.status, result.exit_code, result.message, result.final) == (status, code, message, None)
    assert (result.step, result.total_steps) == (4, 9)


def test_only_the_main_process_writes_the_result(ended, monkeypatch):
    monkeypatch.setattr("sft.training.progress.is_main_process", lambda: False)
    assert ended(None) is None


def test_a_result_that_cannot_be_written_does_not_hide_how_the_run_ended(tmp_path, capsys):
    from types import SimpleNamespace

    (tmp_path / "recipe.yaml").write_text("max_steps: 9\n")
    (tmp_path / "result.json").mkdir()
    with pytest.raises(RunFailed), ResultRecorder(tmp_path, SimpleNamespace(total_steps=9, trainable=5)):
        raise RunFailed("the loss is nan")
    assert "result.json was not written: " in capsys.readouterr().out
