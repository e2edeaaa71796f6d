"""What renaming some lines came to: what was replaced, by field and by placeholder, and what is left of old names.

Lines are renamed in blocks, in several processes: what one came to is added to what those before it did.
"""

from collections import Counter
from dataclasses import dataclass, field

from data_tools.renaming.survivors import Found
from sft.core.text import Tally


@dataclass
class Counts:
    """What was counted in lines that stand together."""

    lines: int = 0
    changed: int = 0
    # Replacements by field, placeholders that were filled, what was done to system messages.
    replaced: Counter[str] = field(default_factory=Counter)
    filled: Counter[str] = field(default_factory=Counter)
    systems: Counter[str] = field(default_factory=Counter)
    # Where "X's assistant" became X. A system message is an example only where it is the first of all.
    owned: Tally[str] = field(default_factory=Tally)
    first_owned: list[str] = field(default_factory=list)
    survivors: Found = field(default_factory=Found)

    def add(self, later: "Counts") -> None:
        """Add what lines after these came to."""
        self.lines, self.changed = self.lines + later.lines, self.changed + later.changed
        for name in ("replaced", "filled", "systems"):
            getattr(self, name).update(getattr(later, name))
        if not self.owned.count:
            self.first_owned = later.first_owned
        self.owned.extend(later.owned)
        self.survivors.add(later.survivors)

    def report(self) -> list[str]:
        """A line for each field, each placeholder, "X's assistant" with examples, and what befell system messages."""
        lines = [f"  {count:>9,}  {field}" for field, count in self.replaced.most_common() if count]
        lines += [f"  {count:>9,}  {spelling} filled" for spelling, count in self.filled.most_common()]
        if self.owned.count:
            lines.append(f"  {self.owned.count:>9,}  times the assistant of a name took the name as its own, such as")
            examples = Tally(0, [*self.first_owned])
            examples.extend(self.owned)
            lines += [f"             {example}" for example in examples.examples]
        lines += [f"  {count:>9,}  system message{'s' * (count != 1)} {what}" for what, count in self.systems.items()]
        return lines
