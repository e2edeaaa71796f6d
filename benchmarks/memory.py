"""What a run's plan says of its peak memory beside what the run then held, on a CPU.

    python -m benchmarks.memory                    # about half an hour
    python -m benchmarks.memory --settings 1 2     # some of them, by number

Trains the demo (recipes/demo.yaml) with other settings, a run each. Peaks are the largest resident set of the process
(getrusage), torch and the stack included, as the plan counts them.
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import yaml

from benchmarks.tasks import MODEL
from sft.core.paths import REPOSITORY
from sft.models.precision import multiplies_bfloat16
from sft.runs.run_files import read_plan, read_result
from sft.training.memory import GIB

STEPS = 20
ZERO2 = {"deepspeed": "ds_configs/zero2.json"}
ALONE = {"deepspeed": None}
FLOAT32, BFLOAT16 = {"dtype": "float32", "bf16": False}, {"dtype": "bfloat16", "bf16": True}
SILENT = {"save_strategy": "no"}
UNASKED = {"identity_name": "", "eval_prompts": []}
WHOLE = {"load_in_4bit": False}
TRAINED_ALONE: list[dict[str, Any]] = [
    FLOAT32 | ZERO2,
    FLOAT32 | ALONE,
    FLOAT32 | ZERO2 | WHOLE | {"lora_r": 4, "max_length": 512},
    FLOAT32
    | ZERO2
    | WHOLE
    | {"lora_r": 16, "activation_checkpointing": True, "max_length": 128, "per_device_train_batch_size": 2},
    BFLOAT16 | ZERO2,
    BFLOAT16 | ALONE,
    BFLOAT16 | ZERO2 | {"activation_checkpointing": True},
    BFLOAT16 | ALONE | {"lora_r": 16, "max_length": 512},
    BFLOAT16 | ZERO2 | {"optim": "adamw_torch"},
]
# Training alone, then with questions and scores.
SETTINGS = [SILENT | UNASKED | keys for keys in TRAINED_ALONE] + [FLOAT32 | ZERO2, FLOAT32 | ALONE]


def main() -> None:
    """Run the settings and print a row for each as it ends."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    numbers = range(1, len(SETTINGS) + 1)
    parser.add_argument("--settings", type=int, nargs="+", choices=numbers, default=numbers, help="numbers of settings")
    arguments = parser.parse_args()
    print("| | changed | the plan, MiB | measured, MiB | of measured |")
    print("| --- | --- | --- | --- | --- |", flush=True)
    for number in arguments.settings:
        keys = SETTINGS[number - 1]
        changed = " ".join(f"{key}: {value}" for key, value in keys.items())
        if keys["dtype"] == "bfloat16" and not multiplies_bfloat16():
            print(f"| {number} | {changed} | | | not run: this CPU has no bfloat16 |", flush=True)
            continue
        predicted, measured = peaks(keys)
        share = f"{predicted / measured:.0%}"
        print(f"| {number} | {changed} | {predicted / 2**20:,.0f} | {measured / 2**20:,.0f} | {share} |", flush=True)


def peaks(keys: dict[str, Any]) -> tuple[float, float]:
    """Bytes: what the plan of a run with these keys says, and what the run held."""
    recipe = yaml.safe_load((REPOSITORY / "recipes/demo.yaml").read_text(encoding="utf-8"))
    recipe |= keys | {"model_name_or_path": str(MODEL), "max_steps": STEPS, "report_to": "none", "resume": "never"}
    recipe["train_file"] = str(REPOSITORY / recipe["train_file"])
    if keys["deepspeed"]:
        recipe["deepspeed"] = str(REPOSITORY / keys["deepspeed"])
    with tempfile.TemporaryDirectory() as folder:
        run, file = Path(folder, "run"), Path(folder, "recipe.yaml")
        file.write_text(yaml.safe_dump(recipe | {"output_dir": str(run)}, allow_unicode=True), encoding="utf-8")
        command = [sys.executable, str(REPOSITORY / "train_sft.py"), str(file)]
        subprocess.run(command, cwd=folder, check=True, stdout=subprocess.DEVNULL)
        result = read_result(run)
        assert result
        return read_plan(run)["memory"]["peak"], result.peak_memory_gib * GIB


if __name__ == "__main__":
    main()
