"""Plans a sweep: reads every point as a recipe, with a digest of all that decides how it comes out.

In: a recipe and a grid. Out: a `SweepPlan`. The stack is loaded in a process of its own, which is gone when the plan is
made. Knows nothing about running or about results.
"""

import multiprocessing
import os
import signal
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from sft.config.settings import read_settings
from sft.core.console import console, quiet_the_stack, say
from sft.core.errors import UserError
from sft.sweeps import grid
from sft.sweeps.grid import PlannedPoint, Point, SweepPlan, Value


def plan_sweep(recipe: str, values: dict[str, list[Value]], seeds: int) -> SweepPlan:
    """Read the recipe once for every point, as `train_sft.py` will.

    Raises:
        UserError: whatever `load_recipe`, `require_model` or `load_questions` refuse, an adapter's setting without one.
    """
    from sft.models.model_folder import check_model_folder  # imports tqdm, which asks once whether bars are wanted

    check_model_folder(read_settings([recipe, *grid.arguments_of(_first(values))]).model)
    say("loading PyTorch, Transformers and TRL, and reading the recipe for every point")
    # Reading leaves no trace, but on a GPU torch makes its context of some 400 MB, which lasts as long as the process,
    # and the points are to find every GPU empty; the stack itself takes half a GiB of RAM.
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), _prepare) as planner:
        return planner.submit(plan_here, recipe, values, seeds).result()


def plan_here(recipe: str, values: dict[str, list[Value]], seeds: int) -> SweepPlan:
    """As `plan_sweep`, in this process."""
    import torch

    from sft.config.load import load_recipe
    from sft.models.model_folder import require_model
    from sft.runs.inputs import Digests

    digests, was_quiet = Digests(), console.quiet
    # `plan_sweep` has printed the notes on the recipe; each point would only repeat them.
    console.quiet = True
    try:
        own = load_recipe([recipe, *grid.arguments_of(_first(values))])
        require_model(str(own.model.model_name_or_path), own.model.model_revision)
        rank, seed = own.model.lora_r, own.training.seed
        points = grid.points_of(values, rank, [seed + number for number in range(seeds)])
        planned = [_plan_point(recipe, point, seeds > 1, digests) for point in points]
    finally:
        console.quiet = was_quiet
    count = torch.cuda.device_count()
    visible = [gpu for gpu in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if gpu]
    return SweepPlan(planned, (visible or [str(gpu) for gpu in range(count)])[:count], rank, seed)


def _first(values: dict[str, list[Value]]) -> Point:
    """The first of every key's values; what `lora_alpha=0.25x` multiplies is not known yet."""
    return {key: choices[0] for key, choices in values.items() if key != "lora_alpha"}


def _prepare() -> None:
    # Ctrl-C reaches this process too; it is to end without a traceback, unless a shell's `&` has it ignored.
    if signal.getsignal(signal.SIGINT) != signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    quiet_the_stack()


def _plan_point(recipe: str, point: Point, is_seeded: bool, digests) -> PlannedPoint:
    from sft.config.load import load_recipe
    from sft.runs.inputs import inputs_of

    read = load_recipe([recipe, *grid.arguments_of(point)])
    if not read.model.use_peft and (key := next((key for key in point if key.startswith("lora_")), None)):
        raise UserError(f"{key}: the recipe trains no adapter, so it changes nothing: add use_peft=true")
    without_seed = {key: value for key, value in point.items() if not (is_seeded and key == "seed")}
    return PlannedPoint(
        name=grid.name_of(point) or f"seed={read.training.seed}",
        group=grid.name_of(without_seed) or Path(recipe).stem,
        values=point,
        inputs=inputs_of(read, digests),
        rank=read.model.lora_r if read.model.use_peft else None,
    )
