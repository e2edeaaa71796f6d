"""Makes the hidden files and folders in which something is written before it takes its name, and removes dead ones.

Whoever writes one holds a lock on it for as long as it lives, so that what is not locked is what a killed process
has left, and the next one that writes beside it removes it. Knows nothing about what is written.
"""

import fcntl
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

LONGEST_NAME = 255  # bytes, on nearly every file system
MARK = ".partial."
NAME = re.compile(rf"\..*{re.escape(MARK)}[0-9a-z_]{{8}}", re.DOTALL)


@contextmanager
def file_beside(target: Path, mode: int) -> Iterator[tuple[Path, int]]:
    """Yield the path and the descriptor of a new file in the folder of `target`; it is gone at the end if still there.

    `mode` is what the file may be at most, before the umask.

    Raises:
        OSError: it cannot be made.
    """
    remove_abandoned(target.parent)
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    aside, handle = _locked(target, lambda path: os.open(path, flags, mode))
    try:
        yield aside, handle
    finally:
        with suppress(OSError):
            aside.unlink()
        os.close(handle)


@contextmanager
def folder_beside(target: Path) -> Iterator[Path]:
    """Yield a new folder in the folder of `target`; it is gone at the end if it is still there.

    Raises:
        OSError: it cannot be made.
    """
    remove_abandoned(target.parent)

    def make(path: Path) -> int | None:
        path.mkdir()
        try:
            return os.open(path, os.O_RDONLY)
        except FileNotFoundError:
            return None  # it was taken for a dead one

    aside, handle = _locked(target, make)
    try:
        yield aside
    finally:
        shutil.rmtree(aside, ignore_errors=True)
        os.close(handle)


def remove_abandoned(folder: Path) -> None:
    """Remove what writers that are dead have left in a folder; what cannot be removed stays."""
    with suppress(OSError), os.scandir(folder) as entries:
        for path in [Path(entry) for entry in entries if NAME.fullmatch(entry.name)]:
            _remove_if_abandoned(path)


def _locked(target: Path, make: Callable[[Path], int | None]) -> tuple[Path, int]:
    """The path of what was made, and its descriptor, which holds the lock."""
    while True:
        aside = _name_beside(target)
        try:
            handle = make(aside)
        except FileExistsError:
            continue
        if handle is None:
            continue
        with suppress(OSError):  # a file system without locks: there nothing is ever taken for dead
            fcntl.flock(handle, fcntl.LOCK_EX)
        if _is_at(aside, handle):
            return aside, handle
        os.close(handle)  # removed before it was locked


def _name_beside(target: Path) -> Path:
    random = os.urandom(4).hex()
    room = LONGEST_NAME - len(f".{MARK}{random}")
    stem = os.fsencode(target.name)[:room].decode(sys.getfilesystemencoding(), "ignore")
    return target.with_name(f".{stem}{MARK}{random}")


def _remove_if_abandoned(path: Path) -> None:
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not _is_at(path, handle):
            return
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()
    except OSError:
        pass  # its writer lives, or it is somebody else's
    finally:
        os.close(handle)


def _is_at(path: Path, handle: int) -> bool:
    try:
        return os.path.samestat(os.stat(path, follow_symlinks=False), os.fstat(handle))
    except FileNotFoundError:
        return False
