"""A recipe in the making: its settings, and notes on what of an XTuner config has no counterpart.

`Part` is one dict of the config. What the runner takes is taken from it; what is left over at the end is noted, so that
nothing of a config is dropped without a word.
"""

from dataclasses import dataclass, field
from typing import Any

from model_tools.xtuner.values import Symbol, Unknown, as_symbol, shown

NUMBER, WHOLE, TEXT, SWITCH = "a number", "a whole number", "a text", "True or False"


@dataclass
class Draft:
    """The recipe's settings and notes.

    `at_top` tells what the run takes in place of a name that XTuner's configs have at the top: the path, its value.
    """

    settings: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    at_top: dict[str, tuple[str, Any]] = field(default_factory=dict)
    accumulation: int = 1

    def note(self, text: str) -> None:
        """Say something once."""
        if text not in self.notes:
            self.notes.append(text)

    def note_rest(self, part: "Part") -> None:
        """Say of everything that nobody took from a part that it has no counterpart."""
        for name in [name for name in part.values if name not in part.taken]:
            value = part.take(name)
            if value is not None:
                self.note(f"{part.shown(name, value)}: no counterpart here")

    def steps_of(self, part: "Part", name: str, iterations: int, key: str) -> int:
        """The steps that a number of XTuner's iterations makes: it counts batches, of which some make one step."""
        if self.accumulation == 1 or iterations <= 0:
            return iterations
        steps = max(1, round(iterations / self.accumulation))
        self.note(
            f"{part.shown(name, iterations)}: XTuner counts batches, and {self.accumulation} of them make a step here: "
            f"{key}: {steps}"
        )
        return steps


class Part:
    """One dict of a config, at a path such as model.lora."""

    def __init__(self, values: dict[str, Any], path: str, draft: Draft) -> None:
        self.values = values
        self.path = path
        self.draft = draft
        self.taken: set[str] = set()

    def path_of(self, name: str) -> str:
        """The path of one of its names."""
        return f"{self.path}.{name}" if self.path else name

    def shown(self, name: str, value: object) -> str:
        """`path = value`, with the place of what only running the config would tell."""
        place = f" ({value.place})" if isinstance(value, Unknown) else ""
        return f"{self.path_of(name)} = {shown(value)}{place}"

    def take(self, name: str, default: Any = None) -> Any:
        """The value of a name, as it is."""
        self.taken.add(name)
        return self.values.get(name, default)

    def part(self, name: str) -> "Part | None":
        """The dict under a name; None where there is none, with a note on what stands there instead."""
        value = self.take(name)
        if isinstance(value, dict):
            return Part(value, self.path_of(name), self.draft)
        if value is not None:
            self.draft.note(self.not_known(name, value, "see what it sets"))
        return None

    def parts(self, name: str) -> list["Part"]:
        """The dicts of a list under a name, or the one dict there."""
        value = self.take(name)
        if value is None:
            return []
        found = []
        for place, item in enumerate(value if isinstance(value, list) else [value]):
            path = f"{name}[{place}]" if isinstance(value, list) else name
            if isinstance(item, dict):
                found.append(Part(item, self.path_of(path), self.draft))
            else:
                self.draft.note(self.not_known(path, item, "see what it sets"))
        return found

    def not_known(self, name: str, value: object, advice: str, kind: str = "what belongs here") -> str:
        """A note on a value that cannot be carried over, where a value of a kind belongs."""
        if isinstance(value, Unknown):
            return f"{self.shown(name, value)}: only running the config would tell; {advice}"
        if isinstance(value, Symbol) and not value.is_defined:
            return f"{self.shown(name, value)}: is assigned nowhere in the config; {advice}"
        if as_symbol(value):
            return f"{self.shown(name, value)}: stands in a library, not in the config; {advice}"
        return f"{self.shown(name, value)}: is not {kind}; {advice}"

    def get(self, name: str, kind: str, key: str, default: Any = None, at_top: str | None = None) -> Any:
        """The value of a name where it is of a kind; None otherwise, with a note to set `key`."""
        value = self.take(name, default)
        if at_top:
            self.draft.at_top[at_top] = (self.path_of(name), value)
        if value is None:
            return None
        if (fitting := _fitting(value, kind)) is None:
            self.draft.note(self.not_known(name, value, f"set {key} yourself", kind))
        return fitting

    def carry(self, name: str, kind: str, key: str, default: Any = None, at_top: str | None = None) -> Any:
        """Set a key of the recipe to the value of a name; returns the value, as `get` does."""
        value = self.get(name, kind, key, default, at_top)
        if value is not None:
            self.draft.settings[key] = value
        return value

    def expect(self, name: str, *usual: Any, advice: str = "no counterpart here") -> None:
        """Take a name whose usual values change nothing here, and note any other."""
        value = self.take(name)
        if value is not None and value not in usual:
            self.draft.note(f"{self.shown(name, value)}: {advice}")


def _fitting(value: Any, kind: str) -> Any:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if kind == WHOLE and is_number and float(value).is_integer():
        return int(value)
    if kind == NUMBER and is_number:
        return value
    if kind == TEXT and isinstance(value, str) and not as_symbol(value):
        return value
    if kind == SWITCH and (isinstance(value, bool) or value in (0, 1)):
        return bool(value)
    return None
