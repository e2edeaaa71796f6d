"""The longest sample that trains in a given amount of memory, with memory-saving keys and without, and the prediction.

    python -m benchmarks.contexts --device cuda --gib 8 16 24            # a model of Llama 3.1 8B's shape
    python -m benchmarks.contexts --device cpu --gib 3 4                 # the demo's model

QLoRA of rank 32 on all linear layers, batches of one sample. On a GPU one process loads the model once; torch's
allocator is held to the size less what CUDA itself takes, and one step is taken of each length. On a CPU each length is
a run of train_sft.py whose process may allocate no more than the size, which is more than it ever holds: what the plan
predicts is less by as much.
"""

import argparse
import json
import subprocess
import tempfile
from pathlib import Path

import torch
import yaml
from transformers import PreTrainedTokenizerBase

from benchmarks.one_load import OneLoad
from benchmarks.processes import started_after
from benchmarks.scaling import BEST, FOUR, PLAIN, UNSLOTH, longest_predicted
from benchmarks.shapes import SHAPES, make_model
from benchmarks.tasks import MADE, MODEL, add_device, device_of, precision_on
from sft.core.errors import RunFailed
from sft.core.paths import REPOSITORY
from sft.data.encoding import LossRules, encode
from sft.models.chat_template import ChatTemplate
from sft.models.loading import load_tokenizer
from sft.runs.run_files import read_plan
from sft.training.gpu import usable_bytes
from sft.training.memory import CUDA_CONTEXT, GIB, predict_memory

CAPPED = """
import resource
resource.setrlimit(resource.RLIMIT_DATA, ({0}, {0}))
"""
# What torch, Python, C++, OpenBLAS and, where there is no room for a stack, threads say when memory runs out.
OUT_OF_MEMORY = (
    "out of memory",
    "MemoryError",
    "bad_alloc",
    "allocate memory",
    "Memory allocation",
    "can't start new thread",
)
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
    """Print a table of the sizes that were asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_device(parser)
    parser.add_argument("--gib", nargs="+", type=float, required=True, help="sizes to try, in GiB")
    arguments = parser.parse_args()
    device = device_of(parser, arguments)
    if device == "cuda":
        on_gpu(arguments.gib)
    else:
        on_cpu(arguments.gib)


def on_gpu(sizes: list[float]) -> None:
    """A row a size, from what the plan predicts on."""
    load = OneLoad(make_model(SHAPES["Llama-3.1-8B"], MODEL, MADE / "llama3_8b", "cuda"))
    print("| GiB | best keys | the plan for it, GiB | without them | the plan for it, GiB | Unsloth |")
    print("| --- | --- | --- | --- | --- | --- |", flush=True)
    for gib in sizes:
        cells = [f"{gib:g}"]
        for keys in (BEST, PLAIN):
            fits = Steps(load, QLORA | precision_on("cuda") | keys, round(gib * GIB) - CUDA_CONTEXT)
            guess = longest_predicted(usable_bytes(round(gib * GIB)), **FOUR, **keys, lora_r=QLORA["lora_r"])
            tokens, predicted = longest(fits, max(guess, STEP), growth=1.1)
            cells += [f"{tokens:,}" if tokens else "none", predicted]
        cells.append(f"{UNSLOTH[gib][0]:,}" if gib in UNSLOTH else "")
        print(f"| {' | '.join(cells)} |", flush=True)


def on_cpu(sizes: list[float]) -> None:
    """A row a size, from the shortest sample on."""
    recomputed = QLORA | precision_on("cpu") | {"activation_checkpointing": True, "lora_dropout": 0.0}
    print("| GiB | recomputed | the plan for it, GiB | not recomputed | the plan for it, GiB |")
    print("| --- | --- | --- | --- | --- |", flush=True)
    for gib in sizes:
        cells = [f"{gib:g}"]
        for keys in (recomputed, recomputed | {"activation_checkpointing": False}):
            tokens, predicted = longest(Trial(MODEL, keys, round(gib * GIB)))
            cells += [f"{tokens:,}" if tokens else "none", predicted]
        print(f"| {' | '.join(cells)} |", flush=True)


class LongSample:
    """Conversations of so many tokens under a model's template."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase):
        rows = [{"messages": self._row(words)} for words in (1, 2)]
        samples = encode(ChatTemplate(tokenizer), rows, LossRules())
        one, two = (len(sample.input_ids) for (sample,) in samples)
        self._a_word, self._around = two - one, one - (two - one)

    def write(self, folder: str, tokens: int) -> str:
        """A file of two such rows; its path."""
        row = json.dumps({"messages": self._row((tokens - self._around) // self._a_word)})
        path = Path(folder, "rows.jsonl")
        path.write_text(f"{row}\n" * 2, encoding="utf-8")
        return str(path)

    def _row(self, words: int) -> list[dict[str, str]]:
        return [{"role": "user", "content": "Count."}, {"role": "assistant", "content": " one" * words}]


class Trial:
    """Training with some keys in a process of so many bytes; called with a length, whether that trains."""

    def __init__(self, model: Path, keys: dict, size: int):
        self._settings, self._size = keys | {"model_name_or_path": str(model)}, size
        self._sample = LongSample(load_tokenizer(str(model)))
        self.predicted = ""  # the plan's peak of the longest sample that trained, in GiB

    def __call__(self, tokens: int) -> bool:
        with tempfile.TemporaryDirectory() as folder:
            recipe = Path(folder, "recipe.yaml")
            files = {"train_file": self._sample.write(folder, tokens), "output_dir": str(Path(folder, "run"))}
            recipe.write_text(yaml.safe_dump(self._settings | files | {"max_length": tokens}), encoding="utf-8")
            command = started_after(CAPPED.format(self._size), str(REPOSITORY / "train_sft.py"), str(recipe))
            result = subprocess.run(command, cwd=folder, capture_output=True, text=True)
            if result.returncode == 0:
                self.predicted = f"{read_plan(Path(folder, 'run'))['memory']['peak'] / GIB:.1f}"
                return True
        if not any(words in result.stderr for words in OUT_OF_MEMORY):
            raise SystemExit(f"{tokens} tokens: {result.stderr[-1500:]}")
        return False


class Steps:
    """Two steps in this process, torch's allocator held to so many bytes; called with a length, whether that trains."""

    def __init__(self, load: OneLoad, keys: dict, size: int):
        self._load, self._keys, self._size = load, keys, size
        self._sample = LongSample(load.tokenizer)
        self.predicted = ""

    def __call__(self, tokens: int) -> bool:
        with tempfile.TemporaryDirectory() as folder:
            files = {"train_file": self._sample.write(folder, tokens), "output_dir": str(Path(folder, "run"))}
            recipe = self._load.recipe(**self._keys, **files, max_length=tokens)
            packs, card = self._load.data(recipe)
            trainer = self._load.trainer(recipe, packs, card)
            torch.cuda.set_per_process_memory_fraction(min(1.0, self._size / torch.cuda.mem_get_info()[1]))
            try:
                trainer.train()
            except RunFailed as problem:
                if "out of memory" not in str(problem):
                    raise
                return False
            finally:
                torch.cuda.set_per_process_memory_fraction(1.0)
                self._load.give_back(trainer)
        self.predicted = f"{predict_memory(recipe, card, on_gpu=True).peak / GIB:.1f}"
        return True


def longest(trains: Trial | Steps, guess: int = STEP, *, growth: float = 2.0) -> tuple[int, str]:
    """The longest sample that trains, to a thirtieth of its length, 0 for none, and what the plan says of it.

    The guess is tried first, then what is `growth` times as long or as short, until one trains and the other does not.
    """
    short, long = 0, guess
    if trains(guess):
        while trains(long := max(guess + STEP, _whole(guess * growth))):
            guess = long
        short = guess
    else:
        while long > STEP and not trains(short := min(long - STEP, _whole(long / growth))):
            long, short = short, 0
    while long - short > max(STEP, short // 30):
        middle = (short + long) // 2 // STEP * STEP
        short, long = (middle, long) if trains(middle) else (short, middle)
    return short, trains.predicted


def _whole(tokens: float) -> int:
    return int(tokens) // STEP * STEP


if __name__ == "__main__":
    main()
