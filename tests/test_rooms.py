"""The order of the rooms of `sft/`: each imports only from those before it, none imports a front door, no circles."""

import ast
from functools import cache
from pathlib import Path

import pytest

from sft.core.paths import REPOSITORY

ROOMS = ["core", "models", "config", "data", "runs", "training", "evaluation", "reports", "sweeps"]
FRONT_DOORS = {"train_sft", "sweep", "data_tools", "model_tools", "benchmarks", "tests"}
MODULES = {
    ".".join(path.relative_to(REPOSITORY).with_suffix("").parts): path
    for path in sorted((REPOSITORY / "sft").rglob("*.py"))
    if path.name != "__init__.py"
}


def imports(path: Path) -> set[str]:
    """The modules that a file imports, at its top or later, and also for its types alone."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            inside = {f"{node.module}.{alias.name}" for alias in node.names}
            names |= (inside & MODULES.keys()) or {node.module}
    return names


@pytest.mark.parametrize("module", MODULES)
def test_a_module_imports_from_its_own_room_and_those_before_it(module):
    room, imported = module.split(".")[1], imports(MODULES[module])
    assert room in ROOMS, "a file of sft/ stands in a room"
    assert not {name for name in imported if name.split(".")[0] in FRONT_DOORS}
    later = ROOMS[ROOMS.index(room) + 1 :]
    assert not {name for name in imported if name.startswith("sft.") and name.split(".")[1] in later}


def test_no_chain_of_imports_is_ten_long_and_none_is_a_circle():
    @cache
    def chain(module: str) -> tuple[str, ...]:
        below = [chain(name) for name in sorted(imports(MODULES[module]) & MODULES.keys())]  # a circle has no end
        return (module, *max(below, key=len, default=()))

    longest = max(map(chain, MODULES), key=len)
    assert len(longest) < 10, " -> ".join(longest)
