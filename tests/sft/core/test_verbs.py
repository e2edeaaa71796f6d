"""Verbs: how they are named, helped and run, and what a user's mistake becomes."""

import os
import threading
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from sft.core import console, files
from sft.core.errors import UserError
from sft.core.verbs import add_output, dispatch, verbs_of


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


def test_ctrl_c_ends_a_verb_in_silence(capsys):
    def run(arguments):
        raise KeyboardInterrupt

    assert dispatch("sft", {"do": make_verb(run)}, ["do"]) == 130
    assert capsys.readouterr().err == ""


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


@pytest.fixture
def copy(tmp_path):
    """A verb that copies its input to two files; returns how it ended. What it began is in `copy.begun`."""

    def add_arguments(parser):
        parser.add_argument("input", type=Path)
        add_output(parser, "out")
        add_output(parser, "--report")

    def run(arguments):
        copy.begun.append(arguments.input)
        for path in filter(None, (arguments.out, arguments.report)):
            with files.atomic_write(path) as file:
                file.write(b"data\n")
        print("summary")
        return 0

    def copy(*words):
        verb = SimpleNamespace(__doc__="Copies.", add_arguments=add_arguments, run=run)
        return dispatch("sft", {"copy": verb}, ["copy", str(tmp_path / "in"), *map(str, words)])

    (tmp_path / "in").write_text("data")
    copy.begun = []
    return copy


def test_nothing_is_written_over_unless_it_is_forced_and_nothing_is_begun_before(copy, tmp_path, capsys):
    for words in (["out"], ["fresh", "--report", "out"]):
        (tmp_path / "out").write_text("precious")
        words = [word if word.startswith("-") else tmp_path / word for word in words]
        assert copy(*words) == 2
        refusal = f"sft copy: {tmp_path}/out: is there already: name another file, or overwrite it with --force\n"
        assert capsys.readouterr().err == refusal
        assert copy.begun == []
        assert copy(*words, "--force") == 0
        assert (tmp_path / "out").read_text() == "data\n"
        copy.begun.clear()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["in"], "in: is an input as well"),
        (["out", "--report", "sub/../out"], "out: named for two outputs"),
        (["/dev/stdout", "--report", "/dev/fd/1"], "named for two outputs"),
        (["file/out"], "Not a directory"),
        (["n" * 300], "File name too long"),
        (["a\nb/../in"], "a\\nb/../in: "),
    ],
)
def test_outputs_that_cannot_be_are_refused_in_one_line(copy, tmp_path, capsys, words, said):
    for name in ("sub", "a\nb"):
        (tmp_path / name).mkdir()
    (tmp_path / "file").touch()
    assert copy(*(word if word.startswith("-") else tmp_path / word for word in words), "--force") == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
    assert copy.begun == []


@pytest.mark.parametrize("out", ["/dev/stdout", "/proc/self/fd/1", "/dev/fd/1"])
def test_data_on_standard_output_stands_there_alone(copy, capfd, out):
    assert copy(out) == 0
    captured = capfd.readouterr()
    assert (captured.out, captured.err) == ("data\n", "summary\n")


def test_a_summary_stays_on_standard_output_where_no_data_go_there(copy, tmp_path, capfd):
    assert copy("/dev/null", "--report", os.devnull) == 0
    assert copy("/dev/stderr") == 0
    captured = capfd.readouterr()
    assert (captured.out, captured.err) == ("summary\nsummary\n", "data\n")
