"""Damaged checkpoints, other settings, other data, other processes, a second run: one line, nothing lost."""

import os
import re
import shutil
import signal

import pytest

from sft.runs import checkpoints, run_directory
from tests.support.forked_runs import Kill, result

ZERO2 = ["--deepspeed", "ds_configs/zero2.json"]


@pytest.fixture(scope="module")
def stopped(runs, recipe, tmp_path_factory):
    """A run that was killed after checkpoint-6, and what an unbroken one ends with."""
    folder, unbroken = tmp_path_factory.mktemp("stopped") / "run", tmp_path_factory.mktemp("unbroken") / "run"
    assert runs.run([recipe, "--output_dir", unbroken], unbroken).codes == [0]
    for touch in range(20, 400, 5):
        shutil.rmtree(folder, ignore_errors=True)
        runs.run([recipe, "--output_dir", folder], folder, kill=Kill(touch))
        if [path.name for path in checkpoints.in_order(folder)] == ["checkpoint-3", "checkpoint-6"]:
            return folder, result(unbroken)
    raise AssertionError("no run had two checkpoints when it was killed")


@pytest.fixture
def copy(stopped, tmp_path):
    folder, expected = stopped
    shutil.copytree(folder, tmp_path / "run")
    return tmp_path / "run", expected


def flip(path, place: int | None = None):
    content = bytearray(path.read_bytes())
    content[len(content) // 2 if place is None else place] ^= 1
    path.write_bytes(content)


def cut(path):
    os.truncate(path, path.stat().st_size // 2)


DAMAGE = {
    "truncated adapter_model.safetensors": lambda folder: cut(folder / "adapter_model.safetensors"),
    "flipped byte in optimizer.pt": lambda folder: flip(folder / "optimizer.pt"),
    "half-written trainer_state.json": lambda folder: cut(folder / "trainer_state.json"),
    "missing rng_state.pth": lambda folder: (folder / "rng_state.pth").unlink(),
    "missing manifest.json": lambda folder: (folder / "manifest.json").unlink(),
}


@pytest.mark.long
@pytest.mark.parametrize("damage", DAMAGE)
def test_the_newest_whole_checkpoint_is_taken_and_the_end_is_the_same(runs, recipe, copy, outcome, damage):
    folder, expected = copy
    DAMAGE[damage](folder / "checkpoint-6")
    ended = runs.run([recipe, "--output_dir", folder], folder)
    assert ended.codes == [0], ended.err[-2000:]
    assert re.search(r"^skipped: .*checkpoint-6", ended.out, re.MULTILINE)
    assert "resuming from" in ended.out
    assert result(folder) == expected
    assert (folder / "broken-checkpoint-6").is_dir()
    outcome(f"{damage} in the newest checkpoint", "reported, older one used, damaged one kept aside, same end")


@pytest.mark.long
def test_where_no_checkpoint_is_whole_the_run_begins_anew_and_keeps_all_aside(runs, recipe, copy, tmp_path, outcome):
    folder, expected = copy
    for checkpoint in checkpoints.in_order(folder):
        flip(checkpoint / "adapter_model.safetensors")
    ended = runs.run([recipe, "--output_dir", folder], folder)
    assert ended.codes == [0]
    assert ended.out.count("no checkpoint to resume from: ") == 2
    assert result(folder) == expected
    assert len(checkpoints.in_order(tmp_path / "run.1")) == 2
    outcome("every checkpoint damaged", "reported, started anew, all kept aside in run.1, same end")


@pytest.mark.long
def test_other_settings_are_refused_and_listed_and_taken_where_that_is_wanted(runs, recipe, copy, outcome):
    folder, _ = copy
    other = [recipe, "--output_dir", folder, "--learning_rate", "5e-4"]
    ended = runs.run(other, folder)
    assert ended.codes == [2]
    assert "checkpoint-6: was written with other settings or data (learning_rate: 0.001 -> 0.0005)" in ended.err
    assert len(checkpoints.in_order(folder)) == 2
    ended = runs.run([*other, "--resume_anyway", "true"], folder)
    assert ended.codes == [0]
    assert "resuming nevertheless (resume_anyway): learning_rate: 0.001 -> 0.0005" in ended.out
    outcome("a setting changed since the checkpoint", "refused with a list; --resume_anyway resumes")


def test_other_data_under_the_same_name_are_refused(runs, write_recipe, train_file, tmp_path, outcome):
    data = tmp_path / "rows.jsonl"
    shutil.copyfile(train_file, data)
    folder = tmp_path / "run"
    recipe = write_recipe(train_file=str(data), save_strategy="steps", save_steps=2, max_steps=6)
    assert runs.run([recipe], folder, kill=Kill(40, signal=signal.SIGTERM)).codes == [75]
    data.write_bytes(data.read_bytes() + data.read_bytes().splitlines(keepends=True)[0])
    ended = runs.run([recipe], folder)
    assert ended.codes == [2]
    assert "was written with other settings or data (train_file: its content has changed)" in ended.err
    outcome("a row added to the data since the checkpoint", "refused with a list")


def test_another_model_under_the_same_name_is_refused(runs, write_recipe, tiny_model, tmp_path, outcome):
    model, folder = tmp_path / "model", tmp_path / "run"
    shutil.copytree(tiny_model, model)
    recipe = write_recipe(model_name_or_path=str(model), save_strategy="steps", save_steps=2, max_steps=6)
    assert runs.run([recipe], folder, kill=Kill(40, signal=signal.SIGTERM)).codes == [75]
    flip(model / "model.safetensors", -4)
    ended = runs.run([recipe], folder)
    assert ended.codes == [2]
    assert "was written with other settings or data (model_name_or_path: its content has changed)" in ended.err
    outcome("an adapter resumed on another base model", "refused with a list")


def test_a_model_with_a_missing_shard_is_refused_before_anything_is_loaded(
    runs, write_recipe, tiny_model, tmp_path, outcome
):
    model = tmp_path / "model"
    shutil.copytree(tiny_model, model)
    cut(model / "model.safetensors")
    ended = runs.run([write_recipe(model_name_or_path=str(model))], tmp_path / "run")
    assert ended.codes == [2]
    assert re.search(
        r"model\.safetensors: is [\d,]+ bytes long, and its header says [\d,]+: copy or download it again", ended.err
    )
    outcome("a base model's file cut short", "refused before loading, exit code 2")


def test_a_deepspeed_configuration_that_cannot_be_read_is_refused(runs, recipe, tmp_path, outcome):
    for number, (text, told) in enumerate([("{", "not JSON"), ('{"zero_optimisation": {}}', "did you mean")]):
        path = tmp_path / f"ds{number}.json"
        path.write_text(text)
        ended = runs.run([recipe, "--deepspeed", path, "--output_dir", tmp_path / "run"], tmp_path / "run")
        assert ended.codes == [2], ended.err[-1500:]
        assert told in ended.err
    outcome("an unreadable DeepSpeed configuration", "refused before loading, exit code 2")


@pytest.mark.long
def test_never_keeps_the_unfinished_run_aside(runs, recipe, copy, tmp_path):
    folder, expected = copy
    ended = runs.run([recipe, "--output_dir", folder, "--resume", "never"], folder)
    assert ended.codes == [0]
    assert "resuming from" not in ended.out
    assert result(folder) == expected
    assert len(checkpoints.in_order(tmp_path / "run.1")) == 2


@pytest.mark.long
def test_a_path_goes_on_from_that_checkpoint(runs, recipe, copy):
    folder, expected = copy
    ended = runs.run([recipe, "--output_dir", folder, "--resume", folder / "checkpoint-3"], folder)
    assert ended.codes == [0]
    assert "resuming from" in ended.out
    assert "checkpoint-3" in ended.out
    assert result(folder) == expected


def test_a_path_that_is_no_checkpoint_is_refused(runs, recipe, tmp_path):
    ended = runs.run([recipe, "--resume", tmp_path, "--output_dir", tmp_path / "run"], tmp_path / "run")
    assert ended.codes == [2]
    assert "has no manifest.json" in ended.err


@pytest.mark.long
def test_another_number_of_processes_is_refused(runs, recipe, tmp_path, outcome):
    folder = tmp_path / "run"
    arguments = [recipe, *ZERO2, "--output_dir", folder]
    runs.run(arguments, folder, processes=2, kill=Kill(120))
    assert checkpoints.in_order(folder)
    ended = runs.run(arguments, folder)
    assert ended.codes == [2]
    assert re.search(r"was written by 2 processes, and this run has 1: start it with as many", ended.err)
    outcome("ZeRO-2 of 2 processes resumed by 1", "refused, says how many it needs")


def test_a_second_run_on_one_run_directory_is_refused(runs, recipe, tmp_path, outcome):
    folder = tmp_path / "run"
    run_directory.lock(str(folder))
    ended = runs.run([recipe, "--output_dir", folder], folder)
    assert ended.codes == [2]
    assert f"another run (process {os.getpid()}) is writing there" in ended.err
    assert not folder.exists()
    outcome("two runs started on one run directory", "the second is refused")
