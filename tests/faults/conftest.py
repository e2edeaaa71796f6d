"""The recipe that is run with faults, and the faults and outcomes of which a table is printed at its end."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from sft.core.paths import REPOSITORY
from tests.support.forked_runs import OUTCOME
from tests.support.recipes import SMALL_LORA

# Dropout, so that a random state that is not restored shows; a log line that is the mean of two steps, and checkpoints
# between two such lines.
SETTINGS = {
    "lora_dropout": 0.1,
    "max_length": 96,
    "max_steps": 10,
    "logging_steps": 2,
    "save_strategy": "steps",
    "save_steps": 3,
    "save_total_limit": 2,
    "eval_prompts": ["Who are you?"],
    "eval_prompts_steps": 4,
    "eval_prompts_generation": {"max_new_tokens": 2},
}


@pytest.fixture
def outcome(request):
    """Write a line of the table: which fault, and what became of the run."""
    return lambda fault, became: request.node.user_properties.append((OUTCOME, (fault, became)))


@pytest.fixture(scope="session")
def recipe(tiny_model, train_file, tmp_path_factory) -> Path:
    """The recipe of `SETTINGS`, one file for all tests; each names its own run directory."""
    path = tmp_path_factory.mktemp("recipes") / "tiny.yaml"
    base = {"model_name_or_path": str(tiny_model), "train_file": str(train_file), "report_to": "none"}
    schedule = {"lr_scheduler_type": "cosine", "warmup_steps": 0.03}
    path.write_text(yaml.safe_dump(base | SMALL_LORA | schedule | SETTINGS), encoding="utf-8")
    return path


@pytest.fixture
def small_disk(tmp_path):
    """Run train_sft.py with its run directory on a disk of its own, that is soon full or cannot be written."""

    def run(kind: str, arguments: list) -> subprocess.CompletedProcess:
        disk = tmp_path / "disk"
        disk.mkdir()
        options = "ro" if kind == "read-only" else "size=800k"
        script = f"mount -t tmpfs -o {options} tmpfs {disk} && exec {sys.executable} train_sft.py " + " ".join(
            str(argument) for argument in [*arguments, "--output_dir", disk / "run"]
        )
        if subprocess.run(["unshare", "-rm", "true"]).returncode:
            pytest.skip("this machine does not let a test mount a disk of its own (unshare -rm)")
        return subprocess.run(
            ["unshare", "-rm", "sh", "-c", script], cwd=REPOSITORY, capture_output=True, text=True, timeout=300
        )

    return run
