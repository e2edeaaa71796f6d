"""What takes long says what it is, what does not stays quiet."""

import threading
from types import SimpleNamespace

import pytest

from sft.core import console
from sft.core.console import waiting
from sft.core.verbs import dispatch


@pytest.mark.parametrize(("seconds", "said"), [(0.0, "reading rows.jsonl\n"), (60.0, "")])
def test_a_wait_is_told_once_it_is_long(monkeypatch, capsys, seconds, said):
    monkeypatch.setattr(console, "SILENCE", seconds)
    before = threading.active_count()
    with waiting("reading rows.jsonl"):
        while seconds == 0.0 and threading.active_count() > before:
            pass  # until it has been said
    assert capsys.readouterr().out == said


def test_a_verb_tells_what_it_loads_beside_its_results(monkeypatch, capsys):
    monkeypatch.setattr(console, "SILENCE", 0.0)

    def run(arguments):
        while threading.active_count() > before:
            pass
        print("result")
        return 0

    before = threading.active_count()
    verb = SimpleNamespace(__doc__="Does it.", add_arguments=lambda parser: None, run=run, LOADS="PyTorch")
    assert dispatch("data_tools", {"do": verb}, ["do"]) == 0
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("result\n", "loading PyTorch\n")
