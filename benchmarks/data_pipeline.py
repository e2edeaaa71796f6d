"""Speed and peak memory of a start up to its plan: reading, tokenising, packing and checking a training file.

    python -m benchmarks.data_pipeline --rows 10000 100000 1000000
    python -m benchmarks.data_pipeline --rows 10000000 --characters 28        # of short answers
    python -m benchmarks.data_pipeline --rows 10000 100000 --against trl      # beside TRL's own preparation of it

Makes files of conversations of varied length, cut out of this repository's English and Chinese prose, and prepares each
in a fresh process with an empty cache (cold) and again with what that left there (warm); then three tenths of it with a
file held out, from the samples that are there. The tokenizer is the demo model's
(`make models/smollm2-135m-instruct/config.json`). Seconds are of the preparation alone, without imports; of CPU: what
all processes computed in them, which does not depend on what else the machine does.

Memory is the most that all processes together held at one moment, shared pages counted once: `own` is what they
allocated, `mapped` what they had in view of files, which the kernel takes back when anybody needs the room.
"""

import argparse
import json
import math
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import yaml

from sft.core.paths import REPOSITORY

PROSE = [path.read_text(encoding="utf-8") for path in sorted((REPOSITORY / "docs").glob("*.md"))]
MAX_LENGTH = 4096
# A look at their memory walks the page tables of all processes, some 25 ms: in a longer run they are rarer.
LOOKS, SHORTEST_PAUSE, LONGEST_PAUSE = 200, 0.1, 2.0

OURS = """
import json, os, sys, time
from sft.core.console import quiet_the_stack
quiet_the_stack()
from sft.config.load import load_recipe
from sft.data.dataset import load_dataset, load_held_out
from sft.evaluation.diagnosis import warnings_before_training
from sft.models.loading import load_tokenizer
recipe = load_recipe([sys.argv[1]])
tokenizer = load_tokenizer(recipe.model.model_name_or_path)
started, busy = time.perf_counter(), sum(os.times()[:4])
packs, card = load_dataset(recipe, tokenizer)
load_held_out(recipe, tokenizer)
card.lines()
warnings_before_training(recipe, tokenizer, card)
cpu = sum(os.times()[:4]) - busy
print(json.dumps({"seconds": time.perf_counter() - started, "cpu": cpu, "packs": len(packs)}))
"""

# As a user of TRL has it: the same settings, and a trainer, for which the smallest model will do.
TRLS = """
import json, os, sys, time
from sft.core.console import quiet_the_stack
quiet_the_stack()
from datasets import load_dataset
from transformers import LlamaConfig, LlamaForCausalLM
from trl import SFTConfig, SFTTrainer
from benchmarks.peers import MARKED_TEMPLATE
from sft.config.load import load_recipe
from sft.models.loading import load_tokenizer
recipe = load_recipe([sys.argv[1]])
tokenizer = load_tokenizer(recipe.model.model_name_or_path)
tokenizer.chat_template = MARKED_TEMPLATE.read_text()
size = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
model = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **size))
keys = ("output_dir", "max_length", "packing", "shuffle_dataset", "seed", "dataset_num_proc")
settings = {key: getattr(recipe.training, key) for key in keys}
arguments = SFTConfig(**settings, assistant_only_loss=True, bf16=False, use_cpu=True, report_to="none")
started, busy = time.perf_counter(), sum(os.times()[:4])
rows = load_dataset("json", data_files=recipe.train_files[0].path, split="train")
trainer = SFTTrainer(model, arguments, train_dataset=rows, processing_class=tokenizer)
cpu = sum(os.times()[:4]) - busy
print(json.dumps({"seconds": time.perf_counter() - started, "cpu": cpu, "packs": len(trainer.train_dataset)}))
"""


def main() -> None:
    """Measure every program with every number of rows and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 100_000])
    parser.add_argument("--characters", type=int, default=200, help="of an answer, in the median")
    parser.add_argument("--against", nargs="*", default=[], choices=("trl",), help="programs beside this one")
    parser.add_argument("--dataset_num_proc", type=int, default=len(os.sched_getaffinity(0)))
    arguments = parser.parse_args()
    print(f"{arguments.dataset_num_proc} processes, {os.cpu_count()} cores; Python {sys.version.split()[0]}")
    print("| program | rows | MB | cold s | of CPU | warm s | of CPU | peak MiB, own | main process | mapped | packs |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    for rows in arguments.rows:
        with tempfile.TemporaryDirectory() as scratch:
            file, recipe = Path(scratch) / "rows.jsonl", Path(scratch) / "recipe.yaml"
            make(file, rows, arguments.characters)
            size = f"{rows:,} | {file.stat().st_size / 1e6:,.0f}"
            write_recipe(recipe, arguments.dataset_num_proc, train_file=str(file))
            for name, program in {"here": OURS, **dict.fromkeys(arguments.against, TRLS)}.items():
                report(name, size, program, recipe, Path(scratch) / name)
            held_out = Path(scratch) / "held_out.jsonl"
            make(held_out, max(rows // 100, 1), arguments.characters, seed=1)
            mixed = {"train_file": [{"path": str(file), "weight": 0.3}], "eval_file": str(held_out)}
            write_recipe(recipe, arguments.dataset_num_proc, **mixed)
            report("here, 0.3 of it and a file held out", size, OURS, recipe, Path(scratch) / "here")


def report(name: str, size: str, program: str, recipe: Path, cache: Path) -> None:
    """Prepare twice, and print a line of the table."""
    cold, peak = run(program, recipe, cache)
    warm, _ = run(program, recipe, cache)
    print(
        f"| {name} | {size} | {cold['seconds']:.1f} | {cold['cpu']:.1f} | {warm['seconds']:.1f} | {warm['cpu']:.1f} | "
        f"{peak['own'] / 1024:,.0f} | {peak['main'] / 1024:,.0f} | {peak['mapped'] / 1024:,.0f} | {cold['packs']:,} |",
        flush=True,
    )


def make(path: Path, rows: int, characters: int, seed: int = 0) -> None:
    """Write conversations of one to three turns, all below `MAX_LENGTH`, with so long an answer in the median."""
    dice = random.Random(seed)
    with open(path, "w", encoding="utf-8") as file:
        for number in range(rows):
            messages = []
            for _ in range(dice.choice((1, 1, 1, 2, 3))):
                question = f"{number}: {_words(dice, dice.randint(10, max(3 * characters // 5, 10)))}"
                answer = _words(dice, min(int(dice.lognormvariate(math.log(characters), 0.9)), 700))
                messages += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
            file.write(json.dumps({"messages": messages}, ensure_ascii=False) + "\n")


def _words(dice: random.Random, characters: int) -> str:
    prose = dice.choice(PROSE)
    start = dice.randrange(len(prose) - characters)
    return prose[start : start + characters] + "."


def write_recipe(path: Path, processes: int, **keys: object) -> None:
    """The demo's recipe with these keys, without the launcher that only training needs."""
    recipe = yaml.safe_load((REPOSITORY / "recipes" / "demo.yaml").read_text(encoding="utf-8"))
    del recipe["deepspeed"]
    recipe |= {"max_length": MAX_LENGTH, "dataset_num_proc": processes}
    recipe |= {"output_dir": str(path.parent / "run")} | keys
    path.write_text(yaml.safe_dump(recipe, allow_unicode=True), encoding="utf-8")


def run(program: str, recipe: Path, cache: Path) -> tuple[dict, dict[str, int]]:
    """What the program says of itself, and its peak memory in KiB."""
    # What was written before is still on its way to the disk, and would be paid for here.
    os.sync()
    environment = os.environ | {"HF_DATASETS_CACHE": str(cache), "HF_DATASETS_DISABLE_PROGRESS_BARS": "1"}
    process = subprocess.Popen(
        [sys.executable, "-c", program, str(recipe)], cwd=REPOSITORY, env=environment, stdout=subprocess.PIPE
    )
    started, peak = time.perf_counter(), {"own": 0, "main": 0, "mapped": 0}
    while process.poll() is None:
        memory = list(_memory(process.pid))
        if memory:
            own, mapped = (sum(column) for column in zip(*memory, strict=True))
            now = {"own": own, "main": memory[0][0], "mapped": mapped}
            peak = {kind: max(peak[kind], now[kind]) for kind in peak}
        time.sleep(min(max((time.perf_counter() - started) / LOOKS, SHORTEST_PAUSE), LONGEST_PAUSE))
    if process.returncode:
        raise SystemExit("failed: the lines above say why")
    return json.loads(process.stdout.read().splitlines()[-1]), peak


def _memory(pid: int) -> Iterator[tuple[int, int]]:
    """(own, mapped) KiB of a process and of all it started, the process itself first."""
    try:
        family = [pid, *(child.pid for child in psutil.Process(pid).children(recursive=True))]
    except psutil.NoSuchProcess:
        return
    for member in family:
        try:
            lines = Path(f"/proc/{member}/smaps_rollup").read_text().splitlines()
        except OSError:
            continue
        sizes = {key: int(size.split()[0]) for key, _, size in (line.partition(":") for line in lines[1:])}
        yield sizes["Pss_Anon"], sizes["Pss_File"]


if __name__ == "__main__":
    main()
