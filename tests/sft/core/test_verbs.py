"""Verbs: how they are named, helped and run, and what a user's mistake becomes."""

import threading
from types import ModuleType, SimpleNamespace

import pytest

from sft.core import console
from sft.core.errors import UserError
from sft.core.verbs import dispatch, verbs_of


def make_verb(run, docstring="Does it.\n\nMore about it.") -> SimpleNamespace:
    return SimpleNamespace(
        __doc__=docstring, add_arguments=lambda parser: parser.add_argument("file", nargs="?"), run=run
    )


def test_a_verb_has_the_name_of_its_module_with_dashes():
    modules = [ModuleType("model_tools.demo_model"), ModuleType("model_tools.ask")]
    assert list(verbs_of(modules)) == ["demo-model", "ask"]


def test_the_exit_code_and_the_arguments_are_the_verbs():
    verb = make_verb(lambda arguments: len(arguments.file))
    assert dispatch("sft", {"do": verb}, ["do", "abc"]) == 3


def test_a_mistake_is_one_line_on_stderr_and_exit_code_2(capsys):
    def run(arguments):
        raise UserError(f"{arguments.file}:3: not JSON: mend the line")

    assert dispatch("sft", {"do": make_verb(run)}, ["do", "a.jsonl"]) == 2
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "sft do: a.jsonl:3: not JSON: mend the line\n")


def test_a_bug_keeps_its_traceback():
    def run(arguments):
        raise RuntimeError("a bug")

    with pytest.raises(RuntimeError, match="a bug"):
        dispatch("sft", {"do": make_verb(run)}, ["do"])


def test_the_first_line_of_the_docstring_is_the_help(capsys):
    with pytest.raises(SystemExit):
        dispatch("sft", {"do": make_verb(lambda arguments: 0)}, ["--help"])
    shown = capsys.readouterr().out
    assert "Does it." in shown
    assert "More about it." not in shown


def test_what_a_verb_loads_is_said_on_stderr_not_among_its_results(monkeypatch, capsys):
    monkeypatch.setattr(console, "SILENCE", 0.0)

    def run(arguments):
        while threading.active_count() > before:
            pass
        print("result")
        return 0

    before = threading.active_count()
    verb = SimpleNamespace(__doc__="Does it.", add_arguments=lambda parser: None, run=run, LOADS="PyTorch")
    assert dispatch("sft", {"do": verb}, ["do"]) == 0
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("result\n", "loading PyTorch\n")
