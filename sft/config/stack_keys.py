"""Reads a dataclass from the source of an installed package, without importing the package.

In: what `from trl import SFTConfig` would name. Out: a dataclass of the same name with the same fields, for a parser to
take its arguments from. Knows nothing about what they mean. What only running the source would tell stays open: a type
is `Unread`, a default is `Computed`, of the metadata it is left out.
"""

import ast
import builtins
import dataclasses
import importlib.util
import typing
from collections.abc import Iterable
from enum import Enum
from functools import cache
from pathlib import Path
from typing import Any


class Computed:
    """A default that the source computes; shown as it is written there."""

    def __init__(self, expression: ast.expr):
        self._text = ast.unparse(expression)

    def __repr__(self):
        return self._text


class Unread:
    """A type that is neither Python's own nor an enumeration: any text may be a value of it."""

    def __new__(cls, text: str):
        return text

    def __class_getitem__(cls, _):
        return cls


@cache
def declared(package: str, name: str) -> type:
    """The dataclass that a package offers under a name, with the fields of the dataclasses below it.

    Raises:
        LookupError: the source does not show the class, or one that it builds on.
    """
    source, definition = _found(package, name)
    namespace = {"__module__": source.name, "__doc__": ast.get_docstring(definition)}
    return dataclasses.make_dataclass(name, _fields(source, definition).values(), namespace=namespace)


class _Source:
    """A module as it is written: the classes it defines, and where the names come from that it imports."""

    def __init__(self, name: str, file: Path):
        self.name = name
        package = name if file.name == "__init__.py" else name.rpartition(".")[0]
        tree = ast.parse(file.read_text(encoding="utf-8"))
        self.classes = {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}
        # Under an `if` as well: lazy packages state their names for type checkers alone.
        self.origins = {
            alias.asname or alias.name: (_absolute(node, package), alias.name)
            for node in ast.walk(tree)
            if isinstance(node, ast.ImportFrom)
            for alias in node.names
        }


def _absolute(statement: ast.ImportFrom, package: str) -> str:
    return importlib.util.resolve_name("." * statement.level + (statement.module or ""), package)


@cache
def _source(module: str) -> _Source | None:
    """None for a module that is not installed, or is not written in Python."""
    top, *below = module.split(".")
    spec = importlib.util.find_spec(top)
    for folder in spec.submodule_search_locations or () if spec else ():
        path = Path(folder, *below)
        for file in (path / "__init__.py", path.with_suffix(".py")):
            if file.is_file():
                return _Source(module, file)
    return None


def _found(module: str, name: str) -> tuple[_Source, ast.ClassDef]:
    """Where a class is defined that a module defines or imports."""
    source = _source(module)
    if source and name in source.classes:
        return source, source.classes[name]
    if source and name in source.origins:
        return _found(*source.origins[name])
    raise LookupError(f"the source of {module} shows no class {name}")


def _fields(source: _Source, definition: ast.ClassDef) -> dict[str, tuple[str, Any, dataclasses.Field]]:
    """As `make_dataclass` takes them, in the order that the dataclass has: a field declared again keeps its place."""
    fields = {}
    for base in reversed(definition.bases):
        fields |= _fields(*_found(source.name, ast.unparse(base)))
    for statement in definition.body:
        if isinstance(statement, ast.AnnAssign):
            name = statement.target.id
            fields[name] = name, _kind(source, statement.annotation), _field(statement.value)
    return fields


def _field(value: ast.expr | None) -> dataclasses.Field:
    if value is None:
        return dataclasses.field()
    if not isinstance(value, ast.Call):
        return dataclasses.field(default=_value(value))
    stated = {keyword.arg: keyword.value for keyword in value.keywords}
    arguments = {name: _value(node) for name, node in stated.items()}
    if factory := stated.get("default_factory"):
        arguments["default_factory"] = vars(builtins).get(ast.unparse(factory)) or (lambda: Computed(factory))
    if isinstance(metadata := stated.get("metadata"), ast.Dict):
        entries = [(key.value, _value(node)) for key, node in zip(metadata.keys, metadata.values, strict=True)]
        arguments["metadata"] = {name: entry for name, entry in entries if not isinstance(entry, Computed)}
    return dataclasses.field(**arguments)


def _value(expression: ast.expr) -> object:
    try:
        return ast.literal_eval(expression)
    except ValueError:
        return Computed(expression)


def _kind(source: _Source, annotation: ast.expr) -> Any:
    """The type that an annotation stands for."""
    match annotation:
        case ast.Constant():
            return annotation.value
        case ast.Name():
            return _named(source, annotation.id)
        case ast.BinOp(op=ast.BitOr()):
            return _kind(source, annotation.left) | _kind(source, annotation.right)
        case ast.Subscript():
            return _kind(source, annotation.value)[_kind(source, annotation.slice)]
        case ast.Tuple():
            return tuple(_kind(source, part) for part in annotation.elts)
    return Unread


def _named(source: _Source, name: str) -> Any:
    for known in (vars(builtins), vars(typing)):
        if name in known:
            return known[name]
    try:
        origin, definition = _found(source.name, name)
    except LookupError:
        return Unread
    if not _is_enumeration(origin, definition):
        return type(name, (Unread,), {})
    return Enum(name, list(_members(definition)), module=origin.name)


def _is_enumeration(source: _Source, definition: ast.ClassDef) -> bool:
    for base in map(ast.unparse, definition.bases):
        if source.origins.get(base, ("", ""))[0] == "enum":
            return True
        if base in source.classes or base in source.origins:
            return _is_enumeration(*_found(source.name, base))
    return False


def _members(definition: ast.ClassDef) -> Iterable[tuple[str, object]]:
    for statement in definition.body:
        if isinstance(statement, ast.Assign):
            yield statement.targets[0].id, ast.literal_eval(statement.value)
