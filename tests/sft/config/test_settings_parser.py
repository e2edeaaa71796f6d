"""What is read from the stack's source parses as the stack's own dataclasses do: a new release cannot part the two."""

import dataclasses

import pytest
from trl import ModelConfig, SFTConfig

from sft.config.own_keys import OwnKeys
from sft.config.settings_parser import SettingsParser, declared_groups
from sft.config.stack_keys import Computed

REAL, DECLARED = SettingsParser((OwnKeys, ModelConfig, SFTConfig)), SettingsParser(declared_groups())
WRITTEN = [
    *("", "0", "7", "-1", "2e-4", "true", "No", "none", "null", "steps", "cosine", "adamw_torch", "float16", "zzz"),
    *(None, ["a", "b"], ["1"], [["a"]], {"a": "b"}, [{"path": "a.jsonl"}]),
]


def names(kinds: set) -> set[str]:
    return {getattr(kind, "__name__", str(kind)) for kind in kinds}


def test_the_source_declares_the_fields_of_the_real_dataclasses_in_their_order():
    for real, read in zip(REAL.dataclass_types, DECLARED.dataclass_types, strict=True):
        fields, fields_read = dataclasses.fields(real), dataclasses.fields(read)
        print(f"{read.__module__}.{read.__name__}: {len(fields_read)} fields")
        assert [field.name for field in fields_read] == [field.name for field in fields]
        for field, field_read in zip(fields, fields_read, strict=True):
            assert field_read.init == field.init
            if not isinstance(field_read.default, Computed):
                assert field_read.default == field.default, field.name


def test_every_argument_is_the_one_that_the_real_dataclasses_give():
    assert len(DECLARED._actions) == len(REAL._actions)
    for read, real in zip(DECLARED._actions, REAL._actions, strict=True):
        assert read.option_strings == real.option_strings
        assert (type(read), read.dest, read.nargs, read.help) == (type(real), real.dest, real.nargs, real.help)
        assert (read.const, read.required) == (real.const, real.required), read.dest
        assert getattr(read.type, "__name__", None) == getattr(real.type, "__name__", None), read.dest
        if read.choices is not None:
            assert list(read.choices) == list(real.choices), read.dest
        elif real.choices is not None:
            print(f"{read.dest}: its choices are computed and stay open")
        if isinstance(read.default, Computed):
            print(f"{read.dest}: its default is computed and stays open: {read.default}")
        else:
            assert read.default == real.default, read.dest
    assert {key: names(kinds) for key, kinds in DECLARED.kinds.items()} == {
        key: names(kinds) for key, kinds in REAL.kinds.items()
    }


def outcome(parser: SettingsParser, key: str, value: object) -> tuple[str, str]:
    try:
        return "taken", str(parser.value_of(key, value))
    except ValueError as problem:
        return "refused", str(problem)


@pytest.mark.parametrize("value", WRITTEN, ids=str)
def test_a_value_is_refused_early_only_where_the_real_dataclasses_refuse_it_in_the_same_words(value):
    left_open = []
    for key in REAL.settings():
        early, full = outcome(DECLARED, key, value), outcome(REAL, key, value)
        if early[0] == "taken" and full[0] == "refused":
            left_open.append(key)
        else:
            assert early == full, key
    print(f"{value!r}: left to the full check: {', '.join(left_open) or 'nothing'}")
    assert len(left_open) <= 4, "more is left open than an early check is worth"
