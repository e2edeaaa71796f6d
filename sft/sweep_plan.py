"""What a sweep will run: every point read as a recipe, with a digest of all that decides how it comes out.

In: a recipe and a grid. Out: a `Plan`. The stack is loaded in a process of its own, which is gone when the plan is
made. Knows nothing about running or about results.
"""

import json
import multiprocessing
import os
import signal
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_tools.errors import UserError
from sft import grid
from sft.grid import Point, Value

MODEL_TEXTS = (".json", ".jinja", ".model")  # of a model folder: configuration, tokenizer, chat template


@dataclass(frozen=True)
class PlannedPoint:
    """One run of the sweep. Two points with equal `inputs` come out alike; `group` is the name without the seed."""

    name: str
    group: str
    values: Point
    inputs: dict[str, Any]
    rank: int | None


@dataclass(frozen=True)
class Plan:
    """All points, the GPUs to run them on (none: the CPU), and the recipe's own rank and seed."""

    points: list[PlannedPoint]
    gpus: list[str]
    rank: int
    seed: int


def make(recipe: str, values: dict[str, list[Value]], seeds: int) -> Plan:
    """Read the recipe once for every point, as `train_sft.py` will.

    Raises:
        UserError: whatever `load_recipe` or `load_questions` refuse, a rank below 1, an adapter's setting without one.
    """
    # Reading a recipe for training opens a process group and, on a GPU, a context of some 400 MB: the points are to
    # find every GPU empty.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, context, _prepare) as apart:
        return apart.submit(make_here, recipe, values, seeds).result()


def make_here(recipe: str, values: dict[str, list[Value]], seeds: int) -> Plan:
    """`make`, in this process."""
    import torch

    from sft.console import console
    from sft.recipe import load_recipe

    # What `lora_alpha=0.25x` multiplies is not known yet; everything else is.
    first = {key: choices[0] for key, choices in values.items() if key != "lora_alpha"}
    own = load_recipe([recipe, *grid.arguments_of(first)])
    rank, seed = own.model.lora_r, own.training.seed
    points = grid.points_of(values, rank, [seed + number for number in range(seeds)])
    digests, was_quiet = _Digests(), console.quiet
    # What there is to say about the recipe has been said; the points would only repeat it.
    console.quiet = True
    try:
        planned = [_planned(recipe, point, seeds > 1, digests) for point in points]
    finally:
        console.quiet = was_quiet
    count = torch.cuda.device_count()
    named = [gpu for gpu in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if gpu]
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    return Plan(planned, (named or [str(gpu) for gpu in range(count)])[:count], rank, seed)


def _prepare() -> None:
    from sft.console import quiet_the_stack

    # Ctrl-C reaches this process too; it is to end without a traceback, unless a shell's `&` has it ignored.
    if signal.getsignal(signal.SIGINT) != signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    quiet_the_stack()


def _planned(recipe: str, point: Point, is_seeded: bool, digests: "_Digests") -> PlannedPoint:
    from sft.recipe import load_recipe

    read = load_recipe([recipe, *grid.arguments_of(point)])
    if read.model.use_peft and read.model.lora_r < 1:
        raise UserError(f"lora_r={read.model.lora_r}: a rank is a whole number of at least 1")
    if not read.model.use_peft and (key := next((key for key in point if key.startswith("lora_")), None)):
        raise UserError(f"{key}: the recipe trains no adapter, so it changes nothing: add use_peft=true")
    without_seed = {key: value for key, value in point.items() if not (is_seeded and key == "seed")}
    return PlannedPoint(
        name=grid.name_of(point) or f"seed={read.training.seed}",
        group=grid.name_of(without_seed) or Path(recipe).stem,
        values=point,
        inputs=_inputs(read, digests),
        rank=read.model.lora_r if read.model.use_peft else None,
    )


def _inputs(recipe, digests: "_Digests") -> dict[str, Any]:
    """Every setting that was chosen; where one names a file or a model's folder, what is in it instead."""
    from sft.questions import BUILT_IN, load_questions
    from sft.recipe import PATH_KEYS, SECRET_KEYS

    chosen = {key: value for key, value in recipe.chosen.items() if key not in SECRET_KEYS | grid.TAKEN.keys()}
    chosen["seed"] = recipe.training.seed
    if recipe.run.identity_name:
        chosen["score_file"] = recipe.run.score_file or str(BUILT_IN)
        load_questions(chosen["score_file"])  # a run would read it only after its data
    for key in PATH_KEYS:
        if isinstance(chosen.get(key), str):
            chosen[key] = digests.of(chosen[key])
    chosen["train_file"] = [[digests.of(file.path), file.weight] for file in recipe.train_files]
    return json.loads(json.dumps(chosen, default=str))


class _Digests:
    """Digests of files and model folders, each made once; what is neither, such as a hub id, stands for itself."""

    def __init__(self):
        self._known: dict[str, Any] = {}

    def of(self, name: str) -> str | dict[str, str]:
        if name not in self._known:
            self._known[name] = _digest(name)
        return self._known[name]


def _digest(name: str) -> str | dict[str, str | None]:
    """SHA-256 of a file; of a model folder, its weights' fingerprint and SHA-256 of every small file."""
    from sft.dataset import file_hash
    from sft.fingerprint import fingerprint

    # Not of pathlib: these take any text, a DeepSpeed configuration written out in the recipe too.
    if os.path.isfile(name):
        return file_hash(name)
    if not os.path.isdir(name):
        return name
    texts = sorted(file for file in Path(name).iterdir() if file.suffix in MODEL_TEXTS and file.is_file())
    return {"weights": fingerprint(name)} | {file.name: file_hash(file) for file in texts}
