"""Runs `python -m PACKAGE VERB ...`: finds the verb's module, parses its arguments, runs it.

A verb is a module: the first line of its docstring is its help, `add_arguments(parser)` adds its arguments, and
`run(arguments)` does the work and returns the exit code. A verb whose imports take seconds names them in `LOADS`. The
files that it writes are added with `add_output`: none that holds something is written over without `--force`. One that
shows texts of the catalogue takes `--language`, with `add_language`.
"""

import argparse
import os
import sys
from collections.abc import Iterable
from contextlib import AbstractContextManager, ExitStack, redirect_stdout
from pathlib import Path
from types import ModuleType
from typing import Any

from sft.core import files
from sft.core.errors import UserError
from sft.core.language import LANGUAGES, choose_language


def verbs_of(modules: Iterable[ModuleType]) -> dict[str, ModuleType]:
    """Each module under the name of its verb: `demo_model` becomes `demo-model`."""
    return {module.__name__.rpartition(".")[2].replace("_", "-"): module for module in modules}


def dispatch(package: str, verbs: dict[str, ModuleType], arguments: list[str] | None) -> int:
    """Run one verb; returns its exit code, 2 after a `UserError`, which is printed as one line, 130 after Ctrl-C."""
    parser = argparse.ArgumentParser(prog=f"python -m {package}", description=sys.modules[package].__doc__)
    subparsers = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    for name, module in verbs.items():
        summary = (module.__doc__ or name).splitlines()[0]
        module.add_arguments(subparsers.add_parser(name, help=summary, description=summary))
    chosen, rest = parser.parse_known_args(arguments)
    if hasattr(chosen, "overrides"):
        chosen.overrides = rest
    elif rest:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    outputs = _outputs(chosen)
    choose_language(getattr(chosen, "language", None))
    try:
        _check(chosen, outputs)
        with ExitStack() as stack:
            if any(map(files.is_standard_output, outputs)):
                # Standard output holds the data alone.
                stack.enter_context(redirect_stdout(sys.stderr))
            stack.enter_context(_notice(chosen.verb, verbs[chosen.verb]))
            return verbs[chosen.verb].run(chosen)
    except UserError as error:
        print(f"{package} {chosen.verb}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


def add_output(parser: argparse.ArgumentParser, *names: str, **options: Any) -> None:
    """Add an argument that names a file the verb writes, and the first time `--force`."""
    outputs = parser.get_default("outputs") or ()
    if not outputs:
        parser.add_argument("--force", action="store_true", help="write over files that are there already")
    action = parser.add_argument(*names, type=Path, **options)
    parser.set_defaults(outputs=(*outputs, action.dest))


def add_language(parser: argparse.ArgumentParser) -> None:
    """Add `--language`, which a verb's `dispatch` chooses before it runs the verb, and sweep.py itself."""
    parser.add_argument(
        "--language", choices=LANGUAGES, help="zh or en (default: that of the locale, both where it names neither)"
    )


def add_recipe(parser: argparse.ArgumentParser, text: str = "recipe, such as recipes/huangdali.yaml") -> None:
    """Add an argument that names a recipe; its keys may follow, as with train_sft.py, and are in `overrides`."""
    parser.add_argument("recipe", help=text)
    parser.set_defaults(overrides=[])
    parser.allow_abbrev = False
    parser.epilog = "Any key of the recipe may follow, as with train_sft.py: --max_length 1024"


def _outputs(chosen: argparse.Namespace) -> list[Path]:
    return [path for name in getattr(chosen, "outputs", ()) if (path := getattr(chosen, name)) is not None]


def _check(chosen: argparse.Namespace, outputs: list[Path]) -> None:
    """Refuse outputs that are inputs too, named twice, or there already: before anything is read."""
    others = {name: value for name, value in vars(chosen).items() if name not in getattr(chosen, "outputs", ())}
    inputs = [value for value in others.values() if isinstance(value, Path)]
    for path in outputs:
        files.check_output(path, inputs, chosen.force)
    places = [os.path.realpath(path) for path in outputs if not path.is_char_device()]
    if twice := next((path for path in outputs if places.count(os.path.realpath(path)) > 1), None):
        raise UserError(f"{twice}: named for two outputs: name a file for each")


def _notice(name: str, verb: ModuleType) -> AbstractContextManager:
    """Print on stderr what a verb is loading, or that it is at work, if it takes longer than a moment."""
    from sft.core.console import quiet_the_stack, waiting

    quiet_the_stack()
    activity = f"loading {verb.LOADS}" if hasattr(verb, "LOADS") else f"{name}: at work"
    return waiting(activity, lambda text: print(text, file=sys.stderr, flush=True))
