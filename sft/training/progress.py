"""Shows and records how training goes: a line every `logging_steps`, a bar, `log.jsonl`; at its end `result.json`.

In: the trainer's events, and what ends the run. Out: text and JSON, from the main process only. Knows nothing about the
model.
"""

import json
import math
import time
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from transformers import TrainerCallback

from sft.core.clock import ACTIVITIES, clock
from sft.core.console import console, is_main_process, say
from sft.core.errors import UserError
from sft.core.exit_codes import DONE, FAILED, STATUSES, describe_exit
from sft.core.text import one_line_message
from sft.runs import run_files
from sft.runs.run_files import RunResult
from sft.runs.verdict import verdict_on
from sft.training.memory import peak_memory
from sft.training.plan import Plan, evaluation_steps

if TYPE_CHECKING:
    from trl import SFTTrainer


class ProgressLog(TrainerCallback):
    """Writes `log.jsonl` and one readable line per log; tokens/s counts time inside steps only."""

    def __init__(self, trainer: "SFTTrainer"):
        self.trainer = trainer
        self.path = Path(trainer.args.output_dir) / run_files.LOG
        self.bar = None
        self._first_step = 0
        self._step_started = 0.0
        self._step_seconds = 0.0
        self._tokens = -1  # until the first step; those that were trained on by the last log line

    def on_train_begin(self, args, state, control, **_):
        self._spent_before, self._first_step = clock.seconds(), state.global_step
        if state.is_world_process_zero and console.is_terminal and not args.disable_tqdm:
            columns = (TextColumn("training"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
            self.bar = Progress(*columns, console=console, transient=True)
            self.bar.add_task("training", total=state.max_steps, completed=state.global_step)
            self.bar.start()

    def on_step_begin(self, args, state, control, **_):
        self._step_started = time.perf_counter()
        if self._tokens < 0:  # a run that resumes has those of the part before
            self._tokens = int(self.trainer._total_train_tokens)

    def on_step_end(self, args, state, control, **_):
        self._step_seconds += time.perf_counter() - self._step_started
        if self.bar:
            self.bar.update(self.bar.task_ids[0], completed=state.global_step)

    def on_log(self, args, state, control, logs=None, **_):
        if not state.is_world_process_zero:
            return
        if "loss" in logs:
            record = self._record(state, logs)
            self._write(record)
            say(_line(record))
        elif "eval_loss" in logs:
            record = {"step": state.global_step, "eval_loss": logs["eval_loss"]}
            self._write(record | {"eval_token_accuracy": round(logs["eval_mean_token_accuracy"], 4)})
            say(f"step {state.global_step}: held-out loss {logs['eval_loss']:.4f}")

    def _write(self, record: dict) -> None:
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps({key: _as_json(value) for key, value in record.items()}) + "\n")

    def on_train_end(self, args, state, control, **_):
        if self.bar:
            self.bar.stop()

    def _record(self, state, logs: dict) -> dict:
        tokens = int(logs.get("num_tokens", 0))
        record = {
            "step": state.global_step,
            "max_steps": state.max_steps,
            "epoch": round(logs["epoch"], 4),
            "loss": logs["loss"],
            "learning_rate": logs["learning_rate"],
            "grad_norm": logs.get("grad_norm", math.nan),
            "token_accuracy": round(logs["mean_token_accuracy"], 4),
            "tokens": tokens,
            "tokens_per_second": round((tokens - self._tokens) / max(self._step_seconds, 1e-9), 1),
            "peak_memory_gib": round(peak_memory() / 2**30, 2),
            "eta_seconds": round(self._seconds_left(state)),
        }
        self._tokens, self._step_seconds = tokens, 0.0
        return record

    def _seconds_left(self, state) -> float:
        """For the steps to come, as long as those of this process, and the evaluations, as long as those of the run."""
        spent = clock.seconds()
        here = {activity: seconds - self._spent_before[activity] for activity, seconds in spent.items()}
        a_step = (here["total"] - here["evaluation"]) / max(state.global_step - self._first_step, 1)
        planned = evaluation_steps(self.trainer.recipe, state.max_steps)
        done = sum(step <= state.global_step for step in planned)
        an_evaluation = spent["evaluation"] / done if done else 0.0
        return a_step * (state.max_steps - state.global_step) + an_evaluation * (len(planned) - done)


class ResultRecorder(TrainerCallback):
    """Writes `result.json` when what it surrounds has ended, by an exception or not.

    As a callback of the trainer it learns how far the run came; `first_step` is that of the checkpoint it resumes from.
    """

    def __init__(self, folder: Path, plan: Plan, first_step: int = 0):
        self.folder, self.plan = folder, plan
        self.step, self.total_steps = first_step, plan.total_steps

    def __enter__(self) -> "ResultRecorder":
        return self

    def __exit__(self, _, end: BaseException | None, __) -> None:
        self.record(end)

    def on_train_begin(self, args, state, control, **_):
        self.step, self.total_steps = state.global_step, state.max_steps

    def on_step_end(self, args, state, control, **_):
        self.step = state.global_step

    def record(self, end: BaseException | None) -> None:
        """Write how the run ended: by an exception, or done (None). A file that cannot be written is only a warning."""
        if not is_main_process():
            return
        code, message = describe_exit(end) if end else (DONE, None)
        seconds = clock.seconds()
        try:
            run = run_files.read_run(self.folder)
            result = RunResult(
                status=STATUSES.get(code, STATUSES[FAILED]),
                exit_code=code,
                message=message,
                step=self.step,
                total_steps=self.total_steps,
                final=run_files.FINAL if code == DONE else None,
                score=run.final_score,
                seconds=seconds["total"],
                times={activity: seconds[activity] for activity in ACTIVITIES},
                peak_memory_gib=round(peak_memory() / 2**30, 2),
                trainable_parameters=self.plan.trainable,
                stopped_early=run.stopped_early.en if run.stopped_early and code == DONE else None,
            )
            run.result = result
            result = replace(result, verdict=verdict_on(run).to_dict())
            run_files.write_result(self.folder, result)
        except (UserError, OSError) as problem:
            say(f"{run_files.RESULT} was not written: {one_line_message(problem)}", style="yellow")


def _line(record: dict) -> str:
    return (
        f"step {record['step']}/{record['max_steps']}  epoch {record['epoch']:.2f}  loss {record['loss']:.4f}  "
        f"lr {record['learning_rate']:.2e}  grad norm {record['grad_norm']:.3f}  "
        f"{record['tokens_per_second']:,.0f} tokens/s  {record['peak_memory_gib']:.1f} GiB  "
        f"{timedelta(seconds=record['eta_seconds'])} left"
    )


def _as_json(value: float) -> float | str:
    """JSON has no NaN or infinity: such a loss or norm is kept as text, so that it is not taken for a number."""
    return value if math.isfinite(value) else str(value)
