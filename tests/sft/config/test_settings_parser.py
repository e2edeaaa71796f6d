"""Values are converted as TRL's own parser does it; --help names every key with its kind, default and help."""

import argparse

import pytest
from trl import ModelConfig, SFTConfig, TrlParser

from sft.config.aliases import RENAMED
from sft.config.settings_parser import SettingsParser

TEXTS = [
    *("0", "7", "-1", "2e-4", "true", "No", "none", "null", "steps", "cosine", "adamw_torch", "float16", "zzz"),
    *("a b", "underflow_overflow"),
]


@pytest.fixture(scope="module")
def parser() -> SettingsParser:
    return SettingsParser()


@pytest.fixture(scope="module")
def trl_parser() -> TrlParser:
    return TrlParser((ModelConfig, SFTConfig), exit_on_error=False, allow_abbrev=False)


def outcome(convert) -> object:
    try:
        return convert()
    except (ValueError, argparse.ArgumentError):
        return "refused"


@pytest.mark.parametrize("text", TEXTS)
def test_a_text_is_converted_or_refused_as_trls_own_parser_does(parser, trl_parser, text):
    """But for mappings, which are read after the text, and `fsdp`, which takes `true` here."""
    for key in (action.dest for action in trl_parser._actions if action.dest in parser.key_names()):
        if key == "fsdp" or parser.takes_mapping(key):
            continue
        given = outcome(lambda key=key: vars(trl_parser.parse_args([f"--{key}={text}"]))[key])
        if isinstance(given, list):
            given = [getattr(item, "value", item) for item in given]
        assert outcome(lambda key=key: parser.value_of(key, text)) == given, key


def test_every_key_is_there_once_and_old_spellings_are_not(parser):
    starts = [line.partition(":")[0] for line in parser.format_help().splitlines() if not line.startswith(" ")]
    for key in parser.key_names():
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
