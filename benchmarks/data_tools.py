"""Speed and peak memory of the verbs on data files, beside the loop people write by hand.

    python -m benchmarks.data_tools --rows 1000000

Makes a file of nested rows of about 1.4 kB like the tutorial's, runs each program in a process of its own, one after
the other, and prints a table.
"""

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path

from benchmarks.processes import measure_program

SYSTEM = (
    "Role: 尖米的智能助手\n\n## Profile\n- author: 尖米\n- language: 中文\n\n"
    "## Rules\n1. 自我认知的问题，强调我是尖米的智能助手。\n"
)

# The loop: parse, replace in every text, write; with a progress bar.
BY_HAND = """
import json, sys
from tqdm import tqdm
def replace(value):
    if isinstance(value, str): return value.replace("尖米", "黄大力")
    if isinstance(value, list): return [replace(item) for item in value]
    if isinstance(value, dict): return {key: replace(item) for key, item in value.items()}
    return value
with open(sys.argv[1], encoding="utf-8") as source, open(sys.argv[2], "w", encoding="utf-8") as out:
    for line in tqdm(source, disable=True):
        out.write(json.dumps(replace(json.loads(line)), ensure_ascii=False) + "\\n")
"""


def main() -> None:
    """Measure every program and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=100_000)
    rows = parser.parse_args().rows
    with tempfile.TemporaryDirectory() as scratch:
        nested, flat = Path(scratch) / "nested.jsonl", Path(scratch) / "flat.jsonl"
        make(nested, rows, nested=True)
        make(flat, rows, nested=False)
        verb = [sys.executable, "-m", "data_tools"]
        out = str(Path(scratch) / "out.jsonl")
        programs = {
            "rename": (nested, [*verb, "rename", str(nested), out, "--force", "--old", "尖米", "--new", "黄大力"]),
            "rename, by hand": (nested, [sys.executable, "-c", BY_HAND, str(nested), out]),
            "convert --to messages": (flat, [*verb, "convert", str(flat), out, "--force", "--to", "messages"]),
        }
        print(f"{rows:,} rows; {os.cpu_count()} cores; Python {sys.version.split()[0]}")
        print("| program | MB | seconds | of them CPU | MB/s | MB per CPU second | peak MiB |")
        print("| --- | --- | --- | --- | --- | --- | --- |")
        speeds = {}
        for name, (source, command) in programs.items():
            seconds, busy, peak = measure_program(command)
            megabytes = source.stat().st_size / 1e6
            speeds[name] = megabytes / seconds
            print(
                f"| {name} | {megabytes:,.0f} | {seconds:.1f} | {busy:.1f} | {speeds[name]:.0f} | "
                f"{megabytes / busy:.0f} | {peak / 2**20:.0f} |"
            )
        for name in ("rename", "convert --to messages"):
            print(f"{name} is {speeds[name] / speeds['rename, by hand']:.2f} times as fast as the loop")


def make(path: Path, rows: int, nested: bool) -> None:
    """Write `rows` rows in XTuner's form, about 1.4 kB each."""
    system = SYSTEM * (4 if nested else 8)
    with open(path, "w", encoding="utf-8") as file:
        for number in range(rows):
            inner = {"conversation": [{"system": system, "input": "xxx", "output": "xxx"}]}
            asked = inner if nested else f"第{number}个问题：你是谁？"
            turn = {"system": system, "input": asked, "output": f"我是尖米的智能助手，第{number}号。"}
            file.write(json.dumps({"conversation": [turn]}, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
