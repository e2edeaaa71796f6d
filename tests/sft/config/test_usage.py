"""--help names every key that a recipe may set, with its kind, default and help."""

import pytest

from sft.config.aliases import RENAMED
from sft.config.settings_parser import SettingsParser, declared_groups


@pytest.fixture(scope="module")
def parser() -> SettingsParser:
    return SettingsParser(declared_groups())


def test_every_key_is_there_once_and_old_spellings_are_not(parser):
    starts = [line.partition(":")[0] for line in parser.format_help().splitlines() if not line.startswith(" ")]
    for key in parser.settings():
        assert starts.count(key) == (key not in RENAMED), key


def test_a_key_stands_as_it_is_declared_with_its_help(parser):
    text = parser.format_help()
    assert text.startswith("usage: train_sft.py RECIPE [--key value ...]\n")
    assert "\ndry_run: bool = False\n    Check everything, print the plan and end; no weights are loaded.\n" in text
    assert "\nbnb_4bit_quant_type: str = 'nf4'\n    Quantization type. One of: fp4, nf4.\n" in text
    assert "\nmax_length: int | None = 1024\n" in text
    assert "\nlr_scheduler_type: SchedulerType | str = 'linear'\n" in text
    assert "%%" not in text


def test_help_fits_a_narrow_terminal(parser, monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    lines = parser.format_help().splitlines()
    assert max(len(line) for line in lines if line.startswith("    ") and " " in line.strip()) <= 60


def test_only_the_main_process_prints_it(parser, monkeypatch, capsys):
    monkeypatch.setenv("RANK", "1")
    parser.print_help()
    assert capsys.readouterr().out == ""
