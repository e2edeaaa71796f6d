"""The account of a sweep: who may work in its folder, and what it says of a point that has to be run again."""

import subprocess
import sys

import pytest

from sft.core.errors import UserError
from sft.sweeps.grid import PlannedPoint
from sft.sweeps.results import Results, write_record
from sft.sweeps.sweep import InOrder, Sweep, lock_folder


def point(name: str, **inputs) -> PlannedPoint:
    return PlannedPoint(name, name, {}, inputs, 8)


def test_one_sweep_at_a_time_works_in_a_folder(tmp_path):
    with lock_folder(tmp_path / "demo.sweep"), pytest.raises(UserError, match="another sweep is at work here"):
        lock_folder(tmp_path / "demo.sweep").__enter__()
    with lock_folder(tmp_path / "demo.sweep"):
        pass


def test_a_run_that_outlives_its_sweep_keeps_the_folder(tmp_path):
    with lock_folder(tmp_path) as held:
        run = subprocess.Popen([sys.executable, "-c", "input()"], pass_fds=[held], stdin=subprocess.PIPE)
    with pytest.raises(UserError, match="or a run that it left"):
        lock_folder(tmp_path).__enter__()
    run.communicate(b"\n")
    with lock_folder(tmp_path):
        pass


def test_a_folder_that_cannot_be_made_is_told(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="start the sweep where you may write"):
        lock_folder(tmp_path / "file" / "demo.sweep").__enter__()


def test_only_what_has_not_finished_as_it_is_now_waits_and_it_is_said_why(tmp_path, capsys):
    results = Results(**dict.fromkeys(Results.__dataclass_fields__) | {"adapter_bytes": 0, "minutes": 1.0})
    for name in ("same", "changed"):
        (tmp_path / name).mkdir()
        write_record(tmp_path / name, point(name, train_file="old"), results)
    points = [point("same", train_file="old"), point("changed", train_file="new"), point("new", train_file="old")]
    search = InOrder(Sweep(tmp_path, points, "python sweep.py", shows_waiting=True))
    assert [search.next_point().name, search.next_point().name, search.next_point()] == ["changed", "new", None]
    said = capsys.readouterr().out
    assert "same: finished before; not repeated" in said
    assert "changed: runs again, since this changed: train_file" in said
