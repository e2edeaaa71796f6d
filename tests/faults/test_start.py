"""A start that is killed, at any moment, leaves nothing that a later one would wait for."""

import os
import random
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

from sft.paths import REPOSITORY

MOMENTS, LONGEST, A_WHILE = 20, 15.0, 5
PATIENCE = 200  # of a start that hangs; the longest that does not has an op to build


def start(recipe: Path, output: Path, extensions: Path) -> subprocess.Popen:
    """A run of one step under DeepSpeed, in a process group of its own."""
    keys = {"deepspeed": "ds_configs/zero2.json", "max_steps": 1, "save_strategy": "no", "eval_prompts_steps": 0}
    flags = [part for key, value in (keys | {"output_dir": output}).items() for part in (f"--{key}", str(value))]
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "TORCH_EXTENSIONS_DIR": str(extensions)}
    return subprocess.Popen(
        [sys.executable, "-u", "train_sft.py", str(recipe), *flags],
        cwd=REPOSITORY, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        start_new_session=True,
    )  # fmt: skip


def follow(process: subprocess.Popen, until: str) -> str:
    """What a start says up to a line that begins so; all of it where none does, or where it hangs."""
    said = []
    hangs = threading.Timer(PATIENCE, lambda: os.killpg(process.pid, signal.SIGKILL))
    hangs.start()
    for line in process.stdout:
        said.append(line)
        if line.startswith(until):
            break
    hangs.cancel()
    return "".join(said)


def kill_and_start_again(recipe: Path, folder: Path, moments: list[tuple[float, signal.Signals]]) -> str:
    """Kill starts, of which none may leave torch's build lock; a start goes on until its data are read after the first,
    which has an op to build, and after every fifth; the last one trains.

    What stops a start, of any kill before it, stops all that follow.
    """
    extensions, said = folder / "extensions", ""
    for number, (seconds, kind) in enumerate(moments):
        killed = start(recipe, folder / f"run-{number}", extensions)
        time.sleep(seconds)
        os.kill(killed.pid, kind)
        killed.wait()
        with suppress(ProcessLookupError):  # a compiler that is left at work holds on to the output
            os.killpg(killed.pid, signal.SIGKILL)
        killed.communicate()
        locks = [path for path in extensions.rglob("lock") if not path.parent.parent.name.startswith(".")]
        assert not locks, f"{kind.name} after {seconds:.1f} s"  # but for those of a build that nobody will look at
        if number % A_WHILE:
            continue
        again = start(recipe, folder / f"run-{number}", extensions)
        said += (came := follow(again, "steps "))
        print(f"{kind.name} after {seconds:.1f} s; the next start reads {came.count('rows ')} file", flush=True)
        assert "\nsteps " in came, f"{kind.name} after {seconds:.1f} s: {came[-2000:]}"
        os.killpg(again.pid, signal.SIGKILL)
        again.communicate()
    trained = follow(start(recipe, folder / "trained", extensions), "done: ")
    assert "done: " in trained, trained[-2000:]
    return said


def test_whenever_a_start_is_killed_the_next_one_works(recipe, tmp_path, outcome):
    chance = random.Random(0)
    kinds = [signal.SIGTERM, signal.SIGKILL]
    moments = [(chance.uniform(0, LONGEST), kinds[number // 2 % 2]) for number in range(MOMENTS)]
    # One after the other on each core, which begin with no op built.
    with ThreadPoolExecutor(2) as pool:
        halves = pool.map(lambda half: kill_and_start_again(recipe, tmp_path / str(half), moments[half::2]), range(2))
        said = list(halves)
    assert all(text.count("DeepSpeed compiles a small C++ op, deepspeed_shm_comm;") == 1 for text in said)
    outcome(f"a start killed at {MOMENTS} moments, SIGTERM and SIGKILL", "the next start trains")
