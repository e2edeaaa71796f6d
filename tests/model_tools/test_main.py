"""Verbs that write a file write over none unless they are told to."""

import pytest

from model_tools.__main__ import main


@pytest.mark.parametrize("words", [["import-xtuner", "none.py", "OUT"], ["report", "none", "--out", "OUT"]])
def test_no_verb_writes_over_a_file_or_begins_before_it_is_sure(tmp_path, monkeypatch, capsys, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "OUT").write_text("precious")
    assert main(words) == 2
    said = f"model_tools {words[0]}: OUT: is there already: name another file, or overwrite it with --force\n"
    assert capsys.readouterr().err == said
    assert (tmp_path / "OUT").read_text() == "precious"
