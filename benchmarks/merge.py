"""Time and peak memory of merging an adapter: `model_tools merge` beside PEFT's merge_and_unload.

    python -m benchmarks.merge

Makes a Llama of 941 million random weights in bfloat16 (1.9 GB) and an adapter of rank 64 on all its linear layers,
merges them by turns with both, each in a process of its own, and prints a table. Takes 8 GB of disk. Both read the base
from the page cache, where making it has left it. Ours ends when what it wrote is on the disk, PEFT's before: how long
that takes is added in a column of its own.
"""

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.processes import measure_program

MAKE = """
import sys, torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM
torch.manual_seed(0)
torch.set_default_dtype(torch.bfloat16)
model = LlamaForCausalLM(LlamaConfig(hidden_size=2048, intermediate_size=5504, num_hidden_layers=16))
model.save_pretrained(sys.argv[1], max_shard_size="2GB")
model.name_or_path = sys.argv[1]
tuned = get_peft_model(model, LoraConfig(r=64, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM"))
for name, weight in tuned.named_parameters():
    if "lora_B" in name:
        torch.nn.init.normal_(weight, std=0.02)
tuned.save_pretrained(sys.argv[2])
"""
BY_PEFT = """
import sys
from peft import PeftModel
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype="auto")
PeftModel.from_pretrained(model, sys.argv[2]).merge_and_unload().save_pretrained(sys.argv[3], max_shard_size="2GB")
"""


def main() -> None:
    """Make the models, merge them with both programs, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="where the models are made (default: a temporary folder)")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as scratch:
        base, adapter, out = (str(Path(scratch) / name) for name in ("base", "adapter", "out"))
        subprocess.run([sys.executable, "-c", MAKE, base, adapter], check=True)
        programs = {
            "model_tools merge": [sys.executable, "-m", "model_tools", "merge", "--no-verify", base, adapter, out],
            "PEFT merge_and_unload": [sys.executable, "-c", BY_PEFT, base, adapter, out],
        }
        measured = {name: [] for name in programs}
        for repeat in range(arguments.repeats):
            # Neither is always the one that comes after the other.
            for name, command in list(programs.items())[:: -1 if repeat % 2 else 1]:
                seconds, busy, peak = measure_program(command)
                ended = time.perf_counter()
                os.sync()
                measured[name].append((seconds, seconds + time.perf_counter() - ended, busy, peak))
                shutil.rmtree(out)
    print(f"{os.cpu_count()} cores; Python {sys.version.split()[0]}; medians of {arguments.repeats}")
    print("| merging 1.9 GB, rank 64 | seconds | until it is on the disk | CPU seconds | peak MiB |")
    print("| --- | --- | --- | --- | --- |")
    medians = {
        name: [statistics.median(column) for column in zip(*rows, strict=True)] for name, rows in measured.items()
    }
    for name, (seconds, stored, busy, peak) in medians.items():
        print(f"| {name} | {seconds:.1f} | {stored:.1f} | {busy:.1f} | {peak / 2**20:,.0f} |")
    ours, theirs = medians.values()
    time_share, stored_share, busy_share, peak_share = (our / their for our, their in zip(ours, theirs, strict=True))
    print(
        f"ours takes {time_share:.2f} of the time, {stored_share:.2f} until it is on the disk, {busy_share:.2f} of the "
        f"CPU time and {peak_share:.2f} of the memory"
    )


if __name__ == "__main__":
    main()
