"""Starts a run in this process: its place among others, its tools, its environment, and its recipe in them.

In: settings. Out: the recipe, built in the process group of the run. Works the same under `deepspeed`, `torchrun`,
`accelerate launch`, Slurm's `srun` and plain `python`. Knows nothing about models or data.
"""

import io
import os
import socket
import sys
from collections.abc import Callable
from contextlib import redirect_stdout
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import other as accelerate_unwrapping

from sft.config.load import build_recipe, settings_for_this_machine
from sft.config.recipe import Recipe
from sft.config.settings import Settings
from sft.core.console import is_main_process
from sft.core.errors import UserError
from sft.core.imports import importing

# A layer's products have some dozen shapes, forward and backward.
KERNELS_OF_A_STEP = "64"
SINGLE_PROCESS = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1"}


def start(settings: Settings) -> Recipe:
    """Prepare this process for a run and build the run's recipe in it; afterwards the process group is open.

    Raises:
        UserError: the settings cannot be trained by on this machine, the stack does not take a value, or DeepSpeed's op
            cannot be compiled.
    """
    settings = settings_for_this_machine(settings)  # before anything is compiled or opened
    limit_cpu_threads()
    keep_few_kernels()
    leave_deepspeed_out()
    if settings.deepspeed:
        prepare_for_deepspeed(settings.deepspeed)
    recipe = build_recipe(settings)
    if settings.deepspeed:
        join_deepspeed_group(recipe.training.ddp_timeout_delta)
    return recipe


def limit_cpu_threads() -> None:
    """Give each of several CPU processes its part of the cores; all of them on every core only slow each other."""
    processes = int(os.environ.get("LOCAL_WORLD_SIZE") or os.environ.get("LOCAL_SIZE") or 1)
    if processes > 1 and not torch.accelerator.is_available() and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // processes))


def keep_few_kernels() -> None:
    """Let oneDNN keep the kernels of a step, not of the last 1,024 shapes: packs differ in length, most never return.

    Called before the first product in half precision on a CPU, which reads it.
    """
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", KERNELS_OF_A_STEP)


def leave_deepspeed_out() -> None:
    """Keep accelerate from importing DeepSpeed, more than a second, to see that it has wrapped no model.

    Where nothing else has imported it, it has not.
    """
    accelerate_unwrapping.is_deepspeed_available = lambda: "deepspeed" in sys.modules


def prepare_for_deepspeed(config: dict[str, Any]) -> None:
    """Set what DeepSpeed and its compiler expect in the environment, and load the op through which CPU processes talk.

    Called before anything asks for a process group. Plain `python` becomes a group of one, so that a recipe
    that names a DeepSpeed configuration runs without a launcher too.

    Raises:
        UserError: the op is not there yet and cannot be compiled.
    """
    if "RANK" not in os.environ:
        os.environ.update(SINGLE_PROCESS, MASTER_PORT=str(_free_port()))
    # The compiler driver of torch calls `ninja` by name; it is installed beside the interpreter.
    tools = str(Path(sys.executable).parent)
    if tools not in os.environ.get("PATH", "").split(os.pathsep):
        os.environ["PATH"] = os.pathsep.join([tools, os.environ.get("PATH", "")])

    import deepspeed

    from sft.training import op_build

    if "optimizer" not in config:
        # Whatever the optimizer is, DeepSpeed asks whether it is Muon, whose module has torch's compiler imported.
        with importing():
            import deepspeed.runtime.zero.muon.muon_optimizer

    op_build.build_ops_aside()
    builder = deepspeed.accelerator.get_accelerator().create_op_builder("ShareMemCommBuilder")
    if builder and deepspeed.ops.__compatible_ops__.get(builder.NAME):
        builder.load()


def join_deepspeed_group(timeout: timedelta) -> None:
    """Open DeepSpeed's process group, in which nobody waits longer than `timeout` for another.

    ZeRO-3 counts its processes when the model is made, before a trainer would open it. On a GPU the training arguments
    have opened it; on a CPU they open torch's alone.
    """
    import deepspeed

    # It prints that its op was built, from every process and whether or not it was.
    with redirect_stdout(io.StringIO()):
        deepspeed.init_distributed(auto_mpi_discovery=False, timeout=timeout)


def broadcast_from_main(decide: Callable[[], Any]) -> Any:
    """What the main process decides, in every process of the run; so is its UserError.

    Called by all processes. A process that has joined no group decides for itself alone.
    """
    decision, mistake = None, None
    if is_main_process():
        try:
            decision = decide()
        except UserError as error:
            mistake = str(error)
    if torch.distributed.is_initialized():
        outcome = [decision, mistake]
        torch.distributed.broadcast_object_list(outcome, src=0)
        decision, mistake = outcome
    if mistake:
        raise UserError(mistake)
    return decision


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
