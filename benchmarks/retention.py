"""What ordinary rows and anchor rows do to the identity score and to what is left of the base model.

    make models/smollm2-135m-instruct/config.json
    python -m benchmarks.retention

Trains the demo model with recipes/demo.yaml, the same identity rows and the same number of steps each time, mixed with
a growing share of ordinary rows (the bank's short answers) or anchor rows (the base model's own), and prints a table.
"""

import argparse
import json
import random
import subprocess
import sys
from pathlib import Path

from data_tools.generate import generate, write
from sft.core.paths import REPOSITORY
from sft.runs.run_files import read_result

NAME = "黄大力"
IDENTITY_ROWS = 324
SHARES = (0.0, 0.1, 0.3, 0.5)
ANCHORED = (0.3,)
ANCHOR_QUESTIONS, ANCHOR_TOKENS = 200, 64


def main() -> None:
    """Train on each mixture and print its scores."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=100, help="optimizer steps of each run (100)")
    parser.add_argument("--folder", type=Path, default=Path("work_dirs/retention"), help="where data and runs go")
    arguments = parser.parse_args()
    folder = arguments.folder
    folder.mkdir(parents=True, exist_ok=True)
    identity = generate(NAME, None, IDENTITY_ROWS, 0, 0.0)
    ordinary = generate(NAME, None, IDENTITY_ROWS, 0, 1.0)
    anchors = anchor_rows(folder, ordinary[:ANCHOR_QUESTIONS])
    kinds = [("ordinary", ordinary, share) for share in SHARES] + [("anchor", anchors, share) for share in ANCHORED]
    print("| rows mixed in | identity | zh | en | ordinary without the name | KL, nats | perplexity |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for kind, rows, share in kinds:
        found = train(folder, f"{kind}{share:.0%}", identity, rows, share, arguments.steps)
        print(
            f"| {share:.0%} {kind} | {found['identity']:.0%} | {found['zh']:.0%} | {found['en']:.0%} | "
            f"{found['ordinary_kept']:.0%} | {found['divergence']:.3f} | x{found['perplexity_ratio']:.2f} |",
            flush=True,
        )


def anchor_rows(folder: Path, ordinary: list[dict]) -> list[dict]:
    """The base model's own answers to the questions of the ordinary rows, asked once."""
    out, questions = folder / "anchors.jsonl", folder / "questions.jsonl"
    if not out.exists():
        write(questions, ordinary)
        model = str(REPOSITORY / "models" / "smollm2-135m-instruct")
        command = [
            sys.executable,
            "-m",
            "data_tools",
            "anchor",
            str(out),
            "--model",
            model,
            "--prompts",
            str(questions),
        ]
        subprocess.run(command, check=True, cwd=REPOSITORY)
    return [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]


def train(folder: Path, name: str, identity: list[dict], rows: list[dict], share: float, steps: int) -> dict:
    """The scores at the end of a run on the identity rows, with so large a share of the others mixed in.

    Where there are too few others, they are taken again.
    """
    wanted = round(len(identity) * share / (1 - share))
    mixed = identity + [rows[place % len(rows)] for place in range(wanted)]
    random.Random(0).shuffle(mixed)
    data, run = folder / f"{name}.jsonl", folder / name
    write(data, mixed)
    settings = {
        "train_file": data, "output_dir": run, "max_steps": steps, "identity_name": NAME,
        "eval_prompts_steps": 0, "score_seconds": 600, "save_strategy": "no", "deepspeed": "",
    }  # fmt: skip
    flags = [part for key, value in settings.items() for part in (f"--{key}", str(value))]
    with open(folder / f"{name}.log", "w", encoding="utf-8") as log:
        command = [sys.executable, "train_sft.py", "recipes/demo.yaml", *flags]
        subprocess.run(command, check=True, cwd=REPOSITORY, stdout=log, stderr=subprocess.STDOUT)
    result = read_result(REPOSITORY / run)
    if result is None or result.score is None:
        raise SystemExit(f"{run}: left no score: see {log.name}")
    return result.score


if __name__ == "__main__":
    main()
