"""Starts a script of the repository in a process that something was done to first."""

import sys

STARTED = """
import pathlib, runpy, sys
sys.argv = sys.argv[1:]
sys.path.insert(0, str(pathlib.Path(sys.argv[0]).parent))
{}
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def started_after(lines: str, script: str, *arguments: str) -> list[str]:
    """The command that runs some lines of Python, then the script as if it had been started with the arguments."""
    return [sys.executable, "-c", STARTED.format(lines), script, *arguments]
