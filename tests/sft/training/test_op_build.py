"""DeepSpeed's C++ ops: built once in an environment, never waiting for a process that is gone, never half."""

import fcntl
import os
import subprocess
import sys
from pathlib import Path

import pytest

from sft.core.errors import UserError
from sft.core.paths import REPOSITORY
from sft.training import op_build

OP = "deepspeed_shm_comm"
LOAD = """
from sft.core.console import quiet_the_stack
quiet_the_stack()
from deepspeed.ops.op_builder.cpu import ShareMemCommBuilder
from sft.training import op_build
op_build.build_ops_aside()
print("loaded", ShareMemCommBuilder().load().__file__)
"""


@pytest.fixture
def home(tmp_path, monkeypatch) -> Path:
    """Where the op lies, once it is built."""
    monkeypatch.setenv(op_build.ROOT, str(tmp_path))
    return op_build.folder()


def start(**environment) -> subprocess.Popen:
    """A new process that loads the op."""
    tools = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    command = [sys.executable, "-u", "-c", LOAD]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "PATH": tools} | environment
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def load(**environment) -> str:
    """What a new process says that loads the op."""
    process = start(**environment)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    return out


@pytest.mark.long
def test_torchs_lock_of_a_killed_process_stops_nobody_and_a_living_one_is_waited_for(home, tmp_path):
    """One test, for what it needs takes a minute of two cores to build."""
    for folder in (tmp_path / OP, home / OP):
        folder.mkdir(parents=True)
        (folder / "lock").touch()
    said = load()
    assert f"compiles a small C++ op, {OP}" in said
    (home / OP / "lock").touch()
    assert load() == f"loaded {home / OP / OP}.so\n"
    assert sorted(path.name for path in home.iterdir()) == [OP, f"{OP}.lock"]

    (home / OP).rename(home / "elsewhere")
    with (home / f"{OP}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        waiting = start()
        line = waiting.stdout.readline()
        assert line.startswith(f"waiting for another process, which compiles {OP} (it holds {home}")
        (home / "elsewhere").rename(home / OP)
    out, err = waiting.communicate(timeout=60)
    assert out == f"loaded {home / OP / OP}.so\n", err


@pytest.mark.long
def test_what_cannot_be_loaded_is_built_again_and_what_a_killed_process_left_is_swept_out(home):
    (home / OP).mkdir(parents=True)
    (home / OP / f"{OP}.so").write_bytes(b"")
    (home / f".{OP}.killed").mkdir()
    assert "compiles" in load()
    assert load().startswith("loaded")
    assert not (home / f".{OP}.killed").exists()


def test_each_environment_processor_and_version_has_builds_of_its_own(home, monkeypatch):
    assert home.parent == Path(os.environ[op_build.ROOT])
    monkeypatch.setattr(op_build, "_processor", lambda: "flags: fpu")
    other_processor = op_build.folder()
    monkeypatch.setattr(sys, "prefix", "/elsewhere/.venv")
    assert len({home, other_processor, op_build.folder()}) == 3
    monkeypatch.undo()
    monkeypatch.delenv(op_build.ROOT, raising=False)
    assert "torch_extensions" in str(op_build.folder())


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("echo 'shm.cpp:1: fatal error: Python.h: No such file' >&2; exit 1", "fatal error: Python.h"),
        (None, "DeepSpeed needs a C++ compiler"),
    ],
)
def test_a_compiler_that_is_missing_or_fails_is_one_line(tmp_path, script, said):
    compiler = tmp_path / "c++"
    if script:
        compiler.write_text(f"#!/bin/sh\n[ $1 = --version ] || {{ {script}; }}\n")
        compiler.chmod(0o755)
    process = start(CXX=str(compiler), **{op_build.ROOT: str(tmp_path / "ops")})
    _, err = process.communicate(timeout=300)
    last = err.strip().splitlines()[-1]
    assert last.startswith(f"{UserError.__module__}.UserError: DeepSpeed")
    assert said in last
    assert "apt-get install g++" in last
    assert not list((tmp_path / "ops").glob("*/.*"))


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "file").touch()
    process = start(**{op_build.ROOT: str(tmp_path / "file")})
    _, err = process.communicate(timeout=300)
    assert f"name another folder in {op_build.ROOT}" in err.strip().splitlines()[-1]
