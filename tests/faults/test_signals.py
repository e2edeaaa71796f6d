"""Preemption: the step is finished and saved, the exit code says so, and the same command resumes."""

import re
import signal
import subprocess
import sys
import time

import pytest

from sft.core.paths import REPOSITORY
from sft.runs import checkpoints
from sft.runs.run_files import read_result
from tests.support.forked_runs import Kill, result
from tests.support.launching import hear_interrupts

ZERO2 = ["--deepspeed", "ds_configs/zero2.json"]
# By then training goes on: the files of a run's beginning are some twenty touches.
WHILE_TRAINING = 45


@pytest.mark.parametrize(
    "name", ["SIGTERM", *(pytest.param(name, marks=pytest.mark.long) for name in ("SIGINT", "SIGUSR1"))]
)
def test_a_signal_saves_the_step_and_the_run_goes_on_from_it(runs, recipe, tmp_path, outcome, name):
    unbroken, folder = tmp_path / "unbroken", tmp_path / "run"
    assert runs.run([recipe, "--output_dir", unbroken], unbroken).codes == [0]
    kill = Kill(WHILE_TRAINING, signal=getattr(signal, name))
    ended = runs.run([recipe, "--output_dir", folder], folder, kill=kill)
    assert ended.codes == [75], ended.err[-2000:]
    saved = checkpoints.in_order(folder)[-1]
    assert f"train_sft.py: stopped by {name}: {saved.name} of 10 steps is saved" in ended.err
    checkpoints.verify(saved)
    stopped = read_result(folder)
    assert (stopped.status, stopped.exit_code, stopped.final) == ("stopped", 75, None)
    assert f"checkpoint-{stopped.step}" == saved.name
    assert stopped.message in ended.err
    assert runs.run([recipe, "--output_dir", folder], folder).codes == [0]
    done = read_result(folder)
    assert (done.status, done.step, done.total_steps, done.message) == ("done", 10, 10, None)
    assert done.seconds > stopped.seconds
    assert result(folder) == result(unbroken)
    outcome(f"{name} while training", "step finished and saved, exit code 75, same end")


@pytest.mark.long
def test_the_checkpoint_a_signal_saves_is_there_beside_the_best_with_a_limit_of_one(runs, recipe, train_file, tmp_path):
    folder = tmp_path / "run"
    # The greatest loss is called the best, which the first step has.
    flags = {"eval_file": train_file, "eval_strategy": "steps", "eval_steps": 1, "save_steps": 1, "save_total_limit": 1}
    flags |= {"load_best_model_at_end": True, "greater_is_better": True, "output_dir": folder}
    arguments = [recipe, *(str(part) for key, value in flags.items() for part in (f"--{key}", value))]
    ended = runs.run(arguments, folder, kill=Kill(WHILE_TRAINING * 2, signal=signal.SIGTERM))
    assert ended.codes == [75], ended.err[-2000:]
    named = re.search(r"checkpoint-(\d+) of 10 steps is saved", ended.err)
    assert int(named[1]) > 1
    assert [path.name for path in checkpoints.in_order(folder)] == ["checkpoint-1", f"checkpoint-{named[1]}"]
    assert runs.run(arguments, folder).codes == [0]


@pytest.mark.long
def test_a_checkpoint_of_weights_alone_is_not_resumed(runs, recipe, tmp_path):
    folder = tmp_path / "run"
    arguments = [recipe, "--save_only_model", "true", "--output_dir", folder]
    ended = runs.run(arguments, folder, kill=Kill(WHILE_TRAINING, signal=signal.SIGTERM))
    assert ended.codes == [75], ended.err[-2000:]
    assert "it holds the weights alone (save_only_model), so no run can resume from it" in ended.err
    refused = runs.run(arguments, folder)
    assert refused.codes == [2]
    assert "holds the weights alone (save_only_model), and a run needs its optimizer's state to resume" in refused.err
    assert runs.run([*arguments, "--resume", "never"], folder).codes == [0]


@pytest.mark.long
def test_a_signal_to_one_of_two_processes_stops_both_at_the_same_step(runs, recipe, tmp_path, outcome):
    unbroken, folder = tmp_path / "unbroken", tmp_path / "run"
    arguments = [recipe, *ZERO2, "--output_dir"]
    assert runs.run([*arguments, unbroken], unbroken, processes=2).codes == [0, 0]
    kill = Kill(6, rank=1, signal=signal.SIGTERM)
    ended = runs.run([*arguments, folder], folder, processes=2, kill=kill)
    assert 75 in ended.codes
    assert read_result(folder).status == "stopped"
    assert runs.run([*arguments, folder], folder, processes=2).codes == [0, 0]
    assert result(folder) == result(unbroken)
    outcome("SIGTERM to one of two processes", "both save the same step, same end")


@pytest.mark.long
def test_a_second_interrupt_ends_at_once_and_loses_nothing_saved(write_recipe, tmp_path, outcome):
    """With a step that takes long, so that the second comes before the first is done with."""
    recipe = write_recipe(
        save_strategy="steps",
        save_steps=1,
        max_steps=500,
        per_device_train_batch_size=8,
        gradient_accumulation_steps=200,
    )
    process = subprocess.Popen(
        [sys.executable, "train_sft.py", recipe],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        preexec_fn=hear_interrupts,
    )
    folder = tmp_path / "run"
    deadline = time.monotonic() + 120
    while not checkpoints.in_order(folder) and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    time.sleep(1.2)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert process.returncode in (-signal.SIGINT, 75), output[-2000:]
    assert checkpoints.latest_valid(folder) == (checkpoints.verify(checkpoints.in_order(folder)[-1]), [])
    outcome("Ctrl-C twice", "ends at once, saved checkpoints whole")


def test_checkpoints_by_the_clock(runs, recipe, tmp_path):
    folder = tmp_path / "run"
    flags = ["--save_every_minutes", "1e-9", "--save_steps", "1000", "--save_total_limit", "20"]
    assert runs.run([recipe, *flags, "--output_dir", folder], folder).codes == [0]
    assert len(checkpoints.in_order(folder)) == 10
