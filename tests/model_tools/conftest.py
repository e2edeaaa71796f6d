"""Real runs under ZeRO, to export and to describe."""

import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml

from model_tools.__main__ import main
from tests.support.adapters import save_adapter
from tests.support.recipes import SMALL_LORA, STAGES

RECIPE = SMALL_LORA | {
    "warmup_steps": 0,
    "save_strategy": "steps",
    "save_steps": 2,
    "max_steps": 2,
    "report_to": "none",
}


@pytest.fixture(scope="session")
def zero_run(once, runs, tiny_model, train_file):
    """The directory of a run of two processes under a ZeRO stage."""

    def run(stage: str) -> Path:
        def train(folder: Path) -> None:
            files = {"model_name_or_path": str(tiny_model), "train_file": str(train_file)}
            settings = RECIPE | STAGES[stage] | files | {"deepspeed": f"ds_configs/{stage}.json"}
            recipe = folder / "tiny.yaml"
            recipe.write_text(yaml.safe_dump(settings | {"output_dir": str(folder / "run")}), encoding="utf-8")
            ended = runs.run([recipe], folder / "run", processes=2)
            assert ended.codes == [0, 0], ended.err[-3000:]

        return once(stage, train) / "run"

    return run


@pytest.fixture
def pair(tmp_path):
    """Save a base model and an adapter for it; returns their folders."""

    def save(base, config, dtype=torch.float32, shard="1GB") -> tuple[Path, Path]:
        torch.manual_seed(0)
        base.to(dtype).save_pretrained(tmp_path / "base", max_shard_size=shard)
        return tmp_path / "base", save_adapter(base, tmp_path / "base", config, tmp_path / "adapter")

    return save


@pytest.fixture
def refused(tmp_path, capsys):
    """Have a merge refused in one line before anything is written; returns what it says."""

    def run(*arguments) -> str:
        capsys.readouterr()
        assert main(["merge", *map(str, arguments), str(tmp_path / "out"), "--no-verify"]) == 2
        assert not (tmp_path / "out").exists()
        assert not list(tmp_path.glob(".out*"))
        said = capsys.readouterr().err
        assert said.count("\n") == 1, said
        return said

    return run


@pytest.fixture(scope="session")
def endless_model(tiny_model, once) -> Path:
    """The random model, which finds no end of turn, with positions that do not end either."""

    def copy(folder: Path) -> None:
        model = shutil.copytree(tiny_model, folder / "endless")
        config = json.loads((model / "config.json").read_text())
        (model / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 10**9}))

    return once("endless-model", copy) / "endless"
