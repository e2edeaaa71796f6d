"""A process's place among others where Slurm's `srun` has started them, one task a process, without a launcher.

In: the variables that srun sets. Out: the same ones that torchrun sets. Knows nothing about what is done with them.
"""

import os
import re

# Ports below those that Linux hands out by itself (from 32768), one for each step of the jobs that share a machine.
FIRST_PORT, PORTS = 15000, 15000


def take_place() -> None:
    """Set RANK and the others by which the stack knows a process's place, where this is one task of several.

    What a launcher inside the task has set stays as it is, and so do MASTER_ADDR and MASTER_PORT where a person has
    set them. A batch script and a shell of `salloc` see the number of the job's tasks (SLURM_NTASKS) and are none of
    them; how many tasks a step has (SLURM_STEP_NUM_TASKS), srun tells only those that it starts.
    """
    slurm = os.environ
    tasks = slurm.get("SLURM_STEP_NUM_TASKS", "1")
    if "RANK" in slurm or tasks == "1":
        return
    step = int(slurm["SLURM_JOB_ID"]) + int(slurm["SLURM_STEP_ID"])
    os.environ.setdefault("MASTER_ADDR", first_host(slurm["SLURM_STEP_NODELIST"]))
    os.environ.setdefault("MASTER_PORT", str(FIRST_PORT + step % PORTS))
    os.environ.update(
        RANK=slurm["SLURM_PROCID"],
        WORLD_SIZE=tasks,
        LOCAL_RANK=slurm["SLURM_LOCALID"],
        LOCAL_WORLD_SIZE=str(len(slurm["SLURM_GTIDS"].split(","))),
    )


def first_host(hosts: str) -> str:
    """The first of a list of hosts as Slurm writes it: `node07` of `node[07-09,12],login`.

    The task of rank 0 runs there.
    """
    return re.sub(r"\[(\d+)[^]]*\]", r"\1", hosts).split(",")[0]
