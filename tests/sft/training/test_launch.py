"""What a process takes of its machine, and what the main process decides for all."""

import os
import sys

import pytest
import torch
from accelerate.utils import extract_model_from_parallel

from sft.core.errors import UserError
from sft.training.launch import broadcast_from_main, leave_deepspeed_out, limit_cpu_threads

NEEDS_A_CPU = pytest.mark.skipif(torch.accelerator.is_available(), reason="threads are left alone beside a GPU")


@pytest.fixture
def threads(monkeypatch):
    """As many threads as torch takes by itself, whatever was set for the tests; put back afterwards."""
    before = torch.get_num_threads()
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    yield
    torch.set_num_threads(before)


@NEEDS_A_CPU
@pytest.mark.parametrize("variable", ["LOCAL_WORLD_SIZE", "LOCAL_SIZE"])  # of torchrun, of DeepSpeed's launcher
def test_processes_that_share_a_cpu_share_its_cores(threads, monkeypatch, variable):
    cores = len(os.sched_getaffinity(0))
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    monkeypatch.setenv(variable, "2")
    limit_cpu_threads()
    assert torch.get_num_threads() == max(1, cores // 2)


def test_a_number_of_threads_that_a_person_set_is_kept(threads, monkeypatch):
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    cores = torch.get_num_threads()
    limit_cpu_threads()
    assert torch.get_num_threads() == cores


def test_without_a_process_group_a_process_decides_for_itself():
    assert broadcast_from_main(lambda: {"steps": 3}) == {"steps": 3}

    def refuse():
        raise UserError("lora_r: 0: too low")

    with pytest.raises(UserError, match="lora_r: 0: too low"):
        broadcast_from_main(refuse)


def test_without_deepspeed_no_model_is_looked_for_in_its_wrapper(monkeypatch):
    leave_deepspeed_out()
    monkeypatch.delitem(sys.modules, "deepspeed", raising=False)
    model = torch.nn.Identity()
    assert extract_model_from_parallel(model) is model
    assert "deepspeed" not in sys.modules
