"""Training speed and memory of this repository beside the programs people would use instead.

    python -m benchmarks.train --against trl llamafactory xtuner
    python -m benchmarks.train --device cuda --model internlm2_5_7b

Trains the same model on the same rows with the same settings in each program, started as a person starts it, by turns
(A B A B); benchmarks/tasks.py has what. A step ends when its line is in the program's log. Prints the medians of all
repeats. A peer that cannot be installed or does not run is named and skipped.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path

import torch
from trl import ModelConfig

from benchmarks.operations import MATRIX, matmul_rate, operations, sizes_of
from benchmarks.peers import Here, Job, LlamaFactory, Program, Trl, XTuner
from benchmarks.processes import CardMemory
from benchmarks.tasks import TASKS, Task, add_device, device_of
from sft.data.encoding import LossRules, encode
from sft.data.labels import IGNORED
from sft.models.chat_template import ChatTemplate
from sft.models.loading import load_tokenizer
from sft.models.meta_model import MetaModel

# The first steps build kernels and fill the heap.
WARM_UP = 4
GLANCE = 0.005  # seconds between two looks at a log


@dataclass
class Measured:
    """All runs of one program: seconds of its steps after the warm-up, and what each run took."""

    steps: list[float] = field(default_factory=list)
    first_step: list[float] = field(default_factory=list)
    peak_bytes: list[int] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    steps_per_epoch: float = 0.0
    failure: str = ""


def main() -> None:
    """Train by turns with every program and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_task(parser)
    parser.add_argument("--against", nargs="*", default=["trl"], choices=("trl", "llamafactory", "xtuner"))
    parser.add_argument("--lora", action="store_true", help="an unquantised base model, which XTuner needs on a CPU")
    parser.add_argument("--steps", type=int, default=24, help=f"steps a run, of them {WARM_UP} to warm up (24)")
    parser.add_argument("--repeats", type=int, default=3, help="runs of each program (3)")
    arguments = parser.parse_args()

    task = task_of(parser, arguments)
    if arguments.lora:
        task.recipe["load_in_4bit"] = False
    programs = chosen(arguments.against)
    measured = {program.label: Measured() for program in programs}
    for _ in range(arguments.repeats):
        for program in programs:
            if not measured[program.label].failure:
                run(program, task, arguments.steps, measured[program.label])
    print("\n".join(table(measured, task)))


def add_task(parser: argparse.ArgumentParser) -> None:
    """The arguments that say what is trained where."""
    add_device(parser)
    parser.add_argument("--model", choices=TASKS, default="demo", help="what is trained (demo)")


def task_of(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> Task:
    """What the arguments ask for; ends the program where this machine cannot train it."""
    device = device_of(parser, arguments)
    if device == "cpu" and arguments.model != "demo":
        parser.error(f"--model {arguments.model}: a CPU trains it in no time worth waiting for; use --device cuda")
    return TASKS[arguments.model](device)


def chosen(against: list[str]) -> list[Program]:
    """Ours, as the recipe stands and without DeepSpeed, which no peer uses here, and the peers that are asked for."""
    programs: list[Program] = [Here("here"), Here("here, without DeepSpeed", deepspeed=None)]
    if "trl" in against:
        programs += [
            Trl("trl sft, every key as here, all cores", every_key=True, OMP_NUM_THREADS=str(os.cpu_count())),
            Trl("trl sft, every key as here", every_key=True),
            Trl("trl sft, the rest left to TRL", every_key=False),
        ]
    peers = {"llamafactory": LlamaFactory("LLaMA-Factory 0.9.5"), "xtuner": XTuner("XTuner 0.2.0")}
    for peer in (peers[name] for name in against if name in peers):
        try:
            peer.install()
            programs.append(peer)
        except subprocess.CalledProcessError as failure:
            print(f"{peer.label}: skipped: could not be installed ({failure})")
    return programs


def run(program: Program, task: Task, steps: int, measured: Measured) -> None:
    """Run the program once and add what was seen."""
    with tempfile.TemporaryDirectory() as folder:
        job = Job(**vars(task), steps=steps, folder=Path(folder))
        command = program.command(job)
        # XTuner starts `python` by that name; nobody has a cache of the data.
        path = os.pathsep.join([str(Path(command[0]).parent), os.environ["PATH"]])
        environment = os.environ | {"PATH": path, "PYTHONUNBUFFERED": "1", "HF_HUB_OFFLINE": "1"}
        environment |= {"HF_DATASETS_CACHE": str(Path(folder) / "cache"), "DISABLE_VERSION_CHECK": "1"}
        environment |= program.variables
        ends, losses = [], []
        with open(job.console, "wb") as console, CardMemory() if task.device == "cuda" else nullcontext() as card:
            started = time.perf_counter()
            process = subprocess.Popen(command, cwd=folder, env=environment, stdout=console, stderr=subprocess.STDOUT)
            for line in lines_as_they_come(program.log(job), process.pid):
                if (loss := program.loss_of(line)) is not None:
                    ends.append(time.perf_counter() - started)
                    losses.append(loss)
            _, status, usage = os.wait4(process.pid, 0)
        if status or len(ends) < steps:
            measured.failure = program.error(job)[:200]
            return
        measured.steps_per_epoch = program.steps_per_epoch(job)
    measured.steps += [end - begin for begin, end in zip(ends[WARM_UP - 1 :], ends[WARM_UP:], strict=False)]
    measured.first_step.append(ends[0])
    measured.losses += losses
    measured.peak_bytes.append(card.peak if card else usage.ru_maxrss * 1024)
    print(f"{program.label}: {statistics.median(measured.steps):.2f} s a step", flush=True)


def lines_as_they_come(path: Path, process: int) -> Iterator[str]:
    """The lines of a file that a child process writes, each as soon as it is complete, until the process has ended."""
    part, has_ended = "", False
    while not path.exists() and not has_ended:
        has_ended = _has_ended(process)
        time.sleep(GLANCE)
    if not path.exists():
        return
    with open(path, encoding="utf-8", errors="replace") as file:
        while True:
            has_ended = _has_ended(process)  # asked first, so that what it wrote last is read
            part += file.read()
            *lines, part = part.split("\n")
            yield from lines
            if has_ended:
                return
            time.sleep(GLANCE)


def _has_ended(process: int) -> bool:
    """Whether a child has ended; it can be waited for all the same."""
    return os.waitid(os.P_PID, process, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def table(measured: dict[str, Measured], task: Task) -> list[str]:
    """The medians in markdown, and the ratios to each peer."""
    recipe = task.recipe
    tokenizer = load_tokenizer(recipe["model_name_or_path"])
    rows = [{"messages": messages} for messages in task.conversations]
    samples = [sample for row in encode(ChatTemplate(tokenizer), rows, LossRules()) for sample in row]
    supervised = sum(int((sample.labels != IGNORED).sum()) for sample in samples)
    peak = matmul_rate(task.device, getattr(torch, recipe["dtype"]), MATRIX[task.device])
    lengths = [len(sample.input_ids) for sample in samples]
    tokens = sum(lengths)
    needed = sum(
        operations(sizes_of(model_of(recipe)), lengths, supervised, recomputes=recipe["activation_checkpointing"])
    )
    machine = torch.cuda.get_device_name() if task.device == "cuda" else f"{os.cpu_count()} cores"
    lines = [
        f"{machine}, torch {torch.__version__}, Python {sys.version.split()[0]}; {recipe['dtype']}, "
        f"{'NF4' if recipe['load_in_4bit'] else 'not quantised'}; an epoch: {len(samples):,} rows, {tokens:,} tokens, "
        f"{supervised:,} supervised, {needed / 1e12:,.1f} TFLOP; utilisation: of the {peak / 1e12:,.2f} TFLOP/s that "
        "products reach",
        "",
        "| program | s a step | steps an epoch | s an epoch | tokens/s | supervised tokens/s | utilisation | "
        "first step, s | peak GiB | loss |",
        "| --- |" + " --- |" * 9,
    ]
    speeds = {}
    for label, runs in measured.items():
        if runs.failure:
            lines.append(f"| {label} | does not run: {runs.failure} |" + " |" * 8)
            continue
        step = statistics.median(runs.steps)
        epoch = step * runs.steps_per_epoch
        speeds[label] = supervised / epoch
        lines.append(
            f"| {label} | {step:.2f} | {runs.steps_per_epoch:.0f} | {epoch:.0f} | {tokens / epoch:,.0f} | "
            f"{speeds[label]:,.0f} | {needed / epoch / peak:.0%} | {statistics.median(runs.first_step):.0f} | "
            f"{statistics.median(runs.peak_bytes) / 2**30:.2f} | {statistics.mean(runs.losses):.2f} |"
        )
    ours = list(speeds)[:2]
    peers = list(speeds)[2:]
    return (
        lines
        + [""]
        + [f"{a}: {speeds[a] / speeds[b]:.2f} times the supervised tokens/s of {b}" for a in ours for b in peers]
    )


def model_of(recipe: dict) -> MetaModel:
    """The recipe's model and adapter, without their values."""
    keys = ("model_name_or_path", "dtype", "load_in_4bit", "use_peft", "lora_r", "lora_target_modules")
    return MetaModel(ModelConfig(**{key: recipe[key] for key in keys}))


if __name__ == "__main__":
    main()
