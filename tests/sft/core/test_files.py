"""The hash of a file is taken anew whenever the file may have changed; a lock is held by who it should be."""

import multiprocessing
import os
import subprocess
import sys

from sft.core import files
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
