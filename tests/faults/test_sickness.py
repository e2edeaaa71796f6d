"""Training that breaks while it runs: explained in one line, exit code 3, and the checkpoints before it stay."""

import json
import shutil

import pytest
from safetensors.torch import load_file, save_file

from sft.runs import checkpoints
from sft.runs.run_files import read_result
from tests.support.conversations import xtuner_row
from tests.support.forked_runs import Shortage


def test_a_loss_that_is_no_number(runs, recipe, tmp_path, outcome):
    folder = tmp_path / "run"
    flags = ["--learning_rate", "1e30", "--max_grad_norm", "1e30", "--save_steps", "1", "--output_dir", folder]
    ended = runs.run([recipe, *flags], folder)
    assert ended.codes == [3], ended.err[-2000:]
    assert "the loss is nan: lower learning_rate" in ended.err
    failed = read_result(folder)
    assert (failed.status, failed.exit_code, failed.final) == ("failed", 3, None)
    assert "the loss is nan: lower learning_rate" in failed.message
    assert 0 < failed.step < failed.total_steps == 10
    assert ended.err.count("train_sft.py: ") == 1
    assert "Traceback" not in ended.err
    checkpoints.verify(checkpoints.in_order(folder)[-1])
    outcome("the loss becomes NaN", "stopped within the step, exit code 3, last checkpoint kept")


def test_a_loss_that_explodes(runs, recipe, tmp_path, outcome):
    folder = tmp_path / "run"
    flags = ["--use_peft", "false", "--learning_rate", "3", "--max_steps", "40", "--warmup_steps", "20"]
    flags += ["--output_dir", folder]
    ended = runs.run([recipe, *flags, "--save_steps", "100"], folder)
    assert ended.codes == [3], (ended.out[-1500:], ended.err[-2000:])
    assert "the loss has exploded" in ended.err
    outcome("the loss explodes", "stopped, exit code 3")


def test_gradients_that_are_all_zero(runs, recipe, tiny_model, tmp_path, outcome):
    """As of a head of zeros, through which nothing comes back."""
    folder, model = tmp_path / "run", shutil.copytree(tiny_model, tmp_path / "model")
    weights = load_file(model / "model.safetensors")
    weights["lm_head.weight"].zero_()
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})
    ended = runs.run([recipe, "--model_name_or_path", model, "--output_dir", folder], folder)
    assert ended.codes == [3], ended.err[-2000:]
    assert "step 1: all gradients are zero" in ended.err
    outcome("all gradients are zero", "stopped at step 1, exit code 3")


def test_a_learning_rate_that_never_rises(runs, recipe, tmp_path, outcome):
    folder = tmp_path / "run"
    flags = ["--warmup_steps", "400", "--output_dir", folder]
    ended = runs.run([recipe, *flags], folder)
    assert ended.codes == [3], ended.err[-2000:]
    assert "the learning rate never rises above 2.2e-05 in 10 steps" in ended.err
    assert runs.run([recipe, *flags, "--on_bad_step", "warn"], folder).codes == [0]
    outcome("a warm-up longer than the run", "stopped before step 1, exit code 3; on_bad_step: warn continues")


def test_a_batch_without_supervised_tokens(runs, write_recipe, tmp_path, outcome):
    data = tmp_path / "rows.jsonl"
    rows = [xtuner_row([("tell me more about it, please, " * 40, "Yes.")])] * 4
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    recipe = write_recipe(train_file=str(data), packing_strategy="wrapped", max_length=64)
    ended = runs.run([recipe], tmp_path / "run")
    assert ended.codes == [3], (ended.out[-500:], ended.err[-2000:])
    assert "this batch holds no supervised token" in ended.err
    outcome("a batch without supervised tokens", "stopped within the step, exit code 3")


@pytest.mark.long
def test_memory_that_does_not_suffice(runs, recipe, train_file, tmp_path, outcome):
    folder = tmp_path / "run"
    whole = runs.run([recipe, "--output_dir", folder], folder)
    shortage = Shortage(whole.touches[0] // 6, 1 << 20)
    rows = tmp_path / "rows.jsonl"
    rows.write_text(train_file.read_text(encoding="utf-8") * 6, encoding="utf-8")
    flags = ["--train_file", rows, "--per_device_train_batch_size", "240", "--output_dir", tmp_path / "short"]
    ended = runs.run([recipe, *flags], tmp_path / "short", shortage=shortage)
    assert ended.codes == [3], ended.err[-2000:]
    assert "out of memory with a batch of " in ended.err
    assert "set activation_checkpointing: true" in ended.err
    assert "Traceback" not in ended.err
    outcome("out of memory", "one line with the batch, the peak and what to change, exit code 3")


@pytest.mark.long
@pytest.mark.parametrize("kind", ["full", "read-only"])
def test_a_disk_that_takes_no_more(recipe, outcome, kind, small_disk):
    ended = small_disk(kind, [recipe, "--save_steps", "2"])
    if kind == "full":
        assert ended.returncode == 3, ended.stderr[-2000:]
        assert "the checkpoint could not be written" in ended.stderr
        assert "MiB were left; " in ended.stderr
        assert "is whole: make room" in ended.stderr
        outcome("disk full while saving", "exit code 3, older checkpoints whole, says what it needs")
    else:
        assert ended.returncode == 2, ended.stderr[-2000:]
        assert "output_dir: " in ended.stderr
        assert "name another folder" in ended.stderr
        outcome("read-only run directory", "refused before training, exit code 2")
    assert "Traceback" not in ended.stderr
