"""A start that is killed, at any moment, leaves nothing that a later one would wait for."""

import os
import random
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

from sft.core.paths import REPOSITORY
from tests.support.forked_runs import Runs
from tests.support.moments import MOMENTS

pytestmark = pytest.mark.long

LONGEST = 15.0
KINDS = (signal.SIGTERM, signal.SIGKILL)
PATIENCE = 600  # of a start that hangs; the longest that does not has an op to build, on a machine that is busy


def flags(output: Path) -> list[str]:
    """One step under DeepSpeed."""
    keys = {"deepspeed": "ds_configs/zero2.json", "max_steps": 1, "save_strategy": "no", "eval_prompts_steps": 0}
    return [part for key, value in (keys | {"output_dir": output}).items() for part in (f"--{key}", str(value))]


def start(recipe: Path, output: Path, extensions: Path) -> subprocess.Popen:
    """A run from the beginning, in a process group of its own."""
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "TORCH_EXTENSIONS_DIR": str(extensions)}
    return subprocess.Popen(
        [sys.executable, "-u", "train_sft.py", str(recipe), *flags(output)],
        cwd=REPOSITORY, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        start_new_session=True,
    )  # fmt: skip


def train(recipe: Path, output: Path, extensions: Path) -> str:
    """What a run says that is let alone; all that it has said where it hangs."""
    process = start(recipe, output, extensions)
    try:
        said, _ = process.communicate(timeout=PATIENCE)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        said, _ = process.communicate()
    return said


def kill_and_start_again(runs: Runs, recipe: Path, folder: Path, moments: list[tuple[float, signal.Signals]]) -> str:
    """Kill starts; after each, another one trains. The first and the last of those import the stack as well."""
    extensions = folder / "extensions"
    said = ""
    for number, (seconds, kind) in enumerate(moments):
        output = folder / f"run-{number}"
        killed = start(recipe, output, extensions)
        time.sleep(seconds)
        os.kill(killed.pid, kind)
        killed.wait()
        with suppress(ProcessLookupError):  # a compiler that is left at work holds on to the output
            os.killpg(killed.pid, signal.SIGKILL)
        killed.communicate()
        if 0 < number < len(moments) - 1:
            environment = {"TORCH_EXTENSIONS_DIR": str(extensions)}
            came = runs.run([recipe, *flags(output)], output, environment=environment).out
        else:
            came = train(recipe, output, extensions)
        print(f"{kind.name} after {seconds:.1f} s; the next start trains: {'done: ' in came}", flush=True)
        assert "done: " in came, f"{kind.name} after {seconds:.1f} s: {came[-2000:]}"
        said += came
    return said


def test_whenever_a_start_is_killed_the_next_one_works(runs, recipe, tmp_path, outcome):
    chance = random.Random(0)
    moments = [(chance.uniform(0, LONGEST), KINDS[number % 2]) for number in range(MOMENTS)]
    said = kill_and_start_again(runs, recipe, tmp_path, moments)  # begins with no op built
    assert said.count("DeepSpeed compiles a small C++ op, deepspeed_shm_comm;") == 1
    outcome(f"a start killed at {MOMENTS} moments, SIGTERM and SIGKILL", "the next start trains")
