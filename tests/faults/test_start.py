"""A start that is killed, at any moment, leaves nothing that a later one would wait for."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from sft.paths import REPOSITORY

MOMENTS, LONGEST = 20, 15.0
BEGINS_ANEW = MOMENTS // 2  # with no op built, as at the first moment of each core
PATIENCE = 300  # of a start that hangs; the longest that does not has an op to build


def start(recipe: Path, output: Path, extensions: Path) -> subprocess.Popen:
    """A run of one step under DeepSpeed, in a process group of its own."""
    keys = {"deepspeed": "ds_configs/zero2.json", "max_steps": 1, "save_strategy": "no", "eval_prompts_steps": 0}
    flags = [part for key, value in (keys | {"output_dir": output}).items() for part in (f"--{key}", str(value))]
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "TORCH_EXTENSIONS_DIR": str(extensions)}
    return subprocess.Popen(
        [sys.executable, "train_sft.py", str(recipe), *flags],
        cwd=REPOSITORY, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        start_new_session=True,
    )  # fmt: skip


def kill_and_start_again(recipe: Path, folder: Path, moments: list[tuple[int, float, signal.Signals]]) -> list[str]:
    """After each kill one start that is let go on; what those said that did not end well."""
    failed = []
    for number, seconds, kind in moments:
        extensions, output = folder / "extensions", folder / f"run-{number}"
        if number == BEGINS_ANEW:
            shutil.rmtree(extensions, ignore_errors=True)
        killed = start(recipe, output, extensions)
        time.sleep(seconds)
        os.kill(killed.pid, kind)
        killed.communicate()
        try:
            out, _ = (again := start(recipe, output, extensions)).communicate(timeout=PATIENCE)
        except subprocess.TimeoutExpired:
            os.killpg(again.pid, signal.SIGKILL)
            out, _ = again.communicate()
        print(f"{kind.name} after {seconds:.1f} s; the next start: exit code {again.returncode}", flush=True)
        if again.returncode:
            failed.append(f"{kind.name} after {seconds:.1f} s, then {again.returncode}: {out[-2000:]}")
    return failed


def test_whenever_a_start_is_killed_the_next_one_works(recipe, tmp_path, outcome):
    chance = random.Random(0)
    kinds = [signal.SIGTERM, signal.SIGKILL]
    moments = [(number, chance.uniform(0, LONGEST), kinds[number // 2 % 2]) for number in range(MOMENTS)]
    # One after the other on each core: those of even numbers on one, the others on the other.
    with ThreadPoolExecutor(2) as pool:
        found = pool.map(lambda half: kill_and_start_again(recipe, tmp_path / str(half), moments[half::2]), range(2))
        failed = [failure for failures in found for failure in failures]
    assert not failed, "\n".join(failed)
    outcome(f"a start killed at {MOMENTS} moments, SIGTERM and SIGKILL", "the next start trains")
