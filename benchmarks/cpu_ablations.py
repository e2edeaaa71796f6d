"""What each way to train faster or in less memory is worth on a CPU, one at a time against the demo's recipe.

    python -m benchmarks.cpu_ablations

Runs the recipe as it stands and, by turns with it, with one thing changed, and prints what that does to a step. What is
not a key of a recipe is taken out of the code for the run. Each run is a process, whose memory is its own. For a GPU
there is benchmarks.ablations.
"""

import argparse
import statistics

from benchmarks.peers import Here, Job
from benchmarks.processes import started_after
from benchmarks.tasks import TASKS
from benchmarks.train import Measured, run

HEAP = {"MALLOC_MMAP_THRESHOLD_": "4294967296", "MALLOC_TRIM_THRESHOLD_": "8589934592"}
TRAINER = """
from sft.core import console
console.quiet_the_stack()
import sft.training.trainer
"""


class Changed(Here):
    """The recipe with other keys, or with some lines of the trainer replaced before the script runs."""

    def __init__(self, label: str, *, replacing: str = "", **keys):
        super().__init__(label, **keys)
        self.replacing = replacing

    def command(self, job: Job) -> list[str]:
        python, *rest = super().command(job)
        return started_after(TRAINER + self.replacing, *rest) if self.replacing else [python, *rest]


def without(part: str) -> str:
    """Lines that switch off one of the trainer's ways to spare the CPU."""
    return f"sft.training.trainer.{part} = lambda model: False"


ABLATIONS = (
    Changed("float32 (`dtype: float32`, `bf16: false`)", dtype="float32", bf16=False),
    Changed("TRL's head: all tokens scored, twice", replacing=without("use_masked_lm_head")),
    Changed(
        "every token of a pack computed",
        replacing="sft.training.trainer.can_leave_tokens_out = lambda *_, **__: False",
    ),
    Changed("attention over whole packs", replacing=without("use_packed_attention")),
    Changed("PEFT's own LoRA layers", replacing=without("fuse_lora")),
    Changed("PEFT's own LoRA layers, no DeepSpeed", replacing=without("fuse_lora"), deepspeed=None),
    Changed("no DeepSpeed (`deepspeed:` empty)", deepspeed=None),
    Changed(
        "attention by torch's flash kernel for CPUs alone",
        replacing="from sft.training import packed_attention\npacked_attention.SHORT = 0",
    ),
    Changed("`optim: adamw_torch`", optim="adamw_torch"),
    Changed("`optim: adamw_torch`, no DeepSpeed", optim="adamw_torch", deepspeed=None),
    Changed("`activation_checkpointing: true`", activation_checkpointing=True),
    Changed("`lora_dropout: 0.1`", lora_dropout=0.1),
    Changed("not quantised (`load_in_4bit: false`)", load_in_4bit=False),
    Changed("`packing: false`, batches of 4 rows", packing=False, per_device_train_batch_size=4),
    Changed("`dataloader_num_workers: 1`", dataloader_num_workers=1),
    Changed("one thread (`OMP_NUM_THREADS=1`)", OMP_NUM_THREADS="1"),
    Changed("a heap that keeps what is freed (`MALLOC_...`)", **HEAP),
    Changed("packs of 1,024 tokens", max_length=1024),
    Changed("packs of 1,024, attention over whole packs", max_length=1024, replacing=without("use_packed_attention")),
)


def main() -> None:
    """Train with each change by turns and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=16, help="steps a run, the first 4 to warm up (16)")
    parser.add_argument("--repeats", type=int, default=2, help="runs of each change (2)")
    arguments = parser.parse_args()
    task = TASKS["demo"]("cpu")
    programs = [Changed("the recipe as it stands"), *ABLATIONS]
    measured = {program.label: Measured() for program in programs}
    for _ in range(arguments.repeats):
        for program in programs:
            run(program, task, arguments.steps, measured[program.label])
    print("\n".join(table(measured)))


def table(measured: dict[str, Measured]) -> list[str]:
    """What a step takes with each change, beside the recipe as it stands."""
    lines = ["| changed | s a step | an epoch takes | peak GiB |", "| --- | --- | --- | --- |"]
    base = None
    for label, runs in measured.items():
        if runs.failure:
            lines.append(f"| {label} | {runs.failure} | | |")
            continue
        step, peak = statistics.median(runs.steps), statistics.median(runs.peak_bytes) / 2**30
        epoch = step * runs.steps_per_epoch
        base = base or epoch
        lines.append(f"| {label} | {step:.2f} | {epoch / base:.2f} times as long | {peak:.2f} |")
    return lines


if __name__ == "__main__":
    main()
