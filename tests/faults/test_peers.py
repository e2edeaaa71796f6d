"""A process that dies or hangs ends all the others, by every launcher, and what was saved stays."""

import os
import signal
import subprocess
import time

import psutil
import pytest

from sft.core.paths import REPOSITORY
from sft.runs import checkpoints
from tests.support.launching import launcher

pytestmark = pytest.mark.long

FLAGS = {"deepspeed": ["--deepspeed", "ds_configs/zero2.json"], "torchrun": []}


@pytest.mark.parametrize(("program", "fault"), [("deepspeed", "dead"), ("deepspeed", "hung"), ("torchrun", "dead")])
def test_one_lost_process_ends_all(recipe, tmp_path, outcome, program, fault):
    folder = tmp_path / "run"
    command = [*launcher(program, 2), "train_sft.py", recipe, *FLAGS[program], "--output_dir", folder]
    command += ["--max_steps", "100000", "--save_steps", "20", "--ddp_timeout", "8", "--eval_prompts_steps", "0"]
    log = open(tmp_path / "log", "w")  # noqa: SIM115 (the processes write to it until they are gone)
    process = subprocess.Popen([str(part) for part in command], cwd=REPOSITORY, stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + 180
        while not checkpoints.in_order(folder) and time.monotonic() < deadline:
            time.sleep(0.2)
        (worker,) = [each for each in _descendants(process.pid) if _rank(each) == "1"]
        os.kill(worker.pid, signal.SIGKILL if fault == "dead" else signal.SIGSTOP)
        code = process.wait(timeout=150)
    finally:
        for each in (*_descendants(process.pid), psutil.Process(process.pid)) if process.poll() is None else ():
            each.kill()
    said = (tmp_path / "log").read_text()
    assert code != 0, said[-2000:]
    found, _ = checkpoints.latest_valid(folder)
    assert found
    if fault == "hung":
        assert "ddp_timeout" in said, said[-3000:]
    outcome(f"one of two processes {fault}, {program}", "all ended, newest checkpoint whole")


def _descendants(pid: int) -> list[psutil.Process]:
    return psutil.Process(pid).children(recursive=True)


def _rank(process: psutil.Process) -> str | None:
    """The rank of a process of the run; None for a launcher, or a compiler that has ended meanwhile."""
    try:
        return process.environ().get("RANK") if "train_sft.py" in process.cmdline() else None
    except psutil.Error:
        return None
