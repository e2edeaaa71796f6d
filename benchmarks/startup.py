"""How long a person waits: for a command's help, for what is wrong or missing, for a first page or answer.

    python -m benchmarks.startup              # needs the demo's model and data: make demo
    python -m benchmarks.startup --trl        # and TRL's own CLI, by turns with train_sft.py

Starts every program in a process of its own, one after another and all of them several times, and prints a table of
medians. Nothing is trained. Other work on the machine shows in the seconds, hardly in those of the CPU.
"""

import argparse
import os
import statistics
import sys
import tempfile
from pathlib import Path

from benchmarks.processes import measure_program
from sft.core.paths import REPOSITORY

PYTHON = sys.executable
OURS = [PYTHON, str(REPOSITORY / "train_sft.py")]
TRL = [str(Path(PYTHON).parent / "trl"), "sft"]
DATA, MODEL = [PYTHON, "-m", "data_tools"], [PYTHON, "-m", "model_tools"]
DEMO, SMOLLM2 = "recipes/demo.yaml", "models/smollm2-135m-instruct"
NOTHING = "./models/nothing"
ASKED = ["sh", "-c", 'echo 你是谁？ | "$@"', "sh"]
TOKENIZER = f"from transformers import AutoTokenizer; AutoTokenizer.from_pretrained('{SMOLLM2}')"
MODEL_CODE = "from transformers import LlamaForCausalLM"
# What is started, and the exit code that it has to end with.
PROGRAMS: dict[tuple[str, str], tuple[list[str], int]] = {
    ("train_sft.py", "--help"): ([*OURS, "--help"], 0),
    ("train_sft.py", "a model that is not there"): ([*OURS, DEMO, "--model_name_or_path", NOTHING], 2),
    ("train_sft.py", "--dry_run"): ([*OURS, DEMO, "--dry_run", "true"], 0),
    ("data_tools preview", "the demo's first pack"): ([*DATA, "preview", DEMO], 0),
    ("model_tools info", "the demo's model"): ([*MODEL, "info", SMOLLM2], 0),
    ("model_tools info", "a folder that is not there"): ([*MODEL, "info", NOTHING], 2),
    ("model_tools chat", "a model that is not there"): ([*MODEL, "chat", NOTHING], 2),
    ("model_tools chat", "one answer of 24 tokens"): (
        [*ASKED, *MODEL, "chat", SMOLLM2, "--max_new_tokens", "24"],
        0,
    ),
    ("model_tools web", "a model that is not there"): ([*MODEL, "web", NOTHING, "--port", "0"], 2),
    # What the stack takes by itself for what a dry run, a preview and a chat cannot do without.
    ("python", "import torch"): ([PYTHON, "-c", "import torch"], 0),
    ("python", "TRL's SFTConfig imported"): ([PYTHON, "-c", "from trl import SFTConfig"], 0),
    ("python", "the demo's tokenizer loaded"): ([PYTHON, "-c", TOKENIZER], 0),
    ("python", "a model's class imported"): ([PYTHON, "-c", MODEL_CODE], 0),
}
MISTAKES = {"an unknown key": "learning_rat: 2e-4", "a bad value": "lora_r: six"}
# What each needs besides, so that the mistake is the only one.
RECIPE = "model_name_or_path: a_model\ntrain_file: data/demo.jsonl\n"
CONFIG = "model_name_or_path: a_model\ndataset_name: a_data_set\nuse_cpu: true\nbf16: false\n"


def main() -> None:
    """Start every program so many times and print the medians."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--trl", action="store_true", help="start `trl sft` too, with the same mistakes")
    arguments = parser.parse_args()
    os.chdir(REPOSITORY)
    with tempfile.TemporaryDirectory() as scratch:
        programs = PROGRAMS | _mistaken(Path(scratch), with_trl=arguments.trl)
        measured: dict[tuple[str, str], list] = {name: [] for name in programs}
        for _ in range(arguments.repeats):
            for name, (command, exit_code) in programs.items():
                measured[name].append(measure_program(command, exit_code=exit_code))
    print(f"{os.cpu_count()} cores; Python {sys.version.split()[0]}; medians of {arguments.repeats}")
    print("| program | asked | seconds | of them CPU | peak MiB |")
    print("| --- | --- | --- | --- | --- |")
    for (program, asked), rows in measured.items():
        seconds, busy, peak = (statistics.median(column) for column in zip(*rows, strict=True))
        print(f"| {program} | {asked} | {seconds:.2f} | {busy:.2f} | {peak / 2**20:,.0f} |")


def _mistaken(scratch: Path, *, with_trl: bool) -> dict[tuple[str, str], tuple[list[str], int]]:
    """Recipes with one mistake each, and the same for TRL's own CLI."""
    programs = {("trl sft", "--help"): ([*TRL, "--help"], 0)} if with_trl else {}
    for number, (name, line) in enumerate(MISTAKES.items()):
        recipe, config = scratch / f"recipe{number}.yaml", scratch / f"config{number}.yaml"
        recipe.write_text(f"{RECIPE}{line}\n")
        config.write_text(f"{CONFIG}{line}\n")
        programs["train_sft.py", name] = [*OURS, str(recipe)], 2
        if with_trl:
            programs["trl sft", name] = [*TRL, "--config", str(config)], 2
    return programs


if __name__ == "__main__":
    main()
