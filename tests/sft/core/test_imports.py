"""While the stack is imported, nothing looks for garbage and nothing is compiled; afterwards all is as it was."""

import gc
import os

import pytest

from sft.core.imports import COMPILER_SWITCH, importing


@pytest.mark.parametrize("before", [None, "0"])
@pytest.mark.parametrize("compiled", [True, False])
def test_collecting_and_compiling_rest_while_importing_and_come_back(monkeypatch, before, compiled):
    monkeypatch.delenv(COMPILER_SWITCH, raising=False)
    if before is not None:
        monkeypatch.setenv(COMPILER_SWITCH, before)
    with importing(compiled=compiled):
        assert not gc.isenabled()
        assert os.environ.get(COMPILER_SWITCH) == (before if compiled else "1")
    assert gc.isenabled()
    assert os.environ.get(COMPILER_SWITCH) == before
