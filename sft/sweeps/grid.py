"""The points of a sweep: `lora_r=8,16 lora_alpha=0.25x` as lists of settings, each with a name for its folder.

In: words of the command line. Out: mappings of recipe keys to values, still as they were written. Knows nothing about
which keys a recipe has; reading a recipe, for a `PlannedPoint`, checks them.
"""

import hashlib
import itertools
import json
import re
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import yaml

from sft.config.aliases import modern_name
from sft.core.errors import UserError
from sft.core.yaml_file import PlainLoader

Value = str | list | dict
Point = dict[str, Value]

# A sweep sets these itself.
TAKEN = {
    "output_dir": "every point has a directory of its own",
    "resume": "a point that was ended resumes by itself",
    "resume_anyway": "a point whose settings changed is run anew",
    "dry_run": "a sweep is there to run",
}
RATIO = re.compile(r"(\d+(?:\.\d+)?|\d+/[1-9]\d*)x")
LONGEST_NAME = 150  # bytes; a file system takes 255, and logs and moved directories add to it


@dataclass(frozen=True)
class PlannedPoint:
    """One run of the sweep. Two points with equal `inputs` come out alike; `group` is the name without the seed."""

    name: str
    group: str
    values: Point
    inputs: dict[str, Any]
    rank: int | None


@dataclass(frozen=True)
class SweepPlan:
    """All points, the GPUs to run them on (none: the CPU), and the recipe's own rank and seed."""

    points: list[PlannedPoint]
    gpus: list[str]
    rank: int
    seed: int


def read_grid(words: list[str]) -> dict[str, list[Value]]:
    """The values of each key of `key=value,value`; a list in brackets is one value, as in YAML.

    Raises:
        UserError: a word is not of this form, a key comes twice or is one that a sweep sets itself.
    """
    grid: dict[str, list[Value]] = {}
    for word in words:
        key, equals, text = word.partition("=")
        if not equals or not key.isidentifier():
            raise UserError(f"{word}: write each key with its values, such as lora_r=8,16")
        key, _ = modern_name(key)
        if key in TAKEN:
            raise UserError(f"{word}: {key} cannot be swept: {TAKEN[key]}")
        if key in grid:
            raise UserError(f"{word}: {key} is given twice: write all its values in one list")
        grid[key] = _values(word, text)
    return grid


def points_of(grid: dict[str, list[Value]], rank: int, seeds: list[int]) -> list[Point]:
    """Every combination of the grid's values, each with every seed; the first seed is the recipe's and not written.

    `rank` is the recipe's own `lora_r`, which `lora_alpha=0.25x` follows where the grid has none.

    Raises:
        UserError: a ratio times a rank is not whole, or seeds are given in two ways.
    """
    if "seed" in grid and len(seeds) > 1:
        raise UserError("seed and --seeds: choose one; --seeds gives mean and spread, seed=1,2 a point for each")
    points = [resolve_alpha(dict(zip(grid, values, strict=True)), rank) for values in itertools.product(*grid.values())]
    distinct = {name_of(point): point for point in points}
    seeded = [{}, *({"seed": str(seed)} for seed in seeds[1:])]
    return [point | seed for point in distinct.values() for seed in seeded]


def resolve_alpha(point: Point, rank: int) -> Point:
    """The point with `lora_alpha` as a number where it was written as a multiple of the rank.

    Raises:
        UserError: the product is not a whole number from 1, which is what PEFT takes.
    """
    for key, value in point.items():
        ratio = RATIO.fullmatch(value) if isinstance(value, str) else None
        if not ratio:
            continue
        if key != "lora_alpha":
            raise UserError(f"{key}={value}: only lora_alpha follows the rank, such as lora_alpha=0.25x")
        rank_text = str(point.get("lora_r", rank))
        if not rank_text.isdecimal():
            raise UserError(f"lora_r={rank_text}: a rank is a whole number of at least 1")
        alpha = Fraction(ratio[1]) * int(rank_text)
        if alpha.denominator != 1 or not alpha:
            advice = (
                f"choose ranks that {Fraction(ratio[1]).denominator} divides" if alpha else "choose a ratio above 0"
            )
            raise UserError(
                f"lora_alpha={value}: {ratio[1]} x lora_r {rank_text} is {float(alpha):g}, and PEFT takes whole "
                f"numbers from 1: {advice}"
            )
        point = point | {"lora_alpha": str(alpha)}
    return point


def name_of(point: Point) -> str:
    """The point as the name of a folder: `lora_r=8,lora_alpha=2`; what a file name cannot hold becomes `_`.

    A name that had to be changed or cut ends in a few digits of a hash, so that two points never share one.
    """
    written = ",".join(f"{key}={text_of(value)}" for key, value in point.items())
    name = re.sub(r"[^\w.+=,~-]", "_", written).encode()[:LONGEST_NAME].decode(errors="ignore")
    return name if name == written else f"{name}~{hashlib.sha256(written.encode()).hexdigest()[:6]}"


def text_of(value: Value) -> str:
    """The value as text: what was written, or JSON where it is a list or a mapping."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def arguments_of(point: Point) -> list[str]:
    """The point as arguments of `train_sft.py`."""
    arguments = []
    for key, value in point.items():
        arguments += [f"--{key}", *map(text_of, value)] if isinstance(value, list) else [f"--{key}={text_of(value)}"]
    return arguments


def _values(word: str, text: str) -> list[Value]:
    try:
        loader = PlainLoader(f"[{text}]")
        root = loader.get_single_node()
        values = [_value(loader, node) for node in (root.value if root else ())]
    except (yaml.YAMLError, ValueError):
        raise UserError(f"{word}: cannot be read: write values with commas between, a list in [brackets]") from None
    if not values:
        raise UserError(f"{word}: no values: write them with commas between, such as lora_r=8,16")
    return values


def _value(loader: yaml.SafeLoader, node: yaml.Node) -> Value:
    """A scalar as it was written, which YAML itself would change: `no` into false."""
    if isinstance(node, yaml.ScalarNode):
        return node.value
    if isinstance(node, yaml.SequenceNode):
        return [_value(loader, item) for item in node.value]
    return loader.construct_object(node, deep=True)
