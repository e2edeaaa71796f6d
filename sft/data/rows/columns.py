"""Knows under which names rows hold a question, its answer, a system message and history, and renames columns.

In: the keys of a row or the header of a table. Out: which of them is what. `--columns question=用户,answer=客服`, or
`columns` in a recipe, names any others.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache

from sft.core.text import counted
from sft.data.rows.json_line import BadRow, named

NAMES = {
    "question": (
        "question", "query", "prompt", "instruction", "input", "user", "human", "q", "questions", "user_input",
        "user_message", "ask", "问题", "提问", "问", "用户", "用户问题", "用户输入", "输入", "指令", "提示词",
        "問題", "用戶",
    ),
    "answer": (
        "answer", "response", "completion", "output", "assistant", "reply", "bot", "a", "answers", "target",
        "assistant_message", "model_output", "答案", "回答", "回复", "答复", "答", "客服", "助手", "输出", "响应",
        "回覆",
    ),
    "context": ("context", "上下文"),
    "system": ("system", "system_prompt", "system_message", "系统", "系统提示", "系统提示词"),
    "history": ("history", "历史", "历史对话"),
}  # fmt: skip
# What --columns can name beside these.
WHOLE = ("messages", "conversation", "conversations", "tools")
# Keys that hold a conversation as well, if what they hold is a list, and those of what cannot be trained on.
OTHER_LISTS = ("items", "dialogue", "dialog", "对话")
MEDIA = frozenset({"image", "images", "video", "videos", "audio", "audios"})
# What not every row has.
OPTIONAL = ("context", "system", "history", "tools")
EXAMPLE = "question=用户,answer=客服"
# Before the name of a column that was not asked for and whose own name would be read as something else.
OTHER = "other."


@dataclass(frozen=True)
class Columns:
    """Which key of a row holds what; None for what it lacks."""

    question: str | None = None
    answer: str | None = None
    context: str | None = None
    system: str | None = None
    history: str | None = None

    @property
    def is_pair(self) -> bool:
        """Whether there is a question and an answer."""
        return self.question is not None and self.answer is not None


def find_columns(row: Mapping) -> Columns:
    """What the row's keys hold, by their names.

    Raises:
        BadRow: several keys may be the same thing.
    """
    found: dict[str, list[str]] = {}
    for key in row:
        if (meaning := _meaning(key)) is not None and not (_plain(key) == "a" and _has_options(row)):
            found.setdefault(meaning, []).append(key)
    questions = found.get("question", ())
    if len(questions) == 2 and "context" not in found:
        # Alpaca's input is what the instruction is about; Chinese tables have the same two.
        for instruction, about in (("instruction", "input"), ("指令", "输入")):
            if set(map(_plain, questions)) == {instruction, about}:
                found |= {meaning: [key for key in questions if _plain(key) == name]
                          for meaning, name in (("question", instruction), ("context", about))}  # fmt: skip
    return Columns(**{meaning: _only(row, meaning, found.get(meaning, ())) for meaning in NAMES})


def system_column(row: Mapping) -> str | None:
    """The key of a row's system message."""
    return _only(row, "system", [key for key in row if _meaning(key) == "system"]) if len(row) > 1 else None


def read_columns(text: str) -> dict[str, str]:
    """The columns that a command line names, such as `question=用户,answer=客服`.

    Raises:
        ValueError: it is written otherwise, or names something that a row has no place for.
    """
    pairs = [pair.partition("=") for pair in text.split(",")]
    if not all(equals and column.strip() for _, equals, column in pairs):
        raise ValueError(f"{text}: write it as {EXAMPLE}")
    columns = {meaning.strip(): column.strip() for meaning, _, column in pairs}
    if len(columns) < len(pairs):
        raise ValueError(f"{text}: names one thing twice")
    if fault := fault_of(columns):
        raise ValueError(fault)
    return columns


def fault_of(columns: object) -> str | None:
    """Why these cannot be the columns of a file, in words; None where they can."""
    if not isinstance(columns, dict) or not columns or not all(isinstance(name, str) for name in columns.values()):
        return "name columns as {question: 用户, answer: 客服}"
    if unknown := [str(meaning) for meaning in columns if meaning not in (*NAMES, *WHOLE)]:
        return f"{named(unknown)}: a row holds {', '.join((*NAMES, *WHOLE))}; write it as {EXAMPLE}"
    if len(set(columns.values())) < len(columns):
        return "the same column is named twice"
    return None


def renamed(row: dict, columns: dict[str, str]) -> dict:
    """The row with the named columns under the names that are read.

    A column that was not named and would be read for something all the same is kept as `other.NAME`.

    Raises:
        BadRow: the row lacks a column that no row can do without.
    """
    refuse_missing(row, {meaning: name for meaning, name in columns.items() if meaning not in OPTIONAL})
    meanings = {column: meaning for meaning, column in columns.items()}
    made = {}
    for key, value in row.items():
        if key in meanings:
            made[meanings[key]] = value
        elif is_read(key) and (key not in ("tools", "functions") or "tools" in columns):
            made[f"{OTHER}{key}"] = value
        else:
            made[key] = value
    return made


def refuse_missing(names: Iterable[str], columns: dict[str, str]) -> None:
    """Raise `BadRow` where a column is not among the names that there are."""
    if missing := [column for column in columns.values() if column not in names]:
        raise BadRow(f"there is no {named(missing)}, which columns names; there is {named(names) or 'nothing'}")


def is_read(key: str) -> bool:
    """Whether a row's key of this name is read for something."""
    return _meaning(key) is not None or key in (*WHOLE, *OTHER_LISTS, *MEDIA, "functions")


def can_be_read(names: list[str]) -> bool:
    """Whether columns of these names may hold a conversation, or a question and its answer."""
    meanings = set(map(_meaning, names))
    return {"question", "answer"} <= meanings or any(name in (*WHOLE, *OTHER_LISTS) for name in names)


def _has_options(row: Mapping) -> bool:
    """Whether the row has the answers that one may choose from, A, B and so on."""
    return any(_plain(key) == "b" for key in row)


@lru_cache(maxsize=4096)
def _meaning(key: str) -> str | None:
    return next((meaning for meaning, names in NAMES.items() if _plain(key) in names), None)


def _plain(key: str) -> str:
    return key.strip().lower().replace(" ", "_").replace("-", "_")


def _only(row: Mapping, meaning: str, keys: list[str] | tuple[()]) -> str | None:
    """The one of several keys of one meaning that is not empty."""
    if len(keys) > 1:
        filled = [key for key in keys if row[key] not in (None, "")]
        if len(filled) > 1:
            raise BadRow(
                f"{counted(len(filled), 'column')} may be the {meaning} ({named(filled)}): say which with columns, "
                f"such as {meaning}={named(filled[:1])}"
            )
        keys = filled or keys
    return keys[0] if keys else None
