"""Say what came of a run: whether the name was learned, what was kept, the answers before and after, what to do next.

In: a run directory. Out: the lines that a run ends with. Needs its files alone.
"""

import argparse
from pathlib import Path

from sft.core.verbs import add_language


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what the verb takes."""
    parser.add_argument("run_directory", type=Path, metavar="RUN", help="run directory, such as work_dirs/demo")
    add_language(parser)


def run(arguments: argparse.Namespace) -> int:
    """Print the verdict and what could not be read; returns the exit code."""
    from sft.core.console import say
    from sft.core.language import lines_shown
    from sft.runs.run_files import read_run
    from sft.runs.verdict import verdict_on

    ended = read_run(arguments.run_directory)
    for line in lines_shown(ended.problems):
        say(line, style="yellow")
    say("\n".join(verdict_on(ended).lines()))
    return 0
