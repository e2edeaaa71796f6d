"""Follows the statements of an XTuner config: what each assigns, changes or imports.

In: the statements of a file. Out: the names they leave, in `names`. Where only running the config would tell which way
it goes, what is assigned on the way is `Unknown`; a statement that is not followed leaves a remark.
"""

import ast
from collections.abc import Callable
from contextlib import contextmanager
from typing import Any

from model_tools.xtuner.calls import CHANGING, NotKnown
from model_tools.xtuner.expressions import Expressions
from model_tools.xtuner.values import Symbol, Unknown
from sft.core.text import one_line

LONGEST_SHOWN = 60
# Calls whose result nobody uses and that change nothing of the config.
WITHOUT_EFFECT = {"print", "warnings.filterwarnings", "logging.basicConfig"}
BASE = "_base_"

# The names of a file that is imported: its dots, its module, and the statement.
ReadModule = Callable[[int, str, ast.stmt], dict[str, Any]]
# The values of mmengine's `_base_` files, merged.
ReadBases = Callable[[list[str], ast.stmt], dict[str, Any]]


class _Break(Exception):
    pass


class _Continue(Exception):
    pass


class Statements(Expressions):
    """The names that the statements of one file leave."""

    def __init__(self, file: str, read_module: ReadModule, read_bases: ReadBases) -> None:
        super().__init__(file)
        self.read_module = read_module
        self.read_bases = read_bases
        self.imported: set[str] = set()
        # The condition on which it depends whether a statement runs, where that cannot be known.
        self.doubt: str | None = None

    def run(self, statements: list[ast.stmt]) -> None:
        """Follow statements in order.

        Raises:
            UserError: a base is missing, or the file takes too many steps.
        """
        for statement in statements:
            self._count(1, statement)
            follow = getattr(self, f"_follow_{type(statement).__name__}", self._remark)
            try:
                follow(statement)
            except (NotKnown, ArithmeticError, LookupError, TypeError, ValueError, AttributeError):
                self._remark(statement)

    def _remark(self, statement: ast.stmt) -> None:
        text = one_line(ast.unparse(statement), LONGEST_SHOWN)
        remark = f"{self.place(statement)}: {text}: not run here; see whether it changes a setting"
        if remark not in self.remarks:
            self.remarks.append(remark)

    def _follow_Pass(self, statement: ast.stmt) -> None:
        pass

    _follow_Global = _follow_Assert = _follow_Pass

    def _follow_Assign(self, statement: ast.Assign) -> None:
        value = self._assigned(statement.value, statement)
        for target in statement.targets:
            if isinstance(target, ast.Name) and target.id == BASE and not isinstance(value, Unknown):
                value = self.read_bases([value] if isinstance(value, str) else list(value), statement)
            self._store(target, value, statement)

    def _follow_AnnAssign(self, statement: ast.AnnAssign) -> None:
        if statement.value:
            self._store(statement.target, self._assigned(statement.value, statement), statement)

    def _follow_AugAssign(self, statement: ast.AugAssign) -> None:
        held, added = self.value(statement.target), self._assigned(statement.value, statement)
        if isinstance(held, list) and isinstance(statement.op, ast.Add):
            # A list grows in place, under every name it has; in doubt, by something that is not known.
            held.extend([added] if isinstance(added, Unknown) else list(added))
            self._count(len(held), statement)
            return
        try:
            value = self.combined(statement.op, held, added)
        except (NotKnown, ArithmeticError, TypeError, ValueError):
            whole = ast.copy_location(ast.BinOp(statement.target, statement.op, statement.value), statement)
            value = self._assigned(whole, statement)
        self._store(statement.target, value, statement)

    def _assigned(self, node: ast.expr, statement: ast.stmt) -> Any:
        if self.doubt is None:
            return self.value(node)
        return Unknown(f"{one_line(ast.unparse(node), LONGEST_SHOWN)} {self.doubt}", self.place(statement))

    def _store(self, target: ast.expr, value: Any, statement: ast.stmt) -> None:
        if isinstance(target, (ast.Tuple, ast.List)) and isinstance(value, Unknown):
            for part in target.elts:
                self._store(part, value, statement)
        elif isinstance(target, (ast.Tuple, ast.List)):
            parts = list(value)
            if len(parts) != len(target.elts):
                raise NotKnown
            for part, item in zip(target.elts, parts, strict=True):
                self._store(part, item, statement)
        elif isinstance(target, ast.Name):
            self.names[target.id] = value
            self.imported.discard(target.id)
        elif isinstance(target, (ast.Subscript, ast.Attribute)):
            owner = self.value(target.value)
            key = target.attr if isinstance(target, ast.Attribute) else self.value(target.slice)
            if not isinstance(owner, (dict, list)) or isinstance(key, (Symbol, Unknown)):
                raise NotKnown
            owner[key] = value  # type: ignore[index, call-overload]
        else:
            raise NotKnown

    def _follow_Delete(self, statement: ast.Delete) -> None:
        for target in statement.targets:
            if self.doubt is not None:
                unknown = Unknown(f"{ast.unparse(statement)} {self.doubt}", self.place(statement))
                self._store(target, unknown, statement)
            elif isinstance(target, ast.Name):
                del self.names[target.id]
            elif isinstance(target, (ast.Subscript, ast.Attribute)):
                owner = self.value(target.value)
                if not isinstance(owner, (dict, list)):
                    raise NotKnown
                key = target.attr if isinstance(target, ast.Attribute) else self.value(target.slice)
                del owner[key]  # type: ignore[arg-type]

    def _follow_Expr(self, statement: ast.Expr) -> None:
        call = statement.value
        if isinstance(call, ast.Constant):
            return  # a docstring, or a text that serves as a comment
        if not isinstance(call, ast.Call):
            raise NotKnown
        function = self.value(call.func)
        if isinstance(function, Symbol) and function.text in WITHOUT_EFFECT:
            return
        is_change = isinstance(call.func, ast.Attribute) and call.func.attr in CHANGING
        if self.doubt is not None and is_change:
            self._change_in_doubt(call, statement)
        elif not is_change or isinstance(self.value(call), Unknown):
            raise NotKnown

    def _change_in_doubt(self, call: ast.Call, statement: ast.stmt) -> None:
        """A list gets something that is not known, and so does each key of an update that is written out."""
        assert isinstance(call.func, ast.Attribute)
        unknown = Unknown(f"{one_line(ast.unparse(call), LONGEST_SHOWN)} {self.doubt}", self.place(statement))
        owner = self.value(call.func.value)
        keys = [word.arg for word in call.keywords if word.arg]
        if isinstance(owner, list):
            owner.append(unknown)
        elif isinstance(owner, dict) and keys and not call.args:
            owner |= dict.fromkeys(keys, unknown)
        else:
            raise NotKnown

    @contextmanager
    def _in_doubt(self, condition: str):
        outer, self.doubt = self.doubt, self.doubt or one_line(condition, LONGEST_SHOWN)
        try:
            yield
        finally:
            self.doubt = outer

    def _follow_If(self, statement: ast.If) -> None:
        try:
            branch = statement.body if self.is_true(statement.test) else statement.orelse
        except NotKnown:
            with self._in_doubt(f"if {ast.unparse(statement.test)}"):
                self.run(statement.body)
                self.run(statement.orelse)
        else:
            self.run(branch)

    def _follow_For(self, statement: ast.For) -> None:
        items = self.value(statement.iter)
        if isinstance(items, (Symbol, Unknown)) or self.doubt is not None:
            with self._in_doubt(f"in a loop over {ast.unparse(statement.iter)}"):
                self._store(statement.target, Unknown(ast.unparse(statement.target), self.place(statement)), statement)
                self.run([*statement.body, *statement.orelse])
            return
        for item in list(items):
            self.bind(statement.target, item)
            try:
                self.run(statement.body)
            except _Continue:
                continue
            except _Break:
                return
        self.run(statement.orelse)

    def _follow_Break(self, statement: ast.Break) -> None:
        if self.doubt is not None:
            raise NotKnown
        raise _Break

    def _follow_Continue(self, statement: ast.Continue) -> None:
        if self.doubt is not None:
            raise NotKnown
        raise _Continue

    def _follow_While(self, statement: ast.While) -> None:
        try:
            if not self.is_true(statement.test):
                return
        except NotKnown:
            pass
        with self._in_doubt(f"while {ast.unparse(statement.test)}"):
            self.run(statement.body)

    def _follow_Try(self, statement: ast.Try) -> None:
        with self._in_doubt("in a try"):
            self.run(statement.body)
            for handler in statement.handlers:
                self.run(handler.body)
            self.run(statement.orelse)
        self.run(statement.finalbody)

    def _follow_With(self, statement: ast.With) -> None:
        opened = [ast.unparse(item.context_expr) for item in statement.items]
        if not any("read_base" in text for text in opened):
            with self._in_doubt(f"with {', '.join(opened)}"):
                self.run(statement.body)
            return
        for line in statement.body:
            if isinstance(line, ast.ImportFrom):
                self._import_base(line)
            else:
                self.run([line])

    def _import_base(self, statement: ast.ImportFrom) -> None:
        names = self.read_module(statement.level, statement.module or "", statement)
        for alias in statement.names:
            if alias.name == "*":
                self.names |= {name: value for name, value in names.items() if not name.startswith("_")}
            elif alias.name in names:
                self.names[alias.asname or alias.name] = names[alias.name]
            else:
                unknown = Unknown(f"{alias.name} of {'.' * statement.level}{statement.module}", self.place(statement))
                self.names[alias.asname or alias.name] = unknown

    def _follow_Import(self, statement: ast.Import) -> None:
        for alias in statement.names:
            self._import(alias.asname or alias.name.partition(".")[0], alias.name if alias.asname else None)

    def _follow_ImportFrom(self, statement: ast.ImportFrom) -> None:
        for alias in statement.names:
            if alias.name != "*":
                module = f"{statement.module}." if statement.module else ""
                self._import(alias.asname or alias.name, f"{module}{alias.name}")

    def _import(self, name: str, full_name: str | None = None) -> None:
        self.names[name] = Symbol(full_name or name)
        self.imported.add(name)

    def _follow_FunctionDef(self, statement: ast.FunctionDef | ast.ClassDef | ast.AsyncFunctionDef) -> None:
        self._import(statement.name)

    _follow_ClassDef = _follow_AsyncFunctionDef = _follow_FunctionDef
