"""Builds and loads the C++ ops that DeepSpeed compiles on first use, so that no start waits for one that was killed.

torch's loader marks a build by a file, which a killed process leaves behind and for which every later one then waits
for ever (pytorch/pytorch#189245). Here an op is built in a folder of the process's own and takes its place when it has
been loaded; a lock that the kernel frees keeps two processes from building it twice. Knows nothing about what ops do.
"""

import contextlib
import fcntl
import hashlib
import importlib.util
import io
import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from types import ModuleType

from torch.utils.cpp_extension import LIB_EXT, get_default_build_root

from sft.core.console import say
from sft.core.errors import UserError
from sft.core.files import bring_to_disk
from sft.core.text import one_line

ROOT = "TORCH_EXTENSIONS_DIR"
MADE_FOR = ("torch", "deepspeed")
NO_COMPILER = "apt-get install g++ python3-dev, or run with --deepspeed ''"


def build_ops_aside() -> None:
    """Let DeepSpeed load every op that it compiles as this file does, such as `deepspeed_shm_comm` and `cpu_adam`."""
    from deepspeed.ops.op_builder.builder import OpBuilder

    if OpBuilder.jit_load is not _load:
        OpBuilder.torchs_jit_load, OpBuilder.jit_load = OpBuilder.jit_load, _load


def folder() -> Path:
    """Where this environment's ops lie: none are shared with other environments, versions or kinds of processor.

    It lies in a person's TORCH_EXTENSIONS_DIR where that is set.
    """
    made_for = [sys.prefix, sys.version, *map(metadata.version, MADE_FOR), _processor()]
    digest = hashlib.sha256("\n".join(made_for).encode()).hexdigest()[:12]
    return Path(os.environ.get(ROOT) or get_default_build_root()) / f"deepspeed-{digest}"


def _load(builder, verbose: bool = True) -> ModuleType:
    """`OpBuilder.jit_load`: the op, built first where it was not yet.

    Raises:
        UserError: it cannot be compiled, or its folder cannot be written.
    """
    name, home = builder.name, folder()
    op = _loaded(home, name)
    if op is None:
        try:
            home.mkdir(parents=True, exist_ok=True)
            with _alone(home / f"{name}.lock", name):
                op = _loaded(home, name) or _built(builder, home)
        except OSError as problem:
            raise UserError(
                f"{home}: {problem.strerror or problem}: DeepSpeed compiles {name} there; name another folder in {ROOT}"
            ) from None
    type(builder)._loaded_ops[name] = op
    return op


def _loaded(home: Path, name: str) -> ModuleType | None:
    """An op that was built before; None where there is none, or the system has changed so that it no longer loads."""
    file = home / name / f"{name}{LIB_EXT}"
    spec = importlib.util.spec_from_file_location(name, file)
    if not (file.is_file() and spec and spec.loader):
        return None
    try:
        op = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(op)
    except ImportError:
        return None
    return op


def _built(builder, home: Path) -> ModuleType:
    """Compile an op, load it, and put it where every later process finds it; the lock on it is held."""
    name = builder.name
    if not shutil.which(os.environ.get("CXX", "c++")):
        raise UserError(f"DeepSpeed needs a C++ compiler for its op {name}: {NO_COMPILER}")
    for left in (home / name, *home.glob(f".{name}.*")):  # by a killed process, or an op that does not load
        shutil.rmtree(left, ignore_errors=True)
    say(f"DeepSpeed compiles a small C++ op, {name}; once in this environment, about half a minute")
    aside = Path(tempfile.mkdtemp(prefix=f".{name}.", dir=home))
    try:
        with _environment(ROOT, str(aside)), contextlib.redirect_stdout(io.StringIO()):
            op = builder.torchs_jit_load(verbose=False)
        for path in (*(aside / name).iterdir(), aside / name):
            bring_to_disk(path)
        (aside / name).rename(home / name)
    except OSError:
        raise
    except Exception as problem:  # of a compiler, or of what DeepSpeed asks for before it calls one
        raise UserError(_why_not_compiled(name, str(problem))) from None
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return op


def _why_not_compiled(name: str, output: str) -> str:
    errors = [line.strip() for line in output.splitlines() if "error:" in line]
    reason = errors[0] if errors else one_line(output)[:300]
    return f"DeepSpeed's op {name} does not compile: {reason}: {NO_COMPILER}"


@contextmanager
def _alone(path: Path, name: str) -> Iterator[None]:
    """Hold a lock that ends with this process, however it ends; says so where another holds it."""
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"waiting for another process, which compiles {name} (it holds {path})")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextmanager
def _environment(name: str, value: str) -> Iterator[None]:
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


def _processor() -> str:
    """What this processor can do, for which ops are compiled: its instruction sets, where the system lists them."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    return next((line for line in lines if line.startswith(("flags", "Features"))), platform.machine())
