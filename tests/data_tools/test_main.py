"""The verbs start at once: nothing heavy is imported before it is needed."""

import subprocess
import sys

import pytest

from data_tools.__main__ import VERBS, main


def test_no_verb_imports_torch_or_its_like():
    heavy = {"torch", "transformers", "datasets", "pyarrow", "pandas", "numpy"}
    check = f"import data_tools.__main__, sys; print(*sorted({heavy} & set(sys.modules)))"
    loaded = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    assert loaded.stdout.split() == []


def test_every_verb_explains_itself_in_one_line(capsys):
    for name, module in VERBS.items():
        assert module.__doc__.splitlines()[0].endswith(".")
        with pytest.raises(SystemExit, match="0"):
            main([name, "--help"])
        assert name in capsys.readouterr().out


def test_what_the_stack_says_while_it_is_loaded_stays_out_of_a_piped_log(tiny_model, train_file):
    command = [sys.executable, "-m", "data_tools", "inspect", str(train_file), "--tokenizer", str(tiny_model)]
    ended = subprocess.run(command, capture_output=True, text=True, check=True)
    assert ended.stderr in ("", "inspect: at work\n")
    assert "tokens" in ended.stdout


def test_a_bar_is_asked_for_only_once_it_is_known_whether_bars_are_wanted():
    check = "import data_tools.__main__, model_tools.__main__, sys; print('tqdm' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True).stdout == "False\n"


@pytest.mark.parametrize(
    "words",
    [
        ["generate", "OUT", "--name", "黄大力"],
        ["generate", "other", "--name", "黄大力", "--holdout", "OUT"],
        ["inspect", "none", "--html", "OUT"],
        ["repair", "none", "OUT"],
        ["rename", "none", "OUT", "--old", "a", "--new", "b"],
        ["convert", "none", "OUT", "--to", "messages"],
        ["convert", "none", "other", "--to", "messages", "--skip-bad", "OUT"],
        ["split", "none", "--train", "OUT", "--eval", "other"],
        ["split", "none", "--train", "other", "--eval", "OUT"],
        ["mix", "OUT", "none:1"],
        ["dedup", "none", "OUT"],
        ["preview", "none.yaml", "--html", "OUT"],
        ["anchor", "OUT", "--model", "none", "--prompts", "none"],
    ],
    ids=" ".join,
)
def test_no_verb_writes_over_a_file_or_begins_before_it_is_sure(tmp_path, monkeypatch, capsys, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "OUT").write_text("precious")
    assert main(words) == 2
    said = f"data_tools {words[0]}: OUT: is there already: name another file, or overwrite it with --force\n"
    assert capsys.readouterr().err == said
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("OUT", "precious")]


def test_what_is_forced_is_written_over(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for words in ([], ["--force"], ["--force", "--rows", "10"]):
        assert main(["generate", "out.jsonl", "--name", "黄大力", "--rows", "20", *words]) == 0
    assert len((tmp_path / "out.jsonl").read_text(encoding="utf-8").splitlines()) == 10
