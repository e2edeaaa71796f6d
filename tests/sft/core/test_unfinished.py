"""What a killed writer left is removed by the next one beside it; what a living one writes is left alone."""

import os
import signal
import subprocess
import sys

import pytest

from sft.core import files

# Writes as its argument says, and waits to be killed in the middle.
WRITER = """
import sys
from pathlib import Path
from sft.core import files
with getattr(files, sys.argv[1])(Path(sys.argv[2])):
    print("writing", flush=True)
    input()
"""
KINDS = ["atomic_write", "atomic_folder"]


def start(kind: str, path) -> subprocess.Popen:
    """Start a writer; returns once it is in the middle."""
    writer = subprocess.Popen(
        [sys.executable, "-c", WRITER, kind, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert writer.stdout.readline() == "writing\n"
    return writer


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("next_kind", KINDS)
def test_what_a_killed_writer_left_is_gone_after_the_next_and_a_living_one_is_not_disturbed(tmp_path, kind, next_kind):
    killed, living = start(kind, tmp_path / "killed"), start(kind, tmp_path / "living")
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    mine = tmp_path / ".mine.partial.x"
    mine.touch()
    assert len(os.listdir(tmp_path)) == 3
    with getattr(files, next_kind)(tmp_path / "next"):
        pass
    assert len(os.listdir(tmp_path)) == 3
    living.communicate("\n")
    assert living.returncode == 0
    assert sorted(os.listdir(tmp_path)) == [mine.name, "living", "next"]


def test_a_failed_writer_removes_what_it_wrote(tmp_path):
    def write_half() -> None:
        with files.atomic_write(tmp_path / "out") as file:
            file.write(b"x")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        write_half()
    assert os.listdir(tmp_path) == []
