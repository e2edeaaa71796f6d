"""A hash is taken anew where the file may have changed; a folder is written whole or not at all; one holds a lock."""

import multiprocessing
import os
import subprocess
import sys

import pytest

from sft.core import files
from sft.core.errors import UserError
from sft.core.files import content_hash, exclusive_lock, file_hash


def test_a_file_that_was_just_written_is_hashed_anew(tmp_path):
    path = tmp_path / "file"
    # Many changes between two ticks of the clock that stamps files, and none of size.
    for number in range(100, 999):
        path.write_text(str(number))
        assert content_hash(path) == file_hash(path)


def test_a_file_that_stays_as_it_is_is_read_once(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "UNSETTLED_NS", 0)
    path = tmp_path / "file"
    path.write_text("one")
    readings = files._known_hash.cache_info().misses
    assert content_hash(path) == content_hash(str(path)) == file_hash(path)
    assert files._known_hash.cache_info().misses == readings + 1
    os.chmod(path, 0o600)
    assert content_hash(path) == file_hash(path)
    assert files._known_hash.cache_info().misses == readings + 2


def test_a_folder_takes_its_name_when_it_is_complete(tmp_path):
    out = tmp_path / "parent" / "out"
    with files.atomic_folder(out) as aside:
        (aside / "file").write_text("x")
        assert not out.exists()
    assert (out / "file").read_text() == "x"
    assert [path.name for path in out.parent.iterdir()] == ["out"]


def test_a_folder_that_failed_on_the_way_leaves_nothing(tmp_path):
    def write_half() -> None:
        with files.atomic_folder(tmp_path / "out") as aside:
            (aside / "file").write_text("x")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        write_half()
    assert list(tmp_path.iterdir()) == []


def test_an_occupied_folder_is_refused_and_left_alone(tmp_path):
    (tmp_path / "mine").write_text("x")
    with pytest.raises(UserError, match="is there already and not empty"), files.atomic_folder(tmp_path):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_one_at_a_time_holds_a_lock(tmp_path):
    with exclusive_lock(tmp_path / "lock"):
        assert exclusive_lock(tmp_path / "lock") is None
    with exclusive_lock(tmp_path / "lock"):
        pass


def test_a_forked_worker_does_not_keep_the_lock(tmp_path):
    file, (ours, theirs) = exclusive_lock(tmp_path / "lock"), multiprocessing.Pipe()
    # As of `datasets`, which waits for more to do when its parent is killed.
    worker = multiprocessing.get_context("fork").Process(target=lambda: (theirs.send("forked"), theirs.recv()))
    worker.start()
    ours.recv()
    file.close()
    with exclusive_lock(tmp_path / "lock"):
        pass
    ours.send("end")
    worker.join()


def test_a_program_that_was_given_the_lock_keeps_it(tmp_path):
    with exclusive_lock(tmp_path / "lock") as file:
        program = subprocess.Popen([sys.executable, "-c", "input()"], pass_fds=[file.fileno()], stdin=subprocess.PIPE)
    assert exclusive_lock(tmp_path / "lock") is None
    program.communicate(b"\n")
    with exclusive_lock(tmp_path / "lock"):
        pass
