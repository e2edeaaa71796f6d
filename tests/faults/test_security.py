"""Pickles that would do harm, in every place a path can point to: none of them runs, and the refusal is one line."""

import json
import os
import shutil
import signal

import pytest
import torch
from safetensors.torch import load_file

from sft.config.load import load_recipe
from sft.core.errors import UserError
from sft.core.files import file_hash
from sft.models.loading import load_model
from sft.runs import checkpoints
from tests.support.forked_runs import Kill
from tests.support.malicious_pickle import Call

ZERO2 = ["--deepspeed", "ds_configs/zero2.json"]


def plant(file, mark) -> None:
    """Put the pickle in the place of a file, and into the manifest, as somebody would who means harm."""
    torch.save({"state": Call(os.mkdir, str(mark))}, file)
    folder = next(parent for parent in file.parents if parent.name.startswith("checkpoint-"))
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"][str(file.relative_to(folder))] = {"bytes": file.stat().st_size, "sha256": file_hash(file)}
    (folder / "manifest.json").write_text(json.dumps(manifest))


@pytest.fixture(
    scope="module", params=[pytest.param([], id="alone"), pytest.param(ZERO2, id="ZeRO-2", marks=pytest.mark.long)]
)
def stopped(request, runs, recipe, tmp_path_factory):
    """A run that was stopped between two steps, with or without DeepSpeed."""
    folder = tmp_path_factory.mktemp("stopped") / "run"
    arguments = [recipe, *request.param, "--output_dir", folder]
    assert runs.run(arguments, folder, kill=Kill(45, signal=signal.SIGTERM)).codes == [75]
    return folder, request.param


@pytest.mark.long
def test_no_pickle_of_a_checkpoint_is_run(runs, recipe, stopped, tmp_path, outcome):
    folder, flags = stopped
    names = [path.relative_to(folder) for path in folder.rglob("*") if path.suffix in (".pt", ".pth", ".bin")]
    newest = checkpoints.in_order(folder)[-1].name
    names = [name for name in names if name.parts[0] == newest]
    assert {name.name for name in names} >= {"rng_state.pth", "scheduler.pt"}
    for number, name in enumerate(names):
        copy, mark = tmp_path / f"run{number}", tmp_path / f"mark{number}"
        shutil.copytree(folder, copy)
        plant(copy / name, mark)
        ended = runs.run([recipe, *flags, "--output_dir", copy], copy)
        assert not mark.exists(), name
        assert ended.codes == [2], (name, ended.err[-1500:])
        assert "nothing of it was run: do not use this checkpoint" in ended.err
        assert "Traceback" not in ended.err
    kind = "ZeRO-2 checkpoint" if flags else "checkpoint"
    outcome(f"a harmful pickle as any of {len(names)} files of a {kind}", "nothing of it run, refused, exit code 2")


def test_an_adapter_in_a_pickle_is_not_run(runs, recipe, stopped, tmp_path, outcome):
    folder, flags = stopped
    if flags:
        pytest.skip("DeepSpeed loads no adapter file: its own hold the weights")
    copy, mark = tmp_path / "run", tmp_path / "mark"
    shutil.copytree(folder, copy)
    newest = checkpoints.in_order(copy)[-1]
    plant(newest / "adapter_model.bin", mark)
    (newest / "adapter_model.safetensors").unlink()
    manifest = json.loads((newest / "manifest.json").read_text())
    del manifest["files"]["adapter_model.safetensors"]
    (newest / "manifest.json").write_text(json.dumps(manifest))
    ended = runs.run([recipe, "--output_dir", copy], copy)
    assert not mark.exists()
    assert ended.codes == [2], ended.err[-1500:]
    outcome("a harmful pickle as adapter_model.bin", "nothing of it run, refused, exit code 2")


def test_a_model_in_a_pickle_is_not_run(write_recipe, tiny_model, tmp_path, outcome):
    folder, mark = tmp_path / "model", tmp_path / "mark"
    shutil.copytree(tiny_model, folder)
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(weights | {"state": Call(os.mkdir, str(mark))}, folder / "pytorch_model.bin")
    settings = load_recipe([str(write_recipe(model_name_or_path=str(folder)))]).model
    with pytest.raises(UserError, match=r"model: cannot be loaded as a model \(Weights only load failed"):
        load_model(settings)
    assert not mark.exists()
    outcome("a harmful pickle as pytorch_model.bin", "nothing of it run, refused")


BOMBS = {
    "an alias": "lora_r: &a 8\nlora_alpha: *a\n",
    "aliases that multiply": "a: &a [1, 1]\nb: &b [*a, *a]\neval_prompts: [*b, *b]\n",
    "a tag": "output_dir: !!python/object/apply:os.system ['true']\n",
    "deep nesting": "eval_prompts: " + "[" * 20_000 + "\n",
}


@pytest.mark.parametrize("bomb", BOMBS)
def test_a_recipe_is_data(tmp_path, bomb):
    path = tmp_path / "bomb.yaml"
    path.write_text(BOMBS[bomb])
    with pytest.raises(UserError, match=r"bomb\.yaml"):
        load_recipe([str(path)])


def test_no_secret_of_the_environment_reaches_run_directory_or_console(runs, recipe, stopped):
    """The server that forks the runs was started with one."""
    folder, _ = stopped
    said = folder.with_name("run.said")
    files = [path for path in (*folder.rglob("*"), *said.iterdir()) if path.is_file()]
    assert len(files) > 20
    assert not [path for path in files if b"s3cret-of-the-environment" in path.read_bytes()]
