"""Checkpoints: whole or not there, rotated only when the new one stands, read as data alone."""

import json
import os
import re
import time

import pytest
import torch
from transformers import TrainerCallback

from sft.core.errors import RunFailed, UserError
from sft.runs import checkpoints
from sft.training.plan import make_plan
from tests.support.malicious_pickle import Call

INPUTS = {"lora_r": 8}


def write(run, step: int, *, processes: int = 1):
    """Write a small checkpoint as the trainer does."""
    folder = checkpoints.staging_dir(run) / f"checkpoint-{step}"
    (folder / "global_step").mkdir(parents=True)
    (folder / "adapter_model.safetensors").write_bytes(bytes(range(256)) * step)
    (folder / "global_step" / "optimizer.pt").write_bytes(b"state")
    return checkpoints.publish(run, step, processes, INPUTS)


def test_what_was_published_is_whole_and_says_what_it_is(tmp_path):
    folder = write(tmp_path, 3, processes=2)
    assert checkpoints.verify(folder) == checkpoints.Checkpoint(folder, 3, 2, INPUTS)
    files = json.loads((folder / "manifest.json").read_text())["files"]
    assert files.keys() == {"adapter_model.safetensors", "global_step/optimizer.pt"}
    assert files["adapter_model.safetensors"]["bytes"] == 768


def flip(path):
    content = bytearray(path.read_bytes())
    content[100] ^= 1
    path.write_bytes(content)


DAMAGE = {
    "a flipped byte": (lambda folder: flip(folder / "adapter_model.safetensors"), "SHA-256 differs"),
    "a file cut short": (
        lambda folder: os.truncate(folder / "adapter_model.safetensors", 300),
        r"is 300 bytes and was 768",
    ),
    "a file missing": (lambda folder: (folder / "global_step" / "optimizer.pt").unlink(), "is missing"),
    "no manifest": (lambda folder: (folder / "manifest.json").unlink(), "has no manifest.json"),
    "half a manifest": (lambda folder: os.truncate(folder / "manifest.json", 40), "cannot be read"),
    "another kind of manifest": (lambda folder: (folder / "manifest.json").write_text("[]"), "cannot be read"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_checkpoint_is_passed_over_for_an_older_one_and_told(tmp_path, damage):
    older, newer = write(tmp_path, 1), write(tmp_path, 3)
    do, told = DAMAGE[damage]
    do(newer)
    found, skipped = checkpoints.latest_valid(tmp_path)
    assert found.folder == older
    assert len(skipped) == 1
    assert re.search(rf"checkpoint-3.*{told}", skipped[0])


def test_a_manifest_cannot_name_files_outside_its_folder(tmp_path):
    folder = write(tmp_path, 3)
    record = json.loads((folder / "manifest.json").read_text())
    (tmp_path / "outside").write_bytes(b"")
    record["files"]["../outside"] = {"bytes": 0, "sha256": checkpoints.file_hash(tmp_path / "outside")}
    (folder / "manifest.json").write_text(json.dumps(record))
    with pytest.raises(UserError, match=r"names \.\./outside, which lies elsewhere"):
        checkpoints.verify(folder)


def test_a_checkpoint_that_is_not_there_is_told_as_such_with_those_that_are(tmp_path):
    with pytest.raises(UserError, match="checkpoint-5: no such checkpoint; beside it there is none"):
        checkpoints.verify(tmp_path / "checkpoint-5")
    there = write(tmp_path, 3)
    with pytest.raises(UserError, match=f"checkpoint-5: no such checkpoint; beside it there is {there}"):
        checkpoints.verify(tmp_path / "checkpoint-5")


def test_rotation_keeps_the_newest_and_the_best(tmp_path):
    for step in (2, 4, 6, 8):
        write(tmp_path, step)
        time.sleep(0.01)
        checkpoints.rotate(tmp_path, 2, [tmp_path / "checkpoint-2"])
    assert [folder.name for folder in checkpoints.in_order(tmp_path)] == ["checkpoint-2", "checkpoint-8"]


@pytest.mark.parametrize(
    ("limit", "best", "left"),
    [
        (1, 100, [100, 500]),
        (1, None, [500]),
        (2, 100, [100, 500]),
        (2, 400, [400, 500]),
        (0, 100, [*range(100, 600, 100)]),
    ],
)
def test_what_was_just_written_is_never_removed_and_the_best_stays(tmp_path, limit, best, left):
    for step in range(100, 600, 100):
        write(tmp_path, step)
        time.sleep(0.01)
        checkpoints.rotate(tmp_path, limit, [tmp_path / f"checkpoint-{best}"] if best and best <= step else [])
        assert (tmp_path / f"checkpoint-{step}").is_dir()
    assert [int(folder.name.removeprefix("checkpoint-")) for folder in checkpoints.in_order(tmp_path)] == left


def test_a_run_keeps_the_best_and_the_newest_as_its_plan_says(make_trainer, tmp_path):
    class FirstIsBest(TrainerCallback):
        def on_step_end(self, args, state, control, **_):
            state.best_global_step = 1

    keys = {"save_strategy": "steps", "save_steps": 1, "save_total_limit": 1, "max_steps": 3}
    trainer, card = make_trainer(**keys, keep_best="identity", identity_name="Dali", eval_prompts_steps=2)
    assert "; the newest and the best stay" in make_plan(trainer.recipe, card).lines()[1]
    trainer.add_callback(FirstIsBest())
    trainer.train()
    assert [folder.name for folder in checkpoints.in_order(tmp_path / "run")] == ["checkpoint-1", "checkpoint-3"]


def test_rotation_goes_by_when_a_checkpoint_was_written_not_by_its_step(tmp_path):
    """A run that went on from an older checkpoint passes steps again: its new checkpoint must not be the one to go."""
    for step in (100, 300, 200):
        write(tmp_path, step)
        time.sleep(0.01)
    checkpoints.rotate(tmp_path, 1, [])
    assert [folder.name for folder in checkpoints.in_order(tmp_path)] == ["checkpoint-200"]


def test_without_a_limit_nothing_goes(tmp_path):
    for step in (1, 2, 3):
        write(tmp_path, step)
    checkpoints.rotate(tmp_path, None, [])
    assert len(checkpoints.in_order(tmp_path)) == 3


def test_tidying_takes_what_a_killed_run_left_and_keeps_damaged_checkpoints_aside(tmp_path):
    good, bad = write(tmp_path, 3), write(tmp_path, 6)
    flip(bad / "adapter_model.safetensors")
    (checkpoints.staging_dir(tmp_path) / "checkpoint-9").mkdir(parents=True)
    (tmp_path / ".removed-checkpoint-1").mkdir()
    (tmp_path / ".report.html.ab12cd_9").write_text("half")
    (tmp_path / "broken-checkpoint-6").mkdir()
    checkpoints.clean_up(tmp_path, good)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "broken-checkpoint-6",
        "broken-checkpoint-6.1",
        "checkpoint-3",
    ]
    checkpoints.verify(good)


def test_torch_load_runs_nothing_of_a_file_even_where_its_caller_would_let_it(tmp_path):
    torch.save(Call(os.mkdir, str(tmp_path / "mark")), tmp_path / "state.pt")
    refused = pytest.raises(UserError, match=r"checkpoint-3: a file in it asks for .*mkdir; nothing of it was run")
    with refused, checkpoints.read_as_data("checkpoint-3"):
        torch.load(tmp_path / "state.pt", weights_only=False)
    assert not (tmp_path / "mark").exists()
    torch.load(tmp_path / "state.pt", weights_only=False)
    assert (tmp_path / "mark").exists()  # the pickle was a real one


def test_a_checkpoint_without_the_part_of_another_machine_is_not_published(make_trainer, monkeypatch, tmp_path):
    trainer, _ = make_trainer(max_steps=1)
    trainer.train()
    # As where a second process has written to a disk of its own.
    monkeypatch.setattr(type(trainer.args), "world_size", property(lambda _: 2))
    with pytest.raises(RunFailed, match=r"step 1: the checkpoint lacks what processes \[1\] wrote: put output_dir"):
        trainer._save_checkpoint(trainer.model, None)
    assert not list((tmp_path / "run").glob("checkpoint-*"))
