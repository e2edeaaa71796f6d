"""Every command of the documents that a CPU can run, as it stands there, in a copy of the repository."""

import argparse
import os
import re
import shlex
import shutil
import signal
import time
from pathlib import Path

import pytest

from tests.support.documents import ENGLISH, VERBS, commands, read
from tests.support.launching import free_port
from tests.support.workplace import start

# What is not run here, and why.
NOT_RUN = {
    r"(\S*/)?pip |python3? -m (pip|venv) |uv |sudo |wsl ": "installs something on the machine",
    r"docker ": "needs Docker's daemon",
    r"modelscope |pip-audit|python -m model_tools demo-model": "needs the network",
    r"vllm |lmdeploy |ollama |python -m sglang": "a program of others, with an installation of its own",
    r"python -m pytest tests/gpu|torchrun --nproc_per_node 8": "needs GPUs",
    r"python -m benchmarks": "takes minutes to hours, and other programs to compare with",
    r"deepspeed --hostfile|torchrun --nnodes": "needs several machines",
    r"sbatch |srun ": "needs Slurm's daemons: tests/faults/test_slurm.py starts some",
    r"python -m model_tools export-llama work_dirs": "needs a run that trained the whole model",
    r"source |export |mkdir ": "concerns the shell alone",
}
SERVERS = r"python -m model_tools web|tensorboard|transformers serve"
# Shown as mistakes, and answered as such.
MISTAKES = ("--learning_rat ", "--max_length 64")
# A verb's exit code where it found what it looks for.
FOUND = {"diagnose": (0, 1), "inspect": (0, 1), "gguf": (0, 1)}
SHORTER = {"lora_r=8,16,32,64": "lora_r=8,16", "learning_rate=1e-3,2e-3 --seeds 3": "learning_rate=1e-3 --seeds 2"}
TYPED = "你是谁？\n/exit\n"

ALL = sorted({command for name in ENGLISH for command in commands(read(name))})
RUN = [command for command in ALL if not any(re.match(kind, command) for kind in NOT_RUN)]


def remove_outputs(command: str, folder: Path) -> None:
    """What a verb is to write must not be there."""
    if not (match := re.search(r"python -m (data_tools|model_tools) (\S+) (.*)", command)):
        return
    package, verb, arguments = match.groups()
    parser = argparse.ArgumentParser()
    VERBS[package][verb].add_arguments(parser)
    chosen = parser.parse_args(shlex.split(arguments))
    for name in {"out", *getattr(chosen, "outputs", ())}:
        if path := getattr(chosen, name, None):
            place = folder / path
            shutil.rmtree(place) if place.is_dir() else place.unlink(missing_ok=True)


@pytest.mark.commands
@pytest.mark.parametrize("command", [command for command in RUN if not re.match(SERVERS, command)])
def test_a_command_does_what_it_is_shown_for(command, here):
    is_mistake = any(mistake in f"{command} " for mistake in MISTAKES)
    allowed = (2,) if is_mistake else next((codes for verb, codes in FOUND.items() if f" {verb} " in command), (0,))
    remove_outputs(command, here)
    for whole, part in SHORTER.items():
        command = command.replace(whole, part)
    process = start(command, here)
    printed, _ = process.communicate(TYPED, timeout=500)
    assert process.returncode in allowed, printed
    assert "Traceback" not in printed


@pytest.mark.commands
@pytest.mark.parametrize("command", [command for command in RUN if re.match(SERVERS, command)])
def test_a_server_starts_and_says_where(command, here):
    port, log = free_port(), here / "server.log"
    command = command.replace("8000", str(port)) if "8000" in command else f"{command} --port {port}"
    with open(log, "w") as file:
        process = start(command, here, stdout=file)
    try:
        while f":{port}" not in log.read_text():
            assert process.poll() is None, log.read_text()
            time.sleep(0.2)
    finally:
        os.killpg(process.pid, signal.SIGINT)
        process.wait(timeout=60)


def test_what_is_not_run_has_a_reason_that_is_needed():
    unneeded = [kind for kind in NOT_RUN if not any(re.match(kind, command) for command in ALL)]
    assert unneeded == []
