"""Values are converted as TRL's own parser does it; --help names every key with its kind, default and help."""

import argparse
import dataclasses

import pytest
from trl import ModelConfig, SFTConfig, TrlParser

from sft.config.aliases import ALIASES, RENAMED
from sft.config.own_keys import OwnKeys
from sft.config.settings import read_settings
from sft.config.settings_parser import SettingsParser
from sft.core.errors import UserError

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
    starts = [line.partition(":")[0] for line in parser.format_all_keys().splitlines() if not line.startswith(" ")]
    for key in parser.key_names():
        assert starts.count(key) == (key not in RENAMED), key


def test_a_key_stands_as_it_is_declared_with_its_help(parser):
    text = parser.format_all_keys()
    assert text.startswith("usage: train_sft.py RECIPE [--key value ...]\n")
    assert "\ndry_run: bool = False\n    Check everything, print the plan and end; no weights are loaded.\n" in text
    assert "\nbnb_4bit_quant_type: str = 'nf4'\n    Quantization type. One of: fp4, nf4.\n" in text
    assert "\nmax_length: int | None = 1024\n" in text
    assert "\nlr_scheduler_type: SchedulerType | str = 'linear'\n" in text
    assert "%%" not in text


def test_help_fits_a_narrow_terminal(parser, monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    lines = parser.format_all_keys().splitlines()
    assert max(len(line) for line in lines if line.startswith("    ") and " " in line.strip()) <= 60


def test_the_short_help_is_a_page_with_each_key_of_our_own_on_a_line(parser, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    lines = parser.format_help().splitlines()
    assert len(lines) <= 50
    assert max(map(len, lines)) <= 80
    own = [line.split()[0] for line in lines if line.startswith("    ")]
    assert own == [field.name for field in dataclasses.fields(OwnKeys)]
    assert "--help all" in " ".join(lines)


@pytest.mark.parametrize(("words", "keys"), [(["--help"], "own"), (["-h"], "own"), (["--help", "all"], "all")])
def test_help_is_short_unless_all_is_asked_for(parser, capsys, words, keys):
    with pytest.raises(SystemExit, match="0"):
        parser.parse_args(words)
    assert capsys.readouterr().out == (parser.format_all_keys() if keys == "all" else parser.format_help())


def test_no_everyday_name_is_a_key_and_each_leads_to_one(parser):
    keys = parser.key_names()
    for name, key in ALIASES.items():
        assert name not in keys
        assert key.replace(",", " ").replace(":", " ").split()[0] in keys, key


EVERYDAY = {
    "epochs": "num_train_epochs",
    "batch_size": "per_device_train_batch_size",
    "lr": "learning_rate",
    "max_len": "max_length",
    "seq_len": "max_length",
    "rank": "lora_r",
    "lora-rank": "lora_r",
    "alpha": "lora_alpha",
    "dropout": "lora_dropout",
    "model": "model_name_or_path",
    "data": "train_file",
    "dataset": "train_file",
    "output": "output_dir",
    "grad_accum": "gradient_accumulation_steps",
    "name": "identity_name",
    "warmup": "warmup_steps",
    "LR": "learning_rate",
    "num_gpus": "deepspeed --quiet --num_accelerators 2",
}


@pytest.mark.parametrize(("name", "key"), EVERYDAY.items(), ids=EVERYDAY)
def test_an_everyday_name_leads_to_the_key_from_recipe_and_command_line(write_recipe, name, key):
    for arguments in ([str(write_recipe()), f"--{name}", "3"], [str(write_recipe(**{name.replace("-", "_"): 3}))]):
        with pytest.raises(UserError, match=f"{name.replace('-', '_')}: .*{key}"):
            read_settings(arguments)


def test_only_the_main_process_prints_it(parser, monkeypatch, capsys):
    monkeypatch.setenv("RANK", "1")
    with pytest.raises(SystemExit):
        parser.parse_args(["--help"])
    assert capsys.readouterr().out == ""
