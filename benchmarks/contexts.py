"""The longest sample that trains in so much memory, with the keys that save it and without, beside what the plan says.

    python -m benchmarks.contexts --device cuda --gib 8 12 16 24 80      # a model of Llama 3.1 8B's shape
    python -m benchmarks.contexts --device cpu --gib 3 4                 # the demo's model

QLoRA of rank 32 on all linear layers, batches of one sample, two steps of train_sft.py. torch's allocator for the GPU
is held to the size, less what CUDA itself takes of a card. A process on a CPU may allocate no more than that, which is
more than it ever holds: what the plan predicts is less by as much.
"""

import argparse
import json
import re
import subprocess
import tempfile
from pathlib import Path

import yaml

from benchmarks.prepared import started_after
from benchmarks.scaling import BEST, PLAIN, UNSLOTH
from benchmarks.shapes import SHAPES, make_model
from benchmarks.tasks import MADE, MODEL, add_device, device_of, precision_on
from sft.chat_template import training_template
from sft.encoding import encode
from sft.memory import CUDA_CONTEXT, GIB
from sft.model import load_tokenizer
from sft.paths import REPOSITORY

CAPPED = """
import resource, torch
size = {}
if torch.cuda.is_available():
    torch.cuda.set_per_process_memory_fraction(size / torch.cuda.mem_get_info()[1])
else:
    resource.setrlimit(resource.RLIMIT_DATA, (size, size))
"""
# What torch, Python and C++ say where there is no more.
TOO_LITTLE = ("out of memory", "MemoryError", "bad_alloc", "allocate memory")
QLORA = {
    "load_in_4bit": True,
    "use_bnb_nested_quant": True,
    "use_peft": True,
    "lora_r": 32,
    "lora_target_modules": "all-linear",
    "packing": False,
    "per_device_train_batch_size": 1,
    "max_steps": 2,
    "logging_steps": 1,
    "save_strategy": "no",
    "report_to": "none",
    "resume": "never",
}
STEP = 128  # tokens


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_device(parser)
    parser.add_argument("--gib", nargs="+", type=float, required=True, help="sizes to try, in GiB")
    arguments = parser.parse_args()
    device = device_of(parser, arguments)
    on_gpu = device == "cuda"
    if on_gpu:
        model = make_model(SHAPES["Llama-3.1-8B"], MODEL, MADE / "llama3_8b", "cuda")
        ways = {"best keys": BEST, "without them": PLAIN}
    else:
        model = MODEL
        keys = {"activation_checkpointing": True, "lora_dropout": 0.0}
        ways = {"recomputed": keys, "not recomputed": keys | {"activation_checkpointing": False}}
    print("| GiB |", " | ".join(f"{name} | the plan for it, GiB" for name in ways), "| Unsloth |" if on_gpu else "|")
    print("| --- |" + " --- |" * (2 * len(ways) + on_gpu), flush=True)
    for gib in arguments.gib:
        size = round(gib * GIB) - (CUDA_CONTEXT if on_gpu else 0)
        cells = [f"{gib:g}"]
        for keys in ways.values():
            tokens, predicted = longest(Trial(model, QLORA | precision_on(device) | keys, size))
            cells += [f"{tokens:,}" if tokens else "none", predicted]
        if on_gpu:
            cells.append(f"{UNSLOTH[gib][0]:,}" if gib in UNSLOTH else "")
        print(f"| {' | '.join(cells)} |", flush=True)


class Trial:
    """Training with some keys in so many bytes; called with a length, whether that trains."""

    def __init__(self, model: Path, keys: dict, size: int):
        self._settings, self._size = keys | {"model_name_or_path": str(model)}, size
        tokenizer = load_tokenizer(str(model))
        samples = encode(tokenizer, training_template(tokenizer), [self._row(1), self._row(2)])
        one, two = (len(ids) for ids, _ in samples)
        self._a_word, self._around = two - one, one - (two - one)
        self.predicted = ""  # the plan's peak of the longest sample that trained, in GiB

    def __call__(self, tokens: int) -> bool:
        with tempfile.TemporaryDirectory() as folder:
            data, recipe = Path(folder, "rows.jsonl"), Path(folder, "recipe.yaml")
            row = json.dumps({"messages": self._row((tokens - self._around) // self._a_word)})
            data.write_text(f"{row}\n" * 2, encoding="utf-8")
            files = {"train_file": str(data), "output_dir": str(Path(folder, "run")), "max_length": tokens}
            recipe.write_text(yaml.safe_dump(self._settings | files), encoding="utf-8")
            command = started_after(CAPPED.format(self._size), str(REPOSITORY / "train_sft.py"), str(recipe))
            result = subprocess.run(command, cwd=folder, capture_output=True, text=True)
        if result.returncode == 0:
            self.predicted = re.search(r"memory +([\d.]+) GiB", result.stdout)[1]
            return True
        if not any(words in result.stderr for words in TOO_LITTLE):
            raise SystemExit(f"{tokens} tokens: {result.stderr[-500:]}")
        return False

    def _row(self, words: int) -> list[dict[str, str]]:
        """A conversation whose answer is so many words long."""
        return [{"role": "user", "content": "Count."}, {"role": "assistant", "content": " one" * words}]


def longest(trains: Trial) -> tuple[int, str]:
    """The longest sample that trains, to a thirtieth of its length, 0 for none, and what the plan says of it."""
    short, long = 0, STEP
    while trains(long):
        short, long = long, 2 * long
    while long - short > max(STEP, short // 30):
        middle = (short + long) // 2 // STEP * STEP
        short, long = (middle, long) if trains(middle) else (short, middle)
    return short, trains.predicted


if __name__ == "__main__":
    main()
