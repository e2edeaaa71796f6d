"""How a run ends: codes, one line, and a process that is gone without being aborted on the way."""

import os
import subprocess
import sys

import pytest

from sft.core.errors import RunFailed, Stopped, UserError
from sft.core.exit_codes import exit_code
from sft.core.paths import REPOSITORY

# Operations that gloo has not done when the process ends, on tensors that only it still holds.
UNFINISHED_BUSINESS = """
import os, sys, torch, torch.distributed as dist
from sft.core.exit_codes import exit_now
dist.init_process_group("gloo", init_method="file://" + sys.argv[1], rank=0, world_size=1)
whole = torch.ones(10_000_000)
for _ in range(300):
    tensor = whole[:]
    tensor.note = "has a part in Python"
    dist.all_reduce(tensor, async_op=True)
    del tensor
print("done")
import atexit
atexit.register(print, "exit functions done")
exit_now(0)
"""


def test_a_process_leaves_whole_whatever_the_threads_of_its_group_still_do(tmp_path):
    """With `sys.exit` in the place of `leave` it is aborted (-6)."""
    ended = subprocess.run(
        [sys.executable, "-c", UNFINISHED_BUSINESS, tmp_path / "meeting"],
        env=os.environ | {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 0, ended.stderr[-2000:]
    assert ended.stdout == "done\nexit functions done\n"


@pytest.mark.parametrize(
    ("end", "code"), [(UserError("what"), 2), (RunFailed("what"), 3), (Stopped("what"), 75)], ids=lambda each: str(each)
)
def test_each_ending_is_one_line_and_has_its_code(end, code, capsys):
    assert exit_code(end) == code
    assert capsys.readouterr().err == "train_sft.py: what\n"


def test_an_interruption_before_training_is_told(capsys):
    assert exit_code(KeyboardInterrupt()) == 130
    assert capsys.readouterr().err == "train_sft.py: stopped before training began; nothing was to be saved\n"


def test_a_bug_keeps_its_traceback():
    with pytest.raises(ZeroDivisionError):
        exit_code(ZeroDivisionError())
