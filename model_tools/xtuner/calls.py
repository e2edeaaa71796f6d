"""The functions and methods that an XTuner config may call while it is read: harmless ones, with small results.

In: a name and evaluated arguments. Out: the result, or `NotKnown`.
"""

import copy
import math
import posixpath
import re
import string
from collections.abc import Callable, Iterable
from pathlib import PurePosixPath
from typing import Any

from model_tools.xtuner.values import Symbol, Unknown

MOST_ITEMS = 10_000
MOST_CHARACTERS = 100_000
LARGEST_NUMBER = 10**60
MOST_DIGITS = 3

SCALARS = (str, int, float, bool, type(None), PurePosixPath)


class NotKnown(Exception):
    """The value of an expression is not to be known without running the config."""


def known(value: Any) -> Any:
    """The value itself; raises `NotKnown` for one that stands in for another."""
    if isinstance(value, (Symbol, Unknown)):
        raise NotKnown
    return value


def bounded(value: Any) -> Any:
    """The value itself; raises `NotKnown` for one that is too large."""
    if isinstance(value, (str, list, tuple, dict)):
        is_small = len(value) <= (MOST_CHARACTERS if isinstance(value, str) else MOST_ITEMS)
    elif isinstance(value, int):
        is_small = abs(value) <= LARGEST_NUMBER
    else:
        is_small = isinstance(value, (float, type(None), PurePosixPath, Symbol, Unknown))
    if not is_small:
        raise NotKnown
    return value


def scalar(value: Any) -> Any:
    """The value itself; raises `NotKnown` unless it is a text, a number, a switch, a path or None."""
    if not isinstance(value, SCALARS):
        raise NotKnown
    return value


def format_scalar(value: Any, conversion: int, spec: str) -> str:
    """What an f-string makes of a value."""
    if re.search(rf"\d{{{MOST_DIGITS + 1}}}", spec):
        raise NotKnown
    text = repr(scalar(value)) if conversion == ord("r") else scalar(value)
    return format(text, spec)


def percent_format(text: str, values: Any) -> str:
    """`text % values`, with fields of bounded width."""
    if re.search(rf"%[^%a-zA-Z]*(\*|\d{{{MOST_DIGITS + 1}}})", text):
        raise NotKnown
    for value in values if isinstance(values, tuple) else values.values() if isinstance(values, dict) else (values,):
        scalar(value)
    return text % values


def _format(text: str, *values: Any, **named: Any) -> str:
    for _, name, spec, _ in string.Formatter().parse(text):
        if name is not None and not re.fullmatch(r"\w*", name):
            raise NotKnown  # {0.attribute} reaches into objects
        if re.search(rf"[{{}}]|\d{{{MOST_DIGITS + 1}}}", spec or ""):
            raise NotKnown
    return text.format(*map(scalar, values), **{name: scalar(value) for name, value in named.items()})


def _join(text: str, parts: Iterable[str]) -> str:
    parts = list(parts)
    if sum(map(len, parts)) + len(text) * len(parts) > MOST_CHARACTERS:
        raise NotKnown
    return text.join(parts)


def _replace(text: str, old: str, new: str, *count: int) -> str:
    if (len(text) + 1) * (len(new) + 1) > MOST_CHARACTERS * 10:
        raise NotKnown
    return text.replace(old, new, *count)


def _range(*bounds: int) -> list[int]:
    numbers = range(*bounds)
    if len(numbers) > MOST_ITEMS:
        raise NotKnown
    return list(numbers)


def _expanduser(path: str) -> str:
    if str(path).startswith("~"):
        raise NotKnown
    return path


def _merge(values: dict, other: dict) -> None:
    merged = merged_dict(copy.deepcopy(other), values)
    values.clear()
    values.update(merged)


def merged_dict(changes: dict, base: dict) -> dict:
    """mmengine's way to lay a dict over another: key by key at every depth, unless it says `_delete_`.

    Source: `Config._merge_a_into_b`.
    """
    if changes.get("_delete_"):
        base = {}
    merged = dict(base)
    for key, value in changes.items():
        if key == "_delete_":
            continue
        if isinstance(value, dict):
            below = merged.get(key)
            value = merged_dict(value, below if isinstance(below, dict) else {})
        merged[key] = value
    return merged


FUNCTIONS: dict[str, Callable[..., Any]] = {
    "dict": dict,
    "list": list,
    "tuple": tuple,
    "set": lambda values=(): list(dict.fromkeys(values)),
    "int": lambda value=0, *base: int(scalar(value), *base),
    "float": lambda value=0.0: float(scalar(value)),
    "str": lambda value="": str(scalar(value)),
    "bool": lambda value=False: bool(known(value)),
    "len": len,
    "min": min,
    "max": max,
    "sum": sum,
    "abs": abs,
    "round": round,
    "range": _range,
    "sorted": sorted,
    "reversed": lambda values: list(values)[::-1],
    "enumerate": lambda values, start=0: list(enumerate(values, start)),
    "zip": lambda *values: list(zip(*values, strict=False)),
    "any": lambda values: any(map(known, values)),
    "all": lambda values: all(map(known, values)),
    "copy.copy": copy.copy,
    "copy.deepcopy": copy.deepcopy,
    "collections.OrderedDict": dict,
    "mmengine.ConfigDict": dict,
    "mmengine.Config": dict,
    "mmengine.config.ConfigDict": dict,
    "mmengine.config.Config": dict,
    "math.ceil": math.ceil,
    "math.floor": math.floor,
    "math.sqrt": math.sqrt,
    "os.path.join": posixpath.join,
    "os.path.basename": posixpath.basename,
    "os.path.dirname": posixpath.dirname,
    "os.path.splitext": posixpath.splitext,
    "os.path.normpath": posixpath.normpath,
    "os.path.expanduser": _expanduser,
    "pathlib.Path": PurePosixPath,
    "pathlib.PurePath": PurePosixPath,
}
METHODS: dict[type, dict[str, Callable[..., Any]]] = {
    str: {
        "format": _format,
        "join": _join,
        "replace": _replace,
        **{
            name: getattr(str, name)
            for name in ("lower", "upper", "strip", "lstrip", "rstrip", "split", "startswith", "endswith")
        },
    },
    list: {
        name: getattr(list, name)
        for name in ("append", "extend", "insert", "pop", "remove", "clear", "copy", "index", "count", "reverse")
    },
    dict: {name: getattr(dict, name) for name in ("get", "update", "pop", "setdefault", "clear", "copy")}
    | {
        "keys": lambda values: list(values),
        "values": lambda values: list(values.values()),
        "items": lambda values: list(values.items()),
        "merge": _merge,
        "to_dict": dict.copy,
    },
    PurePosixPath: {
        "joinpath": PurePosixPath.joinpath,
        "as_posix": PurePosixPath.as_posix,
        "with_suffix": PurePosixPath.with_suffix,
    },
}
# Methods whose argument is kept as it is, known or not; and those that change what they are called on.
HOLDING = {"append", "insert"}
CHANGING = {"append", "extend", "insert", "pop", "remove", "clear", "reverse", "update", "setdefault", "merge"}
