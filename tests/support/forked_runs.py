"""Starts `train_sft.py` many times over at little cost, and if asked does something to it at chosen moments.

A server that has imported everything forks one child a process of the run; the child runs the script's own code. A
moment is the n-th time that a process touches a file of its run directory; a killer, a process of its own, sends the
signal then or some milliseconds after. Started as a script it is the server: one JSON order a line in, one JSON answer
a line out.
"""

import json
import os
import re
import resource
import signal
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path

import psutil

from sft.core.paths import REPOSITORY
from sft.runs.run_files import read_run
from tests.support.launching import free_port

OUTCOME = "outcome of a fault"  # of what a test of faults notes down; see its fixture `outcome`
# Lines that name what may be gone or renamed by the end, and a folder that is still to be made.
PASSING = re.compile(
    "skipped: |no checkpoint to resume from: |resuming from |step .*: saving |.* is now |.*output_dir: "
)
PATIENCE = 600  # seconds, after which a run that hangs is ended; building an op of DeepSpeed takes minutes
TOUCHES = ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "shutil.rmtree")


@dataclass
class Kill:
    """Send process `rank` a signal so many seconds after its `touch`-th touch of the run directory."""

    touch: int
    delay: float = 0.0
    rank: int = 0
    signal: int = signal.SIGKILL


@dataclass
class Shortage:
    """From the `touch`-th touch on, let a process have no more memory than it has, and so many bytes."""

    touch: int
    bytes: int


@dataclass
class Ended:
    """How a run ended: each process's exit code (negative: a signal) and touches, and what the main one said."""

    codes: list[int]
    touches: list[int]
    out: str
    err: str


class Runs:
    """The server, from the test's side."""

    def __init__(self):
        environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
        environment |= {"HF_TOKEN": "s3cret-of-the-environment", "WANDB_API_KEY": "s3cret-of-the-environment"}
        command = [sys.executable, str(Path(__file__).resolve())]
        self._server = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, text=True, cwd=REPOSITORY
        )

    def run(
        self,
        arguments: list,
        folder: Path,
        *,
        main: str = "train_sft",
        processes: int = 1,
        kill: Kill | None = None,
        shortage: Shortage | None = None,
        environment: dict[str, str] | None = None,
    ) -> Ended:
        """Run `train_sft.py` with these arguments to its end, or to its death; `folder` is its run directory.

        `main` names a module with a `main(arguments)` of its own that does more than that.
        """
        order = {
            "main": main,
            "arguments": [str(argument) for argument in arguments],
            "folder": str(folder),
            "processes": processes,
            "kill": asdict(kill) if kill else None,
            "shortage": asdict(shortage) if shortage else None,
            "environment": environment or {},
        }
        self._server.stdin.write(json.dumps(order) + "\n")
        self._server.stdin.flush()
        ended = Ended(**json.loads(self._server.stdout.readline()))
        assert not (gone := named_and_gone(ended, folder)), f"named, and not there: {gone}"
        return ended

    def close(self) -> None:
        self._server.stdin.close()
        self._server.wait()


def named_and_gone(ended: Ended, folder: Path) -> set[Path]:
    """Files and checkpoints of the run directory that a run has named, but for those that it may since have removed."""
    lines = f"{ended.out}{ended.err}".splitlines()
    lasting = [line for line in lines if not PASSING.match(line)]
    named = re.findall(rf"{re.escape(str(folder))}[\w./-]*|\bcheckpoint-\d+", "\n".join(lasting))
    became = [line.rpartition(" is now ")[2] for line in lines if " is now " in line]
    return {path for name in (*named, *became) if not (path := folder / name.rstrip(".")).exists()}


def result(folder: Path) -> dict:
    """What must not depend on how often a run was killed: each log line, each answer, and the adapter's bytes."""
    run = read_run(folder)
    told = ("step", "epoch", "loss", "learning_rate", "grad_norm", "token_accuracy", "tokens")
    assert not run.problems
    return {
        "log": [{key: record[key] for key in told} for record in run.log],
        "answers": [(record["step"], record["prompt"], record["answer"]) for record in run.answers],
        "adapter": (folder / "final" / "adapter_model.safetensors").read_bytes(),
        "steps": [json.loads(line)["step"] for line in (folder / "log.jsonl").read_text().splitlines()],
    }


def serve() -> None:
    # What packages print while they are imported is no answer.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    import accelerate.utils.deepspeed
    import deepspeed
    import torch
    import torch.utils.tensorboard
    import transformers.trainer

    import train_sft
    from sft.evaluation import score_eval
    from sft.reports import report_writer
    from sft.runs import run_directory
    from sft.training import interrupts

    assert all((accelerate, deepspeed, torch, transformers, train_sft))
    assert all((report_writer, run_directory, score_eval, interrupts))
    for line in sys.stdin:
        print(json.dumps(asdict(_carry_out(json.loads(line), free_port()))), file=answers, flush=True)


def _carry_out(order: dict, port: int) -> Ended:
    scratch = Path(order["folder"] + ".said")
    scratch.mkdir(parents=True, exist_ok=True)
    children = {}
    for rank in range(order["processes"]):
        child = os.fork()
        if not child:
            _be_the_run(order, rank, port, scratch)
        children[child] = rank
    codes = [0] * order["processes"]
    while children:
        child, status = os.wait()
        if child not in children:
            continue
        codes[children.pop(child)] = os.waitstatus_to_exitcode(status)
        if any(codes):
            # As a launcher does: one process that has failed ends all.
            deadline = time.monotonic() + 2
            while children and time.monotonic() < deadline:
                ended, status = os.waitpid(-1, os.WNOHANG)
                if ended in children:
                    codes[children.pop(ended)] = os.waitstatus_to_exitcode(status)
                time.sleep(0.02)
            for other in children:
                os.kill(other, signal.SIGKILL)
    touches = [len((scratch / f"touches{rank}").read_bytes()) for rank in range(order["processes"])]
    return Ended(codes, touches, (scratch / "out0").read_text(), (scratch / "err0").read_text())


def _be_the_run(order: dict, rank: int, port: int, scratch: Path) -> None:
    """In the child: what a launcher and `python train_sft.py` do; never returns."""
    from sft.core.console import quiet_the_stack
    from sft.core.exit_codes import exit_code

    os.environ |= order["environment"]
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(order["processes"])}
    os.environ |= {"LOCAL_WORLD_SIZE": str(order["processes"]), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    if order["processes"] == 1:
        for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
            del os.environ[name]
    for name, stream in (("out", 1), ("err", 2)):
        os.dup2(os.open(scratch / f"{name}{rank}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), stream)
    signal.alarm(PATIENCE)
    _count_touches(order, rank, os.open(scratch / f"touches{rank}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC))
    # A shell's `&` has it ignored, which all its children inherit.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.argv = ["train_sft.py", *order["arguments"]]
    quiet_the_stack()
    code = 0
    try:
        import_module(order["main"]).main(order["arguments"])
    except BaseException as end:
        try:
            code = exit_code(end)
        except BaseException:
            import traceback

            traceback.print_exc()
            code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _count_touches(order: dict, rank: int, counter: int) -> None:
    """Write a byte for every touch of the run directory; at the one that was ordered, do what was."""
    folder, kill, shortage, touched = order["folder"], order["kill"], order["shortage"], 0

    def note(event: str, arguments: tuple) -> None:
        nonlocal touched
        if event not in TOUCHES or not str(arguments[0]).startswith(folder + "/"):
            return
        os.write(counter, b".")
        touched += 1
        if kill and kill["rank"] == rank and touched == kill["touch"]:
            victim = os.getpid()
            if not os.fork():
                time.sleep(kill["delay"])
                os.kill(victim, kill["signal"])
                os._exit(0)
            if not kill["delay"] and kill["signal"] == signal.SIGKILL:
                signal.pause()
        if shortage and touched == shortage["touch"]:
            most = psutil.Process().memory_info().vms + shortage["bytes"]
            resource.setrlimit(resource.RLIMIT_AS, (most, most))

    sys.addaudithook(note)


if __name__ == "__main__":
    serve()
