"""Starts scripts as a person's shell would."""

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

from sft.core.paths import REPOSITORY

BIN = Path(sys.executable).parent
SCRIPT = str(REPOSITORY / "train_sft.py")


def launch(*command, cwd=None, **environment) -> subprocess.CompletedProcess:
    """Run a command in a plain environment, as a person's shell would without an activated .venv."""
    names = ("HOME", "PATH", "LANG", "TMPDIR", "OMP_NUM_THREADS")
    plain = {name: os.environ[name] for name in names if name in os.environ}
    environment = plain | {"HF_HUB_OFFLINE": "1", "MASTER_PORT": str(free_port())} | environment
    return subprocess.run(
        [str(part) for part in command], cwd=cwd, env=environment, capture_output=True, text=True, timeout=500
    )


def hear_interrupts() -> None:
    """For `preexec_fn`: let SIGINT end a program. A shell's `&` has it ignored, which all its children inherit."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def free_port() -> int:
    """A port that nothing listens on, so that runs beside each other do not meet."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def launcher(program: str, processes: int = 1) -> list:
    """The beginning of a command: `torchrun` or `deepspeed` with so many processes, on a port of its own."""
    number_of = {"torchrun": "--nproc_per_node", "deepspeed": "--num_accelerators"}[program]
    return [BIN / program, number_of, processes, "--master_port", free_port()]


def losses(output_dir: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (output_dir / "log.jsonl").read_text().splitlines()]
