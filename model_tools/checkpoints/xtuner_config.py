"""Reads an XTuner config without running it: its assignments, as far as they can be known from the text alone.

In: Python source. Out: names and their values. What would have to be run or imported to be known is a `Symbol`.
"""

import ast
import operator
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from sft.core.errors import UserError

_ARITHMETIC = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
}


@dataclass(frozen=True)
class Symbol:
    """Something that only running the config would tell: an imported class, an attribute, a call."""

    text: str

    @property
    def name(self) -> str:
        """The last part of a dotted name: `torch.float16` is float16."""
        return self.text.rpartition(".")[2]


def read_config(path: Path) -> dict[str, object]:
    """The values assigned at the top level of a config file.

    Raises:
        UserError: the file cannot be read or is not Python; names the line.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as problem:
        raise UserError(f"{path}: cannot be read: {getattr(problem, 'strerror', 'not UTF-8')}: check it") from None
    return parse_config(text, path)


def parse_config(text: str, where: object) -> dict[str, object]:
    """The values assigned at the top level of a config, in order; the last assignment to a name counts.

    A statement that assigns nothing, such as a base config read in a `with`, stands under its line as a `Symbol`.

    Raises:
        UserError: the text is not Python; names the line, after `where`.
    """
    try:
        tree = ast.parse(text)
    except (SyntaxError, ValueError, RecursionError) as problem:
        reason = getattr(problem, "msg", None) or problem
        raise UserError(f"{where}:{getattr(problem, 'lineno', 1)}: not Python ({reason}): mend it") from None
    values: dict[str, object] = {}
    for statement in _taken(tree.body, values):
        if isinstance(statement, ast.Assign) and all(isinstance(target, ast.Name) for target in statement.targets):
            value = _value(statement.value, values)
            values |= {ast.unparse(target): value for target in statement.targets}
        elif isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name) and statement.value:
            values[statement.target.id] = _value(statement.value, values)
        elif isinstance(statement, ast.AugAssign) and isinstance(statement.target, ast.Name):
            left = ast.Name(statement.target.id, ast.Load())
            values[statement.target.id] = _value(ast.BinOp(left, statement.op, statement.value), values)
        elif not isinstance(statement, (ast.Import, ast.ImportFrom)) and not _is_text(statement):
            values[f"line {statement.lineno}"] = Symbol(ast.unparse(statement))
    return values


def _taken(statements: list[ast.stmt], values: dict[str, object]) -> Iterator[ast.stmt]:
    """The statements that would be run, as far as the values known by then tell: an `if` gives way to its branch."""
    for statement in statements:
        condition = _value(statement.test, values) if isinstance(statement, ast.If) else None
        if isinstance(statement, ast.If) and isinstance(condition, bool):
            yield from _taken(statement.body if condition else statement.orelse, values)
        else:
            yield statement


def _value(node: ast.expr, values: dict[str, object]) -> object:
    if isinstance(node, ast.Constant):
        return node.value
    if isinstance(node, ast.Name):
        return values.get(node.id, Symbol(node.id))
    if isinstance(node, (ast.List, ast.Tuple)):
        return [_value(item, values) for item in node.elts]
    if isinstance(node, ast.Dict) and all(isinstance(key, ast.Constant) for key in node.keys):
        pairs = zip(node.keys, node.values, strict=True)
        return {key.value: _value(item, values) for key, item in pairs if isinstance(key, ast.Constant)}
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "dict" and not node.args:
        return {word.arg: _value(word.value, values) for word in node.keywords if word.arg}
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        number = _value(node.operand, values)
        return -number if isinstance(number, (int, float)) and _is_number(number) else Symbol(ast.unparse(node))
    if isinstance(node, ast.BinOp) and type(node.op) in _ARITHMETIC:
        left, right = _value(node.left, values), _value(node.right, values)
        if _is_number(left) and _is_number(right) and not (isinstance(node.op, (ast.Div, ast.FloorDiv)) and not right):
            return _ARITHMETIC[type(node.op)](left, right)
    return Symbol(ast.unparse(node))


def _is_text(statement: ast.stmt) -> bool:
    """A docstring, or a string that serves as a comment."""
    return isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
