"""Write a run's report as one page that opens offline; of several runs, a page that compares them.

In: run directories, of runs that ended, are still running or were killed. Out: `report.html`. Needs their files alone.
"""

import argparse
from pathlib import Path

from sft.core.errors import UserError
from sft.core.verbs import add_language, add_output


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what the verb takes."""
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="run directory, such as work_dirs/demo")
    add_output(
        parser, "--out", metavar="FILE", help="page to write (default: RUN/report.html; of several, ./report.html)"
    )
    add_language(parser)


def run(arguments: argparse.Namespace) -> int:
    """Write the page and print what could not be read; returns the exit code."""
    from sft.reports import comparison, report
    from sft.runs.run_files import read_run

    folders = [folder.resolve() for folder in arguments.runs]
    if twice := next((folder for folder in arguments.runs if folders.count(folder.resolve()) > 1), None):
        raise UserError(f"{twice}: named twice: name each run once")
    runs = [read_run(folder) for folder in arguments.runs]
    if len(runs) == 1:
        page, out = report.report_page(runs[0]), arguments.out or runs[0].folder / report.REPORT
    else:
        page, out = comparison.comparison_page(runs), arguments.out or Path(report.REPORT)
    sources = [file for run in runs for file in run.folder.iterdir() if file.name != report.REPORT]
    report.write_page(out, page, *sources)
    for run in runs:
        for problem in run.problems:
            print(f"{run.folder}: {problem}")
    print(f"report: {out}")
    return 0
