"""Reads files line by line, and writes files and folders atomically: complete and on the disk, or not at all.

Knows nothing about what a line, a file or a folder holds.
"""

import codecs
import errno
import functools
import gzip
import hashlib
import io
import os
import re
import shutil
import stat
import sys
import time
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import zstandard

from sft.core import unfinished
from sft.core.errors import ReaderGone, UserError

Item = TypeVar("Item")

ITEMS_PER_UPDATE = 256
BUFFER = 1 << 18
PACKED = 1 << 12
MOST_LINKS = 40  # as of Linux
UNSETTLED_NS = 2_000_000_000
# With these a file begins that is compressed.
GZIP, ZSTD = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"
BYTE_ORDER_MARKS = (codecs.BOM_UTF8, codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


def numbered_lines(path: str | Path) -> Iterator[tuple[int, bytes]]:
    """Yield (line number from 1, bytes) for every line that is not blank, with a progress bar on a terminal.

    A UTF-8 byte order mark is taken off a line's start; gzip and zstd are unpacked on the way.

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
    except EOFError:
        raise UserError(f"{path}: cut short: what is compressed in it has no end: copy or download it anew") from None
    except (gzip.BadGzipFile, zlib.error, zstandard.ZstdError) as problem:
        raise UserError(f"{path}: damaged ({problem}): copy or download it anew") from None
    except OSError as problem:
        reason = problem.strerror or problem
        raise UserError(f"{path}: cannot be read: {reason}: check the path and its permissions") from None


def lines_of(path: str | Path, file: Iterable[bytes], first: int = 1) -> Iterator[tuple[int, bytes]]:
    """As `numbered_lines`, of a file that is open already, or of a part of one whose `first` line has this number."""
    for number, line in enumerate(file, start=first):
        if number == 1 and line.startswith(BYTE_ORDER_MARKS):
            line = _without_mark(path, line)
        # Where files were put one after the other, each began with a mark.
        elif line.startswith(codecs.BOM_UTF8):
            line = line.removeprefix(codecs.BOM_UTF8)
        if line and not line.isspace():
            yield number, line


def with_progress(
    path: str | Path, file: BinaryIO, items: Iterable[Item], items_per_update: int = ITEMS_PER_UPDATE
) -> Iterator[Item]:
    """Pass on what is read from the open file, and show on a terminal how far into it we are."""
    from tqdm import tqdm  # which looks only now whether bars are wanted; `console.quiet_the_stack`

    size, is_shown = os.fstat(file.fileno()).st_size, sys.stderr.isatty()
    name = f"reading {Path(path).name}"
    with tqdm(total=size, desc=name, unit="B", unit_scale=True, leave=False, disable=not is_shown) as bar:
        for number, item in enumerate(items):
            if number % items_per_update == 0:
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
        return io.BufferedReader(_Zstd(file))
    return file


class _Zstd(io.RawIOBase):
    """What a file of zstd frames holds; the library's own reader takes one that is cut short for a whole one."""

    def __init__(self, file: BinaryIO):
        self._file, self._packed, self._unpacked = file, b"", memoryview(b"")
        self._frame: zstandard.ZstdDecompressionObj | None = None

    def readable(self) -> bool:
        """Always."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Fill some of the buffer; 0 at the end.

        Raises:
            EOFError: the file ends within a frame.
        """
        while not self._unpacked:
            # A little unpacks to a lot.
            packed = self._packed or self._file.read(PACKED)
            if not packed:
                if self._frame:
                    raise EOFError
                return 0
            self._frame = self._frame or zstandard.ZstdDecompressor().decompressobj()
            self._unpacked, self._packed = memoryview(self._frame.decompress(packed)), b""
            if self._frame.eof:
                self._packed, self._frame = self._frame.unused_data, None
        read = min(len(buffer), len(self._unpacked))
        buffer[:read], self._unpacked = self._unpacked[:read], self._unpacked[read:]
        return read


@contextmanager
def atomic_write(path: Path, *sources: Path) -> Iterator[BinaryIO]:
    """Open a file for writing that takes its name only when it is complete and on the disk.

    A killed or failed run leaves the file of this name as it was, which keeps its mode when it is replaced; a link
    stays, and what it points to is written. A missing directory is made. What is no file, such as /dev/stdout, a pipe
    or a device, is written through. `sources` are what is read meanwhile.

    Raises:
        UserError: the path is a directory, cannot be written, is one of the sources, or the disk is full.
        ReaderGone: nobody reads the pipe any more.
    """
    try:
        place = _place(path)
        _refuse_sources(place or path, path, () if place is None and not path.is_file() else sources)
        with _replacing(place) if place else _written_through(path) as file:
            yield file
    except BrokenPipeError:
        raise ReaderGone from None
    except OSError as problem:
        raise UserError(f"{path}: cannot be written: {problem.strerror}") from None


@contextmanager
def _replacing(place: Path) -> Iterator[BinaryIO]:
    place.parent.mkdir(parents=True, exist_ok=True)
    before = place.stat() if place.exists() else None
    with unfinished.file_beside(place, 0o600 if before else 0o666) as (aside, handle):
        if before:
            with suppress(OSError):  # only root gives files away
                os.fchown(handle, before.st_uid, before.st_gid)
            with suppress(OSError):  # not every file system has modes
                os.fchmod(handle, before.st_mode & 0o777)
        with open(handle, "wb", buffering=BUFFER, closefd=False) as file:
            yield file
        os.fsync(handle)
        os.replace(aside, place)


@contextmanager
def _written_through(path: Path) -> Iterator[BinaryIO]:
    number = _descriptor(path)
    # A descriptor is not opened anew: that would begin at the start of a file that the shell appends to.
    handle = os.open(path, os.O_WRONLY) if number is None else os.dup(number)
    with open(handle, "wb", buffering=BUFFER) as file:
        yield file


def _place(path: Path) -> Path | None:
    """The file that a path stands for when all links are followed; None for what is written through.

    Raises:
        UserError: it is a directory, or no file can have this name.
        OSError: links go round in a circle, the name is too long, or a folder in the path is none.
    """
    _refuse_impossible(path)
    if _descriptor(path) is not None:
        return None
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        return Path(os.path.realpath(path))
    if stat.S_ISDIR(mode):
        raise UserError(f"{path}: is a directory: name a file in it")
    return Path(os.path.realpath(path)) if stat.S_ISREG(mode) else None


def _descriptor(path: Path) -> int | None:
    """The descriptor of this process that a path names, such as /dev/stdout or /dev/fd/3, or a link to one."""
    named = os.fspath(path)
    for _ in range(MOST_LINKS):
        folder, name = os.path.split(named)
        folder = os.path.realpath(folder)
        if name.isdecimal() and re.fullmatch(rf"/dev/fd|/proc/{os.getpid()}(/task/\d+)?/fd", folder):
            return int(name)
        try:
            named = os.path.join(folder, os.readlink(os.path.join(folder, name)))
        except OSError:
            return None
    return None


def _refuse_impossible(path: Path) -> None:
    try:
        is_possible = b"\0" not in os.fsencode(path)
    except UnicodeEncodeError:
        is_possible = False
    if not is_possible:
        raise UserError(f"{path}: cannot be written: no file can have this name here: name another")


def check_output(path: Path, sources: Iterable[Path], force: bool) -> None:
    """Look, before the work whose result a file is to hold, whether it can be written and holds nothing yet.

    Raises:
        UserError: it is one of the sources, holds something and is not forced, or cannot be written.
    """
    try:
        place = _place(path)
        if place is None:
            return
        _refuse_sources(place, path, sources)
        if not force and place.exists() and place.stat().st_size:
            raise UserError(f"{path}: is there already: name another file, or overwrite it with --force")
        folder = next(parent for parent in place.parents if parent.exists())
        if not os.access(folder, os.W_OK | os.X_OK):
            number = errno.EROFS if os.statvfs(folder).f_flag & os.ST_RDONLY else errno.EACCES
            raise OSError(number, os.strerror(number))
    except OSError as problem:
        raise UserError(f"{path}: cannot be written: {problem.strerror}: name another file") from None


def _refuse_sources(place: Path, path: Path, sources: Iterable[Path]) -> None:
    if place.exists() and any(source.exists() and place.samefile(source) for source in sources):
        raise UserError(f"{path}: is an input as well: name another file to write")


def is_standard_output(path: Path) -> bool:
    """Whether what is written there would stand among what is printed; not where that goes nowhere."""
    try:
        written, printed = os.stat(path), os.fstat(1)
        return os.path.samestat(written, printed) and not os.path.samestat(printed, os.stat(os.devnull))
    except (OSError, ValueError):
        return False


@contextmanager
def atomic_folder(out: Path) -> Iterator[Path]:
    """Yield a hidden folder beside `out` to write into, which then becomes `out`; a killed run leaves no `out`.

    Raises:
        UserError: there is such a folder and it holds something, it cannot be written, or the disk is full.
    """
    refuse_occupied(out)
    place = Path(os.path.realpath(out))
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        with unfinished.folder_beside(place) as aside:
            yield aside
            umasked = aside.stat().st_mode
            for path in aside.rglob("*"):
                path.chmod(umasked & (0o777 if path.is_dir() else 0o666))
                bring_to_disk(path)
            bring_to_disk(aside)
            if place.exists():
                aside.chmod(place.stat().st_mode & 0o777)
            aside.replace(place)
        bring_to_disk(place.parent)
    except OSError as problem:
        raise UserError(f"{out}: cannot be written: {problem.strerror or problem}: name another folder") from None


def refuse_occupied(out: Path) -> None:
    """Raise UserError where `out` is a file or a folder that holds something, or no folder can have its name."""
    _refuse_impossible(out)
    try:
        mode = os.stat(out).st_mode
        if not stat.S_ISDIR(mode) or any(out.iterdir()):
            raise UserError(f"{out}: is there already and not empty: name another folder, or remove it")
    except FileNotFoundError:
        return
    except OSError as problem:
        raise UserError(f"{out}: cannot be written: {problem.strerror}: name another folder") from None


def refuse_full_disk(out: Path, needed: int) -> None:
    """Raise UserError where the disk on which `out` is to be has fewer free bytes than are needed to write it."""
    folder = next(parent for parent in Path(os.path.realpath(out)).parents if parent.is_dir())
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise UserError(
            f"{out}: needs {needed / 2**30:.1f} GiB while it is written, and the disk has {free / 2**30:.1f}: make "
            "room, or name a place on another disk"
        )


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


def content_hash(path: str | Path, kept_in: Path | None = None) -> str:
    """`file_hash`, taken once a process for as long as the file was not touched; with a folder to keep it in, once."""
    now = os.stat(path)
    # The clock that stamps files is coarse: two changes within a moment may carry one time.
    if time.time_ns() - now.st_ctime_ns < UNSETTLED_NS:
        return file_hash(path)
    return _known_hash(os.path.abspath(path), kept_in, now.st_dev, now.st_ino, now.st_size, now.st_ctime_ns)


@functools.lru_cache(maxsize=1024)
def _known_hash(path: str, kept_in: Path | None, *stamp: int) -> str:
    if kept_in is None:
        return file_hash(path)
    kept = kept_in / ("-".join(map(str, stamp)) + ".sha256")
    if kept.exists():
        return kept.read_text()
    digest = file_hash(path)
    with atomic_write(kept) as file:
        file.write(digest.encode())
    return digest


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
