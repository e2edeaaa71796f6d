"""The hash of a file is taken anew whenever the file may have changed."""

import os

from sft.core import files
from sft.core.files import content_hash, file_hash


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
