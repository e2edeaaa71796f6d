"""Reads files line by line, and writes files and folders atomically: complete and on the disk, or not at all.

Knows nothing about what a line, a file or a folder holds.
"""

import codecs
import functools
import gzip
import hashlib
import io
import os
import shutil
import sys
import tempfile
import time
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, TypeVar

import zstandard

from sft.core.errors import UserError

Item = TypeVar("Item")

ITEMS_PER_UPDATE = 256
BUFFER = 1 << 18
UNSETTLED_NS = 2_000_000_000
# With these a file begins that is compressed.
GZIP, ZSTD = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"
BYTE_ORDER_MARKS = (codecs.BOM_UTF8, codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


def numbered_lines(path: str | Path) -> Iterator[tuple[int, bytes]]:
    """Yield (line number from 1, bytes) for every line that is not blank, with a progress bar on a terminal.

    A UTF-8 byte order mark at the start is taken off; what is compressed with gzip or zstd is decompressed on the way.

    Raises:
        UserError: the file cannot be read, or is UTF-16.
    """
    with reading(path), open(path, "rb", buffering=BUFFER) as file:
        yield from with_progress(path, file, lines_of(path, decompressed(file)))


@contextmanager
def reading(path: str | Path) -> Iterator[None]:
    """Raise `UserError` where the file cannot be opened, read or decompressed."""
    try:
        yield
    except (OSError, EOFError, zlib.error, zstandard.ZstdError) as problem:
        reason = getattr(problem, "strerror", None) or problem
        raise UserError(f"{path}: cannot be read: {reason}: check the path and its permissions") from None


def lines_of(path: str | Path, file: Iterable[bytes]) -> Iterator[tuple[int, bytes]]:
    """As `numbered_lines`, of a file that is open already."""
    for number, line in enumerate(file, start=1):
        if number == 1 and line.startswith(BYTE_ORDER_MARKS):
            line = _without_mark(path, line)
        if line and not line.isspace():
            yield number, line


def with_progress(path: str | Path, file: BinaryIO, items: Iterable[Item]) -> Iterator[Item]:
    """Pass on what is read from the open file, and show on a terminal how far into it we are."""
    from tqdm import tqdm  # which looks only now whether bars are wanted; `console.quiet_the_stack`

    size, is_shown = os.fstat(file.fileno()).st_size, sys.stderr.isatty()
    name = f"reading {Path(path).name}"
    with tqdm(total=size, desc=name, unit="B", unit_scale=True, leave=False, disable=not is_shown) as bar:
        for number, item in enumerate(items):
            if number % ITEMS_PER_UPDATE == 0:
                bar.update(file.tell() - bar.n)
            yield item
        bar.update((bar.total or 0) - bar.n)


def _without_mark(path: str | Path, line: bytes) -> bytes:
    if not line.startswith(codecs.BOM_UTF8):
        raise UserError(f"{path}:1: UTF-16, not UTF-8: save the file as UTF-8, such as with: iconv -f UTF-16 -t UTF-8")
    return line.removeprefix(codecs.BOM_UTF8)


def decompressed(file: BinaryIO) -> BinaryIO:
    """What an open file holds, which its first bytes say, gzip and zstd unpacked; the file itself if it is neither."""
    begin = file.read(len(ZSTD))
    file.seek(0)
    if begin.startswith(GZIP):
        return gzip.GzipFile(fileobj=file)  # type: ignore[return-value]
    if begin == ZSTD:
        return io.BufferedReader(
            zstandard.ZstdDecompressor().stream_reader(file, read_across_frames=True, closefd=False)
        )
    return file


@contextmanager
def atomic_write(path: Path, *sources: Path) -> Iterator[BinaryIO]:
    """Open a file for writing that takes its name only when it is complete and on the disk.

    A killed or failed run leaves the file of this name as it was; a missing directory is made. `sources` are what is
    read meanwhile.

    Raises:
        UserError: the path is a directory, cannot be written, is one of the sources, or the disk is full.
    """
    aside = None
    try:
        if path.is_dir():
            raise UserError(f"{path}: is a directory: name a file in it")
        if path.exists() and any(source.exists() and path.samefile(source) for source in sources):
            raise UserError(f"{path}: is an input as well: name another file to write")
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, aside = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        with open(handle, "wb", buffering=BUFFER) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.chmod(aside, 0o644)
        os.replace(aside, path)
        aside = None
    except OSError as problem:
        raise UserError(f"{path}: cannot be written: {problem.strerror}") from None
    finally:
        if aside:
            os.unlink(aside)


@contextmanager
def atomic_folder(out: Path) -> Iterator[Path]:
    """Yield a hidden folder beside `out` to write into, which then becomes `out`; a killed run leaves no `out`.

    Raises:
        UserError: there is such a folder and it holds something, it cannot be written, or the disk is full.
    """
    refuse_occupied(out)
    aside = None
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        aside = Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}.partial."))
        yield aside
        for path in (*aside.iterdir(), aside):
            path.chmod(0o755 if path.is_dir() else 0o644)
            bring_to_disk(path)
        aside.replace(out)
        bring_to_disk(out.parent)
    except OSError as problem:
        raise UserError(f"{out}: cannot be written: {problem.strerror or problem}: name another folder") from None
    finally:
        if aside:
            shutil.rmtree(aside, ignore_errors=True)


def refuse_occupied(out: Path) -> None:
    """Raise UserError where `out` is a file or a folder that holds something."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out}: is there already and not empty: name another folder, or remove it")


def bring_to_disk(path: Path) -> None:
    """Return when a file's content, or a directory's list of names, would outlive a power cut."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def file_hash(path: str | Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def content_hash(path: str | Path) -> str:
    """`file_hash`, taken once a process for as long as the file was not touched."""
    now = os.stat(path)
    # The clock that stamps files is coarse: two changes within a moment may carry one time.
    if time.time_ns() - now.st_ctime_ns < UNSETTLED_NS:
        return file_hash(path)
    return _known_hash(os.path.abspath(path), now.st_dev, now.st_ino, now.st_size, now.st_ctime_ns)


@functools.lru_cache(maxsize=1024)
def _known_hash(path: str, *stamp: int) -> str:
    return file_hash(path)


def exclusive_lock(path: Path) -> BinaryIO | None:
    """Open a file, made if need be, that no other process has locked; None where one has.

    It stays locked for as long as it is open here, or in a program that was started with its descriptor (`pass_fds`).
    Processes that are merely forked, such as those that read data, close it at once: one that outlives this process
    does not keep the lock.

    Raises:
        OSError: the file cannot be opened.
    """
    import fcntl  # which only Unix has

    file = open(path, "a+b", buffering=0)  # noqa: SIM115 (the caller closes it, or the end of the process)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return None
    os.register_at_fork(after_in_child=file.close)
    return file
