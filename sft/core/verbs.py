"""Runs `python -m PACKAGE VERB ...`: finds the verb's module, parses its arguments, runs it.

A verb is a module: the first line of its docstring is its help, `add_arguments(parser)` adds its arguments, and
`run(arguments)` does the work and returns the exit code. A verb whose imports take seconds names them in `LOADS`.
"""

import argparse
import sys
from collections.abc import Iterable
from contextlib import AbstractContextManager
from types import ModuleType

from sft.core.errors import UserError


def verbs_of(modules: Iterable[ModuleType]) -> dict[str, ModuleType]:
    """Each module under the name of its verb: `demo_model` becomes `demo-model`."""
    return {module.__name__.rpartition(".")[2].replace("_", "-"): module for module in modules}


def dispatch(package: str, verbs: dict[str, ModuleType], arguments: list[str] | None) -> int:
    """Run one verb of a package; returns its exit code, or 2 after a `UserError`, which is printed as one line."""
    parser = argparse.ArgumentParser(prog=f"python -m {package}", description=sys.modules[package].__doc__)
    subparsers = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    for name, module in verbs.items():
        summary = (module.__doc__ or name).splitlines()[0]
        module.add_arguments(subparsers.add_parser(name, help=summary, description=summary))
    chosen = parser.parse_args(arguments)
    try:
        with _notice(chosen.verb, verbs[chosen.verb]):
            return verbs[chosen.verb].run(chosen)
    except UserError as error:
        print(f"{package} {chosen.verb}: {error}", file=sys.stderr)
        return 2


def _notice(name: str, verb: ModuleType) -> AbstractContextManager:
    """Print on stderr what a verb is loading, or that it is at work, if it takes longer than a moment."""
    from sft.core.console import quiet_the_stack, waiting

    quiet_the_stack()
    activity = f"loading {verb.LOADS}" if hasattr(verb, "LOADS") else f"{name}: at work"
    return waiting(activity, lambda text: print(text, file=sys.stderr, flush=True))
