"""The values of an XTuner config: plain Python data, and what stands in for the rest.

In: values as an evaluator made them. Out: plain copies, and their text for a person. Knows nothing about settings.
"""

import re
from dataclasses import dataclass, field
from pathlib import PurePath

from sft.core.errors import UserError
from sft.core.text import one_line

MOST_VALUES = 50_000
DEEPEST = 60
LONGEST_SHOWN = 60
# Packages whose classes and functions a dumped config names in text.
LIBRARIES = ("xtuner", "mmengine", "torch", "transformers", "peft", "datasets", "bitsandbytes")


@dataclass(frozen=True)
class Symbol:
    """A class, function or constant that is imported: known by its name alone."""

    text: str
    is_defined: bool = field(default=True, compare=False)

    @property
    def name(self) -> str:
        """The last part of a dotted name: `torch.float16` is float16."""
        return self.text.rpartition(".")[2]


@dataclass(frozen=True)
class Unknown:
    """An expression that only running the config would tell, and its place, such as config.py:12."""

    text: str
    place: str


def as_symbol(value: object) -> Symbol | None:
    """The symbol that a value is or, in a config that mmengine dumped, names; None for any other value."""
    if isinstance(value, str) and re.fullmatch(rf"({'|'.join(LIBRARIES)})(\.\w+)+", value):
        return Symbol(value)
    return value if isinstance(value, Symbol) else None


def name_of(value: object) -> str | None:
    """The name of a class or function, whether imported, dumped as a dotted text or registered under a text."""
    symbol = as_symbol(value)
    return symbol.name if symbol else value.rpartition(".")[2] if isinstance(value, str) else None


def shown(value: object, longest: int | None = LONGEST_SHOWN) -> str:
    """A value as the config would have it, on one line."""
    return one_line(_text(value), longest)


def _text(value: object) -> str:
    if symbol := as_symbol(value):
        # Of xtuner.utils.PROMPT_TEMPLATE.qwen_chat and datasets.load_dataset, the modules say nothing.
        text = re.sub(r"^(?:[a-z_0-9]+\.)+(?=[A-Z])", "", symbol.text)
        return symbol.name if text.partition(".")[0] in LIBRARIES and not text.startswith("torch.") else text
    if isinstance(value, Unknown):
        return value.text
    if isinstance(value, dict):
        if all(isinstance(key, str) and key.isidentifier() for key in value):
            return f"dict({', '.join(f'{key}={_text(item)}' for key, item in value.items())})"
        return "{" + ", ".join(f"{_text(key)}: {_text(item)}" for key, item in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(_text, value))}]"
    return repr(value)


def plain_copy(values: dict[str, object], where: object) -> dict[str, object]:
    """A copy that shares no part with another, tuples as lists and paths as text.

    Raises:
        UserError: it is nested too deeply, holds itself or would grow too large.
    """
    copied = 0

    def copy(value: object, depth: int) -> object:
        nonlocal copied
        copied += 1
        if depth > DEEPEST or copied > MOST_VALUES:
            problem = "nests too deeply" if depth > DEEPEST else "holds too many values"
            raise UserError(f"{where}: {problem} to be a config: check it")
        if isinstance(value, dict):
            return {key: copy(item, depth + 1) for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            return [copy(item, depth + 1) for item in value]
        return str(value) if isinstance(value, PurePath) else value

    return {name: copy(value, 1) for name, value in values.items()}
