"""Evaluates the expressions of an XTuner config: a small, harmless part of Python.

In: syntax trees and the names defined so far. Out: values; an expression that would have to be run is `Unknown`, an
imported name a `Symbol`. No object but plain data is touched, and every result is bounded.
"""

import ast
import operator
from collections.abc import Callable, Iterator
from pathlib import PurePosixPath
from typing import Any

from model_tools.xtuner.calls import FUNCTIONS, HOLDING, METHODS, MOST_ITEMS, NotKnown, bounded, format_scalar, known
from model_tools.xtuner.calls import percent_format as percent
from model_tools.xtuner.values import LIBRARIES, Symbol, Unknown
from sft.core.errors import UserError
from sft.core.text import one_line

MOST_STEPS = 200_000
LARGEST_EXPONENT = 64
ENVIRONMENT = ("os.environ.get", "os.getenv")

OPERATORS: dict[type, Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: operator.pow,
    ast.BitOr: operator.or_,
    ast.BitAnd: operator.and_,
    ast.LShift: operator.lshift,
    ast.RShift: operator.rshift,
}
ORDERS: dict[type, Callable[[Any, Any], Any]] = {
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
}


class Expressions(ast.NodeVisitor):
    """The values of expressions, by the names of one file.

    `remarks` are on what was assumed; `used` are the names that were looked up.
    """

    def __init__(self, file: str) -> None:
        self.file = file
        self.names: dict[str, Any] = {}
        self.remarks: list[str] = []
        self.used: set[str] = set()
        self.steps = 0

    def place(self, node: ast.AST) -> str:
        """Where a node stands, such as config.py:12."""
        return f"{self.file}:{getattr(node, 'lineno', 1)}"

    def value(self, node: ast.expr) -> Any:
        """The value of an expression, `Unknown` where it cannot be known.

        Raises:
            UserError: the file takes too many steps to evaluate.
        """
        self._count(1, node)
        try:
            value = bounded(self.visit(node))
            self._count(len(value) // 64 if isinstance(value, (str, list, tuple)) else 0, node)
            return value
        except (NotKnown, ArithmeticError, LookupError, TypeError, ValueError, AttributeError):
            return Unknown(one_line(ast.unparse(node), 100), self.place(node))

    def _count(self, steps: int, node: ast.AST) -> None:
        self.steps += steps
        if self.steps > MOST_STEPS:
            raise UserError(f"{self.place(node)}: takes too many steps to evaluate: is it a config?")

    def _count_parts(self, value: Any, node: ast.AST) -> None:
        """Count every part of a value that is about to be walked through, shared parts as often as they are met."""
        self._count(1, node)
        parts = value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else ()
        for part in parts:
            self._count_parts(part, node)

    def is_true(self, node: ast.expr) -> bool:
        """Whether a condition holds.

        Raises:
            NotKnown: only running the config would tell.
        """
        value = self.value(node)
        if isinstance(value, Unknown) or (isinstance(value, Symbol) and not value.is_defined):
            raise NotKnown
        return bool(value)

    def generic_visit(self, node: ast.AST) -> Any:
        """Any expression that is not listed is not evaluated."""
        raise NotKnown

    def visit_Constant(self, node: ast.Constant) -> Any:
        """Text, number, switch or None."""
        return node.value

    def visit_Name(self, node: ast.Name) -> Any:
        """What the name was given; else the name itself, as a class that a star import may bring."""
        if node.id in self.names:
            self.used.add(node.id)
        return self.names.get(node.id, Symbol(node.id, is_defined=False))

    def visit_Lambda(self, node: ast.Lambda) -> Any:
        """A function is known by its text."""
        return Symbol(one_line(ast.unparse(node), 60))

    def visit_List(self, node: ast.List) -> list:
        """Each item by itself, so that one that is unknown leaves the others known."""
        return list(self._items(node.elts))

    def visit_Tuple(self, node: ast.Tuple) -> tuple:
        """As a list."""
        return tuple(self._items(node.elts))

    def visit_Set(self, node: ast.Set) -> Any:
        """As a list; `{{_base_.lr}}` is mmengine's way to name a value of a base."""
        inner = node.elts[0] if len(node.elts) == 1 else None
        if isinstance(inner, ast.Set) and len(inner.elts) == 1:
            return self.value(inner.elts[0])
        return list(dict.fromkeys(self._items(node.elts)))

    def visit_Dict(self, node: ast.Dict) -> dict:
        """Each value by itself; `**other` lays out another dict."""
        values: dict = {}
        for key, item in zip(node.keys, node.values, strict=True):
            if key is None:
                values |= self._mapping(item)
            else:
                values[known(self.value(key))] = self.value(item)
        return values

    def visit_JoinedStr(self, node: ast.JoinedStr) -> str:
        """An f-string."""
        parts = []
        for part in node.values:
            if isinstance(part, ast.FormattedValue):
                spec = self.visit(part.format_spec) if part.format_spec else ""
                parts.append(format_scalar(self.value(part.value), part.conversion, spec))
            else:
                parts.append(self.visit(part))
        return "".join(parts)

    def visit_UnaryOp(self, node: ast.UnaryOp) -> Any:
        """Signs and `not`."""
        if isinstance(node.op, ast.Not):
            return not self.is_true(node.operand)
        operand = known(self.value(node.operand))
        return -operand if isinstance(node.op, ast.USub) else +operand if isinstance(node.op, ast.UAdd) else ~operand

    def visit_BinOp(self, node: ast.BinOp) -> Any:
        """Arithmetic of numbers, texts, lists and paths, as long as the result stays small."""
        return self.combined(node.op, self.value(node.left), self.value(node.right))

    def combined(self, op: ast.operator, left: Any, right: Any) -> Any:
        """Two values under an operator.

        Raises:
            NotKnown: one of them is not known, or the result would be too large.
        """
        left, right = known(left), known(right)
        if isinstance(op, ast.Mod) and isinstance(left, str):
            return percent(left, right)
        if isinstance(op, ast.Mult):
            for sequence, count in ((left, right), (right, left)):
                if isinstance(sequence, (str, list, tuple)) and len(sequence) * count > MOST_ITEMS:
                    raise NotKnown
        if isinstance(op, (ast.Pow, ast.LShift)) and not abs(right) <= LARGEST_EXPONENT:
            raise NotKnown
        if type(op) not in OPERATORS:
            raise NotKnown
        return bounded(OPERATORS[type(op)](left, right))

    def visit_BoolOp(self, node: ast.BoolOp) -> Any:
        """`and` and `or`, which end at the first value that decides."""
        wanted = isinstance(node.op, ast.Or)
        for operand in node.values[:-1]:
            if self.is_true(operand) is wanted:
                return self.value(operand)
        return self.value(node.values[-1])

    def visit_IfExp(self, node: ast.IfExp) -> Any:
        """The branch that the condition picks."""
        return self.value(node.body if self.is_true(node.test) else node.orelse)

    def visit_Compare(self, node: ast.Compare) -> bool:
        """A chain of comparisons."""
        left = self.value(node.left)
        for op, operand in zip(node.ops, node.comparators, strict=True):
            right = self.value(operand)
            self._count_parts([left, right], node)
            if not self._holds(op, left, right):
                return False
            left = right
        return True

    def _holds(self, op: ast.cmpop, left: Any, right: Any) -> bool:
        for side in (left, right):
            if isinstance(side, Unknown) or (isinstance(side, Symbol) and not side.is_defined):
                raise NotKnown
        if isinstance(op, (ast.Eq, ast.Is)):
            return left == right
        if isinstance(op, (ast.NotEq, ast.IsNot)):
            return left != right
        if isinstance(op, (ast.In, ast.NotIn)):
            return (left in known(right)) is isinstance(op, ast.In)
        return ORDERS[type(op)](known(left), known(right))

    def visit_Attribute(self, node: ast.Attribute) -> Any:
        """A part of an imported name, or of a dict, which mmengine lets one write as an attribute."""
        owner = self.value(node.value)
        if isinstance(owner, Symbol):
            return Symbol(f"{owner.text}.{node.attr}", owner.is_defined)
        if isinstance(owner, dict) and node.attr in owner:
            return owner[node.attr]
        if isinstance(owner, PurePosixPath) and node.attr in ("parent", "name", "stem", "suffix"):
            return getattr(owner, node.attr)
        raise NotKnown

    def visit_Subscript(self, node: ast.Subscript) -> Any:
        """An item or a slice of plain data, or a named item of something imported."""
        owner = self.value(node.value)
        if isinstance(node.slice, ast.Slice):
            bounds = (node.slice.lower, node.slice.upper, node.slice.step)
            return known(owner)[slice(*(known(self.value(bound)) if bound else None for bound in bounds))]
        key = known(self.value(node.slice))
        if isinstance(owner, Symbol) and isinstance(key, str) and owner.text != "os.environ":
            return Symbol(f"{owner.text}.{key}", owner.is_defined)
        return known(owner)[key]

    def visit_ListComp(self, node: ast.ListComp) -> list:
        """A list comprehension."""
        return [self.value(node.elt) for _ in self._rounds(node.generators)]

    def visit_GeneratorExp(self, node: ast.GeneratorExp) -> list:
        """As a list."""
        return [self.value(node.elt) for _ in self._rounds(node.generators)]

    def visit_SetComp(self, node: ast.SetComp) -> list:
        """As a list."""
        return list(dict.fromkeys(self.value(node.elt) for _ in self._rounds(node.generators)))

    def visit_DictComp(self, node: ast.DictComp) -> dict:
        """A dict comprehension."""
        return {known(self.value(node.key)): self.value(node.value) for _ in self._rounds(node.generators)}

    def _rounds(self, generators: list[ast.comprehension]) -> Iterator[None]:
        """Once for each round of a comprehension, with its names bound as they are then."""
        if not generators:
            yield
            return
        outer = dict(self.names)
        for item in list(known(self.value(generators[0].iter))):
            self.bind(generators[0].target, item)
            if all(self.is_true(condition) for condition in generators[0].ifs):
                yield from self._rounds(generators[1:])
        self.names = outer

    def bind(self, target: ast.expr, value: Any) -> None:
        """Give a name, or each of several, its value.

        Raises:
            NotKnown: the target is no name, or the value has another number of parts.
        """
        if isinstance(target, ast.Name):
            self.names[target.id] = value
        elif isinstance(target, (ast.Tuple, ast.List)):
            parts = list(known(value))
            if len(parts) != len(target.elts):
                raise NotKnown
            for part, item in zip(target.elts, parts, strict=True):
                self.bind(part, item)
        else:
            raise NotKnown

    def visit_Call(self, node: ast.Call) -> Any:
        """A harmless function or method, or a library's class with keywords: a record, dict(type=...)."""
        arguments = list(self._items(node.args))
        keywords: dict[str, Any] = {}
        for word in node.keywords:
            keywords |= {word.arg: self.value(word.value)} if word.arg else self._mapping(word.value)
        if isinstance(node.func, ast.Attribute):
            owner = self.value(node.func.value)
            for kind, methods in METHODS.items():
                if isinstance(owner, kind) and node.func.attr in methods:
                    self._count_parts([owner, arguments], node)
                    if arguments and node.func.attr not in HOLDING:
                        known(arguments[0])
                    return methods[node.func.attr](owner, *arguments, **keywords)
        function = self.value(node.func)
        if not isinstance(function, Symbol):
            raise NotKnown
        if function.text in FUNCTIONS:
            self._count_parts(arguments, node)
            return FUNCTIONS[function.text](*arguments, **keywords)
        if function.text in ENVIRONMENT and len(arguments) == 2:
            variable, default = map(known, arguments)
            self.remarks.append(
                f"{self.place(node)}: the environment variable {variable} is taken as its default, {default!r}"
            )
            return default
        if function.text.partition(".")[0] in LIBRARIES and not arguments:
            return {"type": function, **keywords}
        raise NotKnown

    def _items(self, nodes: list[ast.expr]) -> Iterator[Any]:
        for node in nodes:
            if isinstance(node, ast.Starred):
                yield from known(self.value(node.value))
            else:
                yield self.value(node)

    def _mapping(self, node: ast.expr) -> dict:
        mapping = known(self.value(node))
        if not isinstance(mapping, dict):
            raise NotKnown
        return mapping
