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
