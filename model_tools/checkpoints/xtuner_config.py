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
    known: dict[str, object] = {}
    for statement in _taken(tree.body, known):
        if isinstance(statement, ast.Assign) and all(isinstance(target, ast.Name) for target in statement.targets):
            value = _value(statement.value, known)
            known |= {target.id: value for target in statement.targets}
        elif isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name) and statement.value:
            known[statement.target.id] = _value(statement.value, known)
        elif isinstance(statement, ast.AugAssign) and isinstance(statement.target, ast.Name):
            left = ast.Name(statement.target.id, ast.Load())
            known[statement.target.id] = _value(ast.BinOp(left, statement.op, statement.value), known)
        elif not isinstance(statement, (ast.Import, ast.ImportFrom)) and not _is_text(statement):
            known[f"line {statement.lineno}"] = Symbol(ast.unparse(statement))
    return known


def _taken(statements: list[ast.stmt], known: dict[str, object]) -> Iterator[ast.stmt]:
    """The statements that would be run, as far as what is known by then tells: an `if` gives way to its branch."""
    for statement in statements:
        condition = _value(statement.test, known) if isinstance(statement, ast.If) else None
        if isinstance(condition, bool):
            yield from _taken(statement.body if condition else statement.orelse, known)
        else:
            yield statement


def _value(node: ast.expr, known: dict[str, object]) -> object:
    if isinstance(node, ast.Constant):
        return node.value
    if isinstance(node, ast.Name):
        return known.get(node.id, Symbol(node.id))
    if isinstance(node, (ast.List, ast.Tuple)):
        return [_value(item, known) for item in node.elts]
    if isinstance(node, ast.Dict) and all(isinstance(key, ast.Constant) for key in node.keys):
        return {key.value: _value(item, known) for key, item in zip(node.keys, node.values, strict=True)}
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "dict" and not node.args:
        return {word.arg: _value(word.value, known) for word in node.keywords if word.arg}
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        number = _value(node.operand, known)
        return -number if _is_number(number) else Symbol(ast.unparse(node))
    if isinstance(node, ast.BinOp) and type(node.op) in _ARITHMETIC:
        left, right = _value(node.left, known), _value(node.right, known)
        if _is_number(left) and _is_number(right) and not (isinstance(node.op, (ast.Div, ast.FloorDiv)) and not right):
            return _ARITHMETIC[type(node.op)](left, right)
    return Symbol(ast.unparse(node))


def _is_text(statement: ast.stmt) -> bool:
    """A docstring, or a string that serves as a comment."""
    return isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
