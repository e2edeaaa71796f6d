"""While the stack is imported, nothing looks for garbage and nothing is compiled; afterwards all is as it was."""

import gc
import os
from importlib import metadata

import pytest

from sft.core.imports import COMPILER_SWITCH, importing


@pytest.mark.parametrize("before", [None, "0"])
def test_collecting_and_compiling_rest_while_importing_and_come_back(monkeypatch, before):
    monkeypatch.delenv(COMPILER_SWITCH, raising=False)
    if before is not None:
        monkeypatch.setenv(COMPILER_SWITCH, before)
    with importing():
        assert not gc.isenabled()
        assert os.environ.get(COMPILER_SWITCH) == "1"
    assert gc.isenabled()
    assert os.environ.get(COMPILER_SWITCH) == before


def test_what_is_installed_is_looked_up_once():
    with importing():
        assert metadata.packages_distributions() is metadata.packages_distributions()
    assert metadata.packages_distributions() is not metadata.packages_distributions()
