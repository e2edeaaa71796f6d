"""What a process makes of the variables that Slurm sets; `tests/faults/test_slurm.py` has them set by Slurm itself."""

import os

import pytest

from sft.core.slurm import first_host, take_place

# Of the third of four tasks on two nodes, as Slurm 22.05 sets them.
TASK = {
    "SLURM_JOB_ID": "1204",
    "SLURM_STEP_ID": "2",
    "SLURM_NTASKS": "4",
    "SLURM_STEP_NUM_TASKS": "4",
    "SLURM_STEP_NODELIST": "gpu[07-08]",
    "SLURM_PROCID": "2",
    "SLURM_LOCALID": "0",
    "SLURM_GTIDS": "2,3",
}
# A batch script sees itself as task 0 and no step; a shell of salloc is a step of one task, or sees the job alone.
BATCH = {"SLURM_JOB_ID": "1204", "SLURM_NTASKS": "4", "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_GTIDS": "0"}
INTERACTIVE_STEP = BATCH | {"SLURM_STEP_ID": "4294967290", "SLURM_STEP_NUM_TASKS": "1", "SLURM_STEP_NODELIST": "gpu07"}
SHELL = {"SLURM_JOB_ID": "1204", "SLURM_NTASKS": "4"}


@pytest.fixture
def place_in(monkeypatch):
    """The environment that a process has afterwards, beyond the one it was given."""

    def take(**given: str) -> dict[str, str]:
        monkeypatch.setattr(os, "environ", dict(given))
        take_place()
        return {name: value for name, value in os.environ.items() if given.get(name) != value}

    return take


def test_a_task_of_several_knows_its_place_as_under_torchrun(place_in):
    assert place_in(**TASK) == {
        "RANK": "2",
        "WORLD_SIZE": "4",
        "LOCAL_RANK": "0",
        "LOCAL_WORLD_SIZE": "2",
        "MASTER_ADDR": "gpu07",
        "MASTER_PORT": "16206",
    }


def test_steps_of_jobs_that_share_a_machine_meet_at_ports_of_their_own(place_in):
    ports = {place_in(**TASK | {"SLURM_JOB_ID": job})["MASTER_PORT"] for job in ("1204", "1205", "1000000")}
    assert len(ports) == 3
    assert all(1024 < int(port) < 32768 for port in ports)


@pytest.mark.parametrize("environment", [BATCH, INTERACTIVE_STEP, SHELL, {}])
def test_a_process_that_srun_has_not_started_beside_others_is_alone(place_in, environment):
    assert place_in(**environment) == {}


def test_what_a_launcher_inside_a_task_says_is_kept(place_in):
    assert place_in(**TASK, RANK="5", WORLD_SIZE="8") == {}


def test_an_address_that_a_person_has_set_is_kept(place_in):
    place = place_in(**TASK, MASTER_ADDR="10.0.0.7", MASTER_PORT="29500")
    assert place.keys() == {"RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"}


@pytest.mark.parametrize(
    ("hosts", "first"),
    [
        ("localhost", "localhost"),
        ("first,second", "first"),
        ("node[07-09,12],login", "node07"),
        ("gpu-a[3]-ib,gpu-b[1-2]-ib", "gpu-a3-ib"),
        ("rack[2-3]n[1,4]", "rack2n1"),
    ],
)
def test_the_first_host_of_a_list(hosts, first):
    assert first_host(hosts) == first
