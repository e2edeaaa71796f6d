"""The generated keys are those of the installed stack: a new release cannot part the two unnoticed."""

import dataclasses
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

import pytest
import trl

from sft.config import stack_keys
from sft.config.write_stack_keys import STACK_KEYS, stack_keys_source


def test_the_file_is_what_the_installed_stack_gives():
    assert STACK_KEYS.read_text(encoding="utf-8") == stack_keys_source(), "run python -m sft.config.write_stack_keys"


@pytest.mark.parametrize("name", ["ModelConfig", "SFTConfig"])
def test_trls_parser_takes_the_same_arguments_of_the_generated_as_of_the_real_dataclass(name):
    generated, real = (trl.TrlParser(getattr(module, name)) for module in (stack_keys, trl))

    def described(action) -> dict[str, Any]:
        described = {
            key: getattr(action, key) for key in ("option_strings", "dest", "default", "nargs", "const", "help")
        }
        choices = list(action.choices) if action.choices else None
        return described | {"choices": choices, "type": getattr(action.type, "__name__", None), "kind": type(action)}

    assert [described(action) for action in generated._actions] == [described(action) for action in real._actions]


@pytest.mark.parametrize("name", ["ModelConfig", "SFTConfig"])
def test_a_key_takes_the_same_kinds_of_value_in_both(name):
    def kinds(group) -> dict[str, list[str]]:
        hints = get_type_hints(group).items()
        fields = {field.name for field in dataclasses.fields(group)}
        unions = {key: get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,) for key, hint in hints}
        return {key: [_name(kind) for kind in union] for key, union in unions.items() if key in fields}

    assert kinds(getattr(stack_keys, name)) == kinds(getattr(trl, name))


def _name(kind) -> str:
    kind = get_origin(kind) or kind
    return getattr(kind, "__name__", str(kind))
