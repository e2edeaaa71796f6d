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
# What stands before every second identity question where no system message is known that belongs there.
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

    def under(self, system: str) -> "Question":
        """The same question with a system message before it."""
        return Question(({"role": "system", "content": system}, *self.messages))


@dataclass(frozen=True)
class QuestionSet:
    """What one scoring asks and reads.

    `system` is the system message that every conversation of the training began with, or that a recipe names: then each
    identity question is asked with it, as `chat` asks, and every second one once more without, which is in `bare`.
    """

    identity: list[Question] = field(default_factory=list)
    ordinary: list[Question] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    bare: list[Question] = field(default_factory=list)
    system: str | None = None

    @property
    def count(self) -> int:
        """How many questions are asked."""
        return len(self.identity) + len(self.bare) + len(self.ordinary)


def system_to_ask_with(chosen: str | None, shared: str | None) -> str | None:
    """The system message before what a model is asked: the chosen one, '' for none, else the one all rows share."""
    return (shared if chosen is None else chosen) or None


def load_questions(path: str | Path | None = None, system: str | None = None) -> QuestionSet:
    """The questions of a file, or those of the repository.

    `system` goes before every identity question, and every second one is asked without it as well: half of them are
    enough to see what the message does. Where there is none, each is asked once, and before every second one goes a
    plain sentence in its language.

    Raises:
        UserError: the file cannot be read, or an entry is no question; names its line.
    """
    path = Path(path or BUILT_IN)
    entries = _read(path)
    identity = [_question(turns) for turns in entries["identity"]]
    bare = identity[1::2] if system else []
    asked = [
        question.under(system or SYSTEM[question.language]) if system or index % 2 else question
        for index, question in enumerate(identity)
    ]
    ordinary = [_question(turns) for turns in entries["ordinary"]]
    return QuestionSet(asked, ordinary, entries["texts"], bare, system or None)


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
