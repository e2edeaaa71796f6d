"""Fields are read from source as importing the source would give them, and nothing is imported."""

import dataclasses
import sys
import typing

import pytest

from sft.config.stack_keys import Computed, Unread, declared

OFFERS = """
raise RuntimeError("this package is not to be imported")
if TYPE_CHECKING:
    from .training import Training
"""
BELOW = """
from dataclasses import dataclass, field
@dataclass
class Below:
    seed: int = 42
    steps: float = field(default=500, metadata={"help": "How " "many.", "choices": list_of_choices()})
    marks = ["no annotation, no field"]
"""
TRAINING = """
from dataclasses import dataclass, field
from enum import Enum
from elsewhere import Odd
from .below import Below
class Strategy(str, Enum):
    \"\"\"When.\"\"\"
    NO = "no"
    STEPS = "steps"
@dataclass
class Training(Below):
    if ready():
        best = "fast"
    strategy: Strategy | str = "no"
    optim: str = best
    names: list[str] = field(default_factory=list)
    shape: Odd | None = None
    table: Odd[int] = None
    counted: int = field(init=False, default=0)
    seed: int = 7
"""


@pytest.fixture
def package(tmp_path, monkeypatch) -> str:
    folder = tmp_path / "made_up_stack"
    folder.mkdir()
    for name, text in {"__init__": OFFERS, "below": BELOW, "training": TRAINING}.items():
        (folder / f"{name}.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    return folder.name


def test_a_dataclass_is_read_from_source_with_those_below_it(package):
    training = declared(package, "Training")
    assert package not in sys.modules
    fields = {field.name: field for field in dataclasses.fields(training)}
    assert list(fields) == ["seed", "steps", "strategy", "optim", "names", "shape", "table", "counted"]
    assert fields["seed"].default == 7
    assert dict(fields["steps"].metadata) == {"help": "How many."}
    assert fields["names"].default_factory() == []
    assert not fields["counted"].init
    assert training.__module__ == f"{package}.training"


def test_what_only_running_the_source_tells_stays_open(package):
    training = declared(package, "Training")
    hints = typing.get_type_hints(training)
    strategy, text = typing.get_args(hints["strategy"])
    assert ([member.value for member in strategy], text) == (["no", "steps"], str)
    odd, none = typing.get_args(hints["shape"])
    assert (odd("any text"), none) == ("any text", type(None))
    assert hints["table"] is Unread
    default = next(field.default for field in dataclasses.fields(training) if field.name == "optim")
    assert isinstance(default, Computed)
    assert repr(default) == "best"


def test_a_class_that_the_source_does_not_show_is_an_error(package):
    with pytest.raises(LookupError, match="shows no class Nothing"):
        declared(package, "Nothing")
    with pytest.raises(LookupError, match="not_installed_at_all"):
        declared("not_installed_at_all", "Training")
