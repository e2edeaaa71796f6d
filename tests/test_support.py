"""What several test files share lies in tests/support: no test file imports another one, or a conftest."""

import ast

import pytest

from sft.core.paths import REPOSITORY

FILES = sorted((REPOSITORY / "tests").rglob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(REPOSITORY / "tests")))
def test_tests_import_each_other_only_from_support(path):
    imported = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            imported |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "tests are no package"
            imported |= {f"{node.module}.{alias.name}" for alias in node.names}
    theirs = {name for name in imported if name.split(".")[0] in ("tests", "conftest") or name.startswith("test_")}
    assert all(name.startswith("tests.support.") for name in theirs)
