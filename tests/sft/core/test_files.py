"""Hashes follow changes; files and folders are written whole or not at all, and what is no file is written through."""

import errno
import multiprocessing
import os
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from sft.core import files
from sft.core.errors import ReaderGone, UserError
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


@pytest.fixture
def umask():
    """Set the umask; it is what it was when the test ends."""
    before = os.umask(0o022)
    yield os.umask
    os.umask(before)


def write(path: Path, content: bytes = b"new\n") -> None:
    with files.atomic_write(path) as file:
        file.write(content)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.parametrize(("mask", "of_files", "of_folders"), [(0o022, 0o644, 0o755), (0o077, 0o600, 0o700)])
def test_what_is_new_has_the_mode_that_the_umask_leaves(tmp_path, umask, mask, of_files, of_folders):
    umask(mask)
    write(tmp_path / "file")
    with files.atomic_folder(tmp_path / "out") as aside:
        (aside / "inner").mkdir()
        (aside / "inner" / "file").touch(mode=0o600)
    made = tmp_path / "out" / "inner"
    assert [mode(path) for path in (tmp_path / "file", made / "file", made, tmp_path / "out")] == [
        *[of_files] * 2,
        *[of_folders] * 2,
    ]


def test_what_is_written_over_keeps_its_mode_and_owner(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")
    path.chmod(0o640)
    if os.geteuid() == 0:
        os.chown(path, 12345, 12345)
    owner = path.stat().st_uid
    write(path)
    assert (path.read_text(), mode(path), path.stat().st_uid) == ("new\n", 0o640, owner)
    (tmp_path / "out").mkdir(mode=0o750)
    with files.atomic_folder(tmp_path / "out") as aside:
        (aside / "file").touch()
    assert mode(tmp_path / "out") == 0o750


@pytest.mark.parametrize("is_there", [True, False])
def test_a_link_stays_and_what_it_points_to_is_written(tmp_path, is_there):
    target = tmp_path / "elsewhere" / "target"
    if is_there:
        target.parent.mkdir()
        target.write_text("old")
    (tmp_path / "link").symlink_to("elsewhere/target")
    (tmp_path / "link to link").symlink_to("link")
    write(tmp_path / "link to link")
    assert target.read_text() == "new\n"
    assert os.readlink(tmp_path / "link to link") == "link"
    assert os.listdir(target.parent) == ["target"]
    (tmp_path / "folder").symlink_to("elsewhere/folder")
    with files.atomic_folder(tmp_path / "folder") as aside:
        (aside / "file").touch()
    assert (tmp_path / "folder").is_symlink()
    assert os.listdir(target.parent / "folder") == ["file"]


def test_a_pipe_is_written_through(tmp_path):
    pipe, heard = tmp_path / "pipe", []
    os.mkfifo(pipe)
    reader = threading.Thread(target=lambda: heard.append(pipe.read_bytes()))
    reader.start()
    write(pipe)
    reader.join()
    assert heard == [b"new\n"]
    assert pipe.is_fifo()
    assert os.listdir(tmp_path) == ["pipe"]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make a device")
def test_a_device_is_written_through_and_stays_one(tmp_path):
    null, full = tmp_path / "null", tmp_path / "full"
    os.mknod(null, 0o600 | stat.S_IFCHR, os.makedev(1, 3))
    os.mknod(full, 0o600 | stat.S_IFCHR, os.makedev(1, 7))
    write(null)
    with pytest.raises(UserError, match="full: cannot be written: No space left on device"):
        write(full)
    assert sorted(os.listdir(tmp_path)) == ["full", "null"]
    assert null.is_char_device()
    assert mode(null) == 0o600


@pytest.mark.parametrize("name", ["/dev/fd/{}", "/proc/self/fd/{}", "link"])
def test_a_descriptor_is_written_where_it_stands(tmp_path, name):
    with open(tmp_path / "out", "wb", buffering=0) as out:
        (tmp_path / "link").symlink_to(f"/dev/fd/{out.fileno()}")
        out.write(b"before\n")
        write(tmp_path / name.format(out.fileno()))
        out.write(b"after\n")
    assert (tmp_path / "out").read_text() == "before\nnew\nafter\n"


def test_where_the_reader_has_gone_the_writer_ends(tmp_path):
    reader, writer = os.pipe()
    os.close(reader)
    with pytest.raises(ReaderGone):
        write(Path(f"/dev/fd/{writer}"))
    os.close(writer)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("loop", os.strerror(errno.ELOOP)),
        ("file/out", os.strerror(errno.ENOTDIR)),
        ("n" * 256, os.strerror(errno.ENAMETOOLONG)),
        ("a\0b", "no file can have this name here"),
        ("a\ud800b", "no file can have this name here"),
        ("/dev/fd/999", os.strerror(errno.EBADF)),
        ("/proc/out", ""),
    ],
)
def test_what_cannot_be_written_is_one_line(tmp_path, name, said):
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "file").touch()
    writers = [write, lambda path: files.atomic_folder(path).__enter__()]
    for writer in writers[:1] if "/dev/" in name else writers:
        with pytest.raises(UserError, match="cannot be written: ") as caught:
            writer(tmp_path / name)
        assert said in str(caught.value)
        assert "\n" not in str(caught.value)
    assert sorted(os.listdir(tmp_path)) == ["file", "loop"]


def test_a_name_as_long_as_names_can_be_is_written(tmp_path):
    name = "数" * 85
    write(tmp_path / name)
    assert os.listdir(tmp_path) == [name]


def test_an_output_is_looked_at_before_the_work(tmp_path):
    source, out = tmp_path / "in", tmp_path / "out"
    source.write_text("in")
    for path in (out, tmp_path / "missing" / "out", Path("/dev/null"), Path("/dev/stdout")):
        files.check_output(path, [source], force=False)
    out.touch()
    files.check_output(out, [source], force=False)
    out.write_text("there")
    (tmp_path / "link").symlink_to(out)
    for path in (out, tmp_path / "link"):
        with pytest.raises(UserError, match="is there already: name another file, or overwrite it with --force"):
            files.check_output(path, [source], force=False)
        files.check_output(path, [source], force=True)
    for path, said in ((source, "is an input as well"), (tmp_path, "is a directory"), (out / "x", "Not a directory")):
        with pytest.raises(UserError, match=said):
            files.check_output(path, [source], force=True)
