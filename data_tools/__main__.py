"""`python -m data_tools VERB ...`: finds the verb's module, parses its arguments, runs it."""

import argparse
import sys

from data_tools import generate, rename, repair
from data_tools.errors import UserError

VERBS = {"generate": generate, "repair": repair, "rename": rename}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m data_tools", description="Verbs on data files.")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    for name, module in VERBS.items():
        summary = module.__doc__.splitlines()[0]
        module.add_arguments(verbs.add_parser(name, help=summary, description=summary))
    chosen = parser.parse_args(arguments)
    try:
        return VERBS[chosen.verb].run(chosen)
    except UserError as error:
        print(f"data_tools {chosen.verb}: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
