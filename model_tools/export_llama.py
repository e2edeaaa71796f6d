"""Write an InternLM2 as it is, without an adapter, under the names of Llama, which every engine loads.

In: a base model or a run directory that holds a whole model. Out: a new folder; adapters can be loaded beside it.
"""

import argparse
from pathlib import Path

from model_tools import merge

LOADS = merge.LOADS


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the verb's arguments to its parser."""
    parser.add_argument("base", help="an InternLM2's folder or hub id, or a run directory that holds one")
    parser.add_argument("out", type=Path, help="folder to write; must not exist or be empty")
    merge.add_writing_arguments(parser)
    parser.set_defaults(adapters=[], as_type="llama", device="cpu")


def run(arguments: argparse.Namespace) -> int:
    """Run the verb; returns 1 where verifying finds another model, else 0."""
    return merge.run(arguments)
