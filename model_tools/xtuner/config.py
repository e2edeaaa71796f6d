"""Reads an XTuner config without running it, with the files it is based on.

In: Python source, or the JSON or YAML that mmengine dumps. Out: the values that the config's names have at its end.
"""

import ast
import json
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from model_tools.xtuner.calls import merged_dict
from model_tools.xtuner.statements import BASE, Statements
from model_tools.xtuner.values import plain_copy
from sft.core.errors import UserError
from sft.core.yaml_file import read_yaml

PYTHON = ".py"
YAML = (".yaml", ".yml")


@dataclass
class Config:
    """The values of a config's names, in order.

    `remarks` say what was assumed or not followed. `used` are the names that the config itself looks up.
    """

    values: dict[str, Any]
    remarks: list[str] = field(default_factory=list)
    used: set[str] = field(default_factory=set)


def read_config(path: Path) -> Config:
    """Read a config file: Python, or mmengine's JSON or YAML.

    Raises:
        UserError: it, or a file it is based on, cannot be read or is not what its name says; names the line.
    """
    config = _read(path, ())
    config.values = plain_copy(config.values, path)
    return config


def parse_config(text: str, where: object) -> Config:
    """Read a config's Python source that stands in no file of its own; `where` is said in errors.

    Raises:
        UserError: it is not Python, or is based on a file.
    """
    config = _evaluate(text, str(where), None, ())
    config.values = plain_copy(config.values, where)
    return config


def _read(path: Path, readers: tuple[Path, ...]) -> Config:
    """Read a file; `readers` are the files that are based on it."""
    if path.suffix in YAML:
        values = read_yaml(path)[1]
        return Config(_mapping(values, path))
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as problem:
        reason = getattr(problem, "strerror", "not UTF-8: save it as UTF-8")
        raise UserError(f"{path}: cannot be read: {reason}") from None
    if path.suffix != ".json":
        return _evaluate(text, str(path), path, readers)
    try:
        return Config(_mapping(json.loads(text), path))
    except (ValueError, RecursionError) as problem:
        raise UserError(f"{path}: not JSON ({problem}): write it again") from None


def _mapping(values: object, path: Path) -> dict[str, Any]:
    if not isinstance(values, dict):
        raise UserError(f"{path}: holds no config: a config is a mapping of names to values")
    return values


def _evaluate(text: str, where: str, path: Path | None, readers: tuple[Path, ...]) -> Config:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a path such as 'D:\data'
            tree = ast.parse(text)
    except (SyntaxError, ValueError) as problem:
        reason = getattr(problem, "msg", None) or problem
        raise UserError(f"{where}:{getattr(problem, 'lineno', None) or 1}: not Python ({reason}): mend it") from None
    except (RecursionError, MemoryError):
        raise UserError(f"{where}: nests too deeply to be a config: check it") from None
    bases = _Bases(where, path, readers)
    statements = Statements(path.name if path else where, bases.module, bases.merged)
    # As mmengine runs a config: it is not the main module, and knows its own place.
    statements.names |= {"__name__": "builtins"} | ({"__file__": str(path.absolute())} if path else {})
    try:
        statements.run(tree.body)
        without = statements.imported | {BASE}
        values = {name: value for name, value in statements.names.items() if name not in without and name[:2] != "__"}
        values = merged_dict(values, bases.values)
    except RecursionError:
        raise UserError(f"{where}: nests too deeply to be a config: check it") from None
    return Config(
        values,
        [*bases.remarks, *statements.remarks],
        statements.used | bases.used,
    )


class _Bases:
    """The files that one config is based on, in mmengine's new way (`read_base`) and its old one (`_base_`)."""

    def __init__(self, where: str, path: Path | None, readers: tuple[Path, ...]) -> None:
        self.where = where
        self.path = path
        self.readers = readers
        self.values: dict[str, Any] = {}
        self.remarks: list[str] = []
        self.used: set[str] = set()

    def module(self, level: int, module: str, statement: ast.stmt) -> dict[str, Any]:
        """The values of a file that is imported in a `with read_base()`."""
        name = "." * level + module
        if not level:
            raise self._missing(name, statement, "copy that file beside this one and import it from there")
        if self.path is None:
            raise self._missing(name, statement, "name the config file itself")
        folder = self.path.parent
        for _ in range(level - 1):
            folder = folder.parent
        return self._read(folder.joinpath(*module.split(".")).with_suffix(PYTHON), name, statement)

    def merged(self, bases: list[str], statement: ast.stmt) -> dict[str, Any]:
        """The values of the files that `_base_` lists."""
        for base in bases:
            if self.path is None:
                raise self._missing(base, statement, "name the config file itself")
            self.values |= self._read(self.path.parent / str(base), str(base), statement)
        return self.values

    def _read(self, file: Path, name: str, statement: ast.stmt) -> dict[str, Any]:
        if not file.is_file():
            raise self._missing(name, statement, f"put it at {file}")
        readers = (*self.readers, (self.path or file).resolve())
        if file.resolve() in readers:
            raise UserError(
                f"{self.where}:{statement.lineno}: is based on {name}, which is based on it: end the circle"
            )
        config = _read(file, readers)
        self.remarks += config.remarks
        self.used |= config.used
        return config.values

    def _missing(self, name: str, statement: ast.stmt, advice: str) -> UserError:
        return UserError(f"{self.where}:{statement.lineno}: its base {name} is not there: {advice}")
