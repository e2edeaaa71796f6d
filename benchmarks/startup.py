"""How long a person waits for a command's help, or for what is wrong in a recipe: here, and by TRL's own CLI.

    python -m benchmarks.startup

Starts `train_sft.py` and `trl sft` by turns, each time in a process of its own, with --help and with configurations
that hold one mistake, and prints a table of medians. Nothing is loaded or trained.
"""

import argparse
import os
import statistics
import sys
import tempfile
from pathlib import Path

from benchmarks.processes import measure_program
from sft.core.paths import REPOSITORY

OURS = [sys.executable, str(REPOSITORY / "train_sft.py")]
TRL = [str(Path(sys.executable).parent / "trl"), "sft"]
MISTAKES = {"an unknown key": "learning_rat: 2e-4", "a bad value": "lora_r: six"}
# What each needs besides, so that the mistake is the only one.
RECIPE = "model_name_or_path: a_model\ntrain_file: data/demo.jsonl\n"
CONFIG = "model_name_or_path: a_model\ndataset_name: a_data_set\nuse_cpu: true\nbf16: false\n"


def main() -> None:
    """Start every program so many times and print the medians."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    repeats = parser.parse_args().repeats
    with tempfile.TemporaryDirectory() as scratch:
        programs = {
            ("train_sft.py", "--help"): ([*OURS, "--help"], 0),
            ("trl sft", "--help"): ([*TRL, "--help"], 0),
        }
        for number, (name, line) in enumerate(MISTAKES.items()):
            recipe, config = Path(scratch) / f"recipe{number}.yaml", Path(scratch) / f"config{number}.yaml"
            recipe.write_text(f"{RECIPE}{line}\n")
            config.write_text(f"{CONFIG}{line}\n")
            programs["train_sft.py", name] = [*OURS, str(recipe)], 2
            programs["trl sft", name] = [*TRL, "--config", str(config)], 2
        measured = {name: [] for name in programs}
        for _ in range(repeats):
            for name, (command, exit_code) in programs.items():
                measured[name].append(measure_program(command, exit_code=exit_code))
    print(f"{os.cpu_count()} cores; Python {sys.version.split()[0]}; medians of {repeats}")
    print("| program | asked | seconds | of them CPU | peak MiB |")
    print("| --- | --- | --- | --- | --- |")
    for (program, asked), rows in measured.items():
        seconds, busy, peak = (statistics.median(column) for column in zip(*rows, strict=True))
        print(f"| {program} | {asked} | {seconds:.2f} | {busy:.2f} | {peak / 2**20:,.0f} |")


if __name__ == "__main__":
    main()
