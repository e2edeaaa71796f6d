"""Reads what a run is scored on: identity questions, ordinary questions and texts.

In: the repository's `data_tools/bank/score.yaml` or a file of a person's own in the same form. Out: conversations that
end in a question. Knows nothing about models.
"""

from dataclasses import dataclass, field
from pathlib import Path

from sft.core.errors import UserError
from sft.core.paths import REPOSITORY
from sft.core.text import language_of
from sft.core.yaml_file import read_yaml

BUILT_IN = REPOSITORY / "data_tools" / "bank" / "score.yaml"
KINDS = ("identity", "ordinary", "texts")
# What stands before every second identity question, unless a recipe names another.
SYSTEM = {"zh": "你是一个有用的助手。", "en": "You are a helpful assistant."}


@dataclass(frozen=True)
class Question:
    """A conversation that ends in a question, as messages; the last one is what is asked."""

    messages: tuple[dict, ...]

    @property
    def text(self) -> str:
        """What is asked."""
        return self.messages[-1]["content"]

    @property
    def language(self) -> str:
        """`zh` or `en`."""
        return language_of(self.text)

    @property
    def has_system(self) -> bool:
        """Whether a system message comes first."""
        return self.messages[0]["role"] == "system"


@dataclass(frozen=True)
class QuestionSet:
    """What one scoring asks and reads."""

    identity: list[Question] = field(default_factory=list)
    ordinary: list[Question] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)


def load_questions(path: str | Path | None = None, system: str | None = None) -> QuestionSet:
    """The questions of a file, or those of the repository.

    `system` goes before every second identity question; without it, a plain sentence in the question's language does.

    Raises:
        UserError: the file cannot be read, or an entry is no question; names its line.
    """
    path = Path(path or BUILT_IN)
    entries = _read(path)
    identity = [_question(turns) for turns in entries["identity"]]
    for index in range(1, len(identity), 2):
        before = {"role": "system", "content": system or SYSTEM[identity[index].language]}
        identity[index] = Question((before, *identity[index].messages))
    return QuestionSet(identity, [_question(turns) for turns in entries["ordinary"]], entries["texts"])


def _question(turns: str | list[str]) -> Question:
    turns = [turns] if isinstance(turns, str) else turns
    roles = ("user", "assistant")
    return Question(tuple({"role": roles[index % 2], "content": turn} for index, turn in enumerate(turns)))


def _read(path: Path) -> dict[str, list]:
    root, content = read_yaml(path)
    if root is None or not isinstance(content, dict) or not content or set(content) - set(KINDS):
        raise UserError(f"{path}: write lists under {', '.join(KINDS)}, and nothing else")
    for (_, node), (kind, entries) in zip(root.value, content.items(), strict=True):
        if not isinstance(entries, list) or not entries:
            raise UserError(f"{path}:{node.start_mark.line + 1}: {kind}: write one `- question` a line")
        for item, entry in zip(node.value, entries, strict=True):
            if not _is_entry(kind, entry):
                shape = "a text" if kind == "texts" else "a question, or [user, assistant, ..., user]"
                raise UserError(f"{path}:{item.start_mark.line + 1}: {kind}: write {shape}")
    return {kind: content.get(kind, []) for kind in KINDS}


def _is_entry(kind: str, entry: object) -> bool:
    if isinstance(entry, str):
        return bool(entry.strip())
    is_conversation = isinstance(entry, list) and len(entry) % 2 == 1 and all(isinstance(turn, str) for turn in entry)
    return kind != "texts" and is_conversation
