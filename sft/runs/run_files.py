"""Reads what a run wrote down about itself.

In: a run directory, of a run that ended, goes on or was killed. Out: a `Run`. Loads no model and no torch; what a
killed run left half-written is left out, and told.
"""

import json
import math
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from sft.config.own_keys import DEFAULTS_BEGIN
from sft.core.errors import UserError
from sft.core.files import atomic_write

ANSWERS = "eval_chat.jsonl"
# What a line of each file must hold to be of use.
LINES = {
    "log.jsonl": {"step": int},
    "eval_chat.jsonl": {"step": int, "prompt": str, "answer": str},
    "scores.jsonl": {"step": int},
    "score_answers.jsonl": {"step": int, "kind": str, "question": str, "answer": str},
}


@dataclass
class Answer:
    """What the model said to one prompt at one step; seconds are the whole batch's."""

    step: int
    prompt: str
    answer: str
    seconds: float
    tokens: int
    stop_reason: str  # "end of turn" or "max_new_tokens"


@dataclass
class Run:
    """One run's files; records are in the order of their steps, each step once, as the run last passed it.

    `settings` are the keys a person set, `others` all the rest, `stack_defaults` what the stack has for the keys set;
    `problems` are sentences about what could not be read.
    """

    folder: Path
    settings: dict = field(default_factory=dict)
    others: dict = field(default_factory=dict)
    stack_defaults: dict = field(default_factory=dict)
    card: dict = field(default_factory=dict)
    environment: dict = field(default_factory=dict)
    time: dict = field(default_factory=dict)
    sample: dict = field(default_factory=dict)
    log: list[dict] = field(default_factory=list)
    held_out: list[dict] = field(default_factory=list)
    answers: list[dict] = field(default_factory=list)
    scores: list[dict] = field(default_factory=list)
    scored_answers: list[dict] = field(default_factory=list)
    best_step: int | None = None
    has_final: bool = False
    problems: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        return self.folder.resolve().name

    @property
    def identity_name(self) -> str | None:
        return self.settings.get("identity_name")

    @property
    def last_step(self) -> int:
        """The last step that anything is known of."""
        recorded = (self.log, self.held_out, self.answers, self.scores)
        return max((records[-1]["step"] for records in recorded if records), default=0)

    @property
    def max_steps(self) -> int:
        return int(number((self.log or [{}])[-1].get("max_steps")) or number(self.card.get("total_steps")) or 0)

    @property
    def evaluated_steps(self) -> list[int]:
        """The steps at which the model was asked or scored."""
        return sorted({record["step"] for record in (*self.answers, *self.scores)})

    @property
    def was_stopped_in_time(self) -> bool:
        """Whether the name was learned before the last step and the run ended for it."""
        wanted = self.settings.get("stop_when_identity")
        reached = number(self.scores[-1].get("identity")) if self.scores else None
        is_early = self.has_final and self.last_step < self.max_steps
        return bool(wanted) and is_early and reached is not None and reached >= wanted


def read_run(folder: Path) -> Run:
    """Everything the files of a run directory tell.

    Raises:
        UserError: the folder is no run directory.
    """
    run = Run(folder)
    run.settings, run.others = _read_recipe(folder)
    for name in ("card", "environment", "time", "sample", "stack_defaults"):
        file = "dataset_card.json" if name == "card" else f"{name}.json"
        setattr(run, name, _read_json(folder / file, run.problems))
    records = {name: _read_lines(folder / name, needed, run.problems) for name, needed in LINES.items()}
    run.log = _each_step_once(record for record in records["log.jsonl"] if "loss" in record)
    run.held_out = _each_step_once(record for record in records["log.jsonl"] if "eval_loss" in record)
    run.scores = _each_step_once(records["scores.jsonl"])
    run.answers = _each_step_once(records["eval_chat.jsonl"], "prompt")
    run.scored_answers = _each_step_once(records["score_answers.jsonl"], "kind", "question", "has_system")
    run.best_step = _best_step(folder, run.problems) if run.settings.get("keep_best") else None
    run.has_final = any((folder / "final" / name).is_file() for name in ("adapter_config.json", "config.json"))
    return run


def cut_back(folder: Path, step: int) -> None:
    """Take off what a run recorded after a step from which it is done again, and a line that was cut short."""
    for name, needed in LINES.items():
        if (folder / name).is_file():
            kept = [record for record in _read_lines(folder / name, needed, []) if record["step"] <= step]
            with atomic_write(folder / name) as file:
                file.writelines(json.dumps(record, ensure_ascii=False).encode() + b"\n" for record in kept)


def read_answers(run: Path, step: int) -> list[Answer]:
    """What a run's model said at one step."""
    if not (run / ANSWERS).is_file():
        return []
    # Line by line as a file has them: str.splitlines would also cut at U+2028, which an answer may hold.
    with open(run / ANSWERS, encoding="utf-8", newline="\n") as lines:
        return [answer for answer in (Answer(**json.loads(line)) for line in lines) if answer.step == step]


def read_time(folder: Path) -> dict:
    """Seconds by activity that a run had spent when it last wrote them down; empty before that."""
    return _read_json(folder / "time.json", [])


def number(value: object) -> float | None:
    """The value as a number; None where it is none, NaN and infinity included."""
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    return value if is_number else None


def points(records: list[dict], key: str) -> list[tuple[int, float | None]]:
    """(step, value) of each record that has the key; the value is None where it was no number."""
    return [(record["step"], number(record[key])) for record in records if record.get(key) is not None]


def _read_recipe(folder: Path) -> tuple[dict, dict]:
    """The keys a person set, and all the others."""
    path = folder / "recipe.yaml"
    if not path.is_file():
        raise UserError(f"{folder}: no run directory: it holds no recipe.yaml; name one, such as work_dirs/demo")
    try:
        text = path.read_text(encoding="utf-8")
        _, _, comments = text.partition(DEFAULTS_BEGIN)
        settings = yaml.safe_load(text)
        others = yaml.safe_load("\n".join(line.removeprefix("# ") for line in comments.splitlines())) or {}
    except (yaml.YAMLError, OSError, ValueError) as problem:
        raise UserError(f"{path}: cannot be read ({' '.join(str(problem).split())[:100]}): mend it") from None
    if not isinstance(settings, dict) or not isinstance(others, dict):
        raise UserError(f"{path}: cannot be read: a recipe is a list of `key: value` lines")
    return settings, others


def _read_json(path: Path, problems: list[str]) -> dict:
    """A file's object; an empty one where the file is not there, or is not whole."""
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_bytes())
    except ValueError:
        content = None
    if not isinstance(content, dict):
        problems.append(f"{path.name} is not whole and was left out")
        return {}
    return content


def _read_lines(path: Path, needed: dict[str, type], problems: list[str]) -> list[dict]:
    """The records of a JSONL file; a line that is cut short or lacks what is needed is left out, and told."""
    records = []
    # Only a newline ends a line: `splitlines` would also break at characters that models write.
    lines = path.read_bytes().split(b"\n") if path.is_file() else []
    for place, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except ValueError:
            record = None
        if isinstance(record, dict) and all(isinstance(record.get(key), kind) for key, kind in needed.items()):
            records.append(record)
        else:
            problems.append(f"{path.name}: line {place} is not whole and was left out")
    return records


def _each_step_once(records, *keys: str) -> list[dict]:
    """The records without what a run that was resumed did again: of each step (and keys) the last, none beyond."""
    kept: dict[tuple, dict] = {}
    last = -1
    for record in records:
        if record["step"] < last:
            kept = {place: earlier for place, earlier in kept.items() if earlier["step"] < record["step"]}
        last = record["step"]
        kept[(last, *(str(record.get(key)) for key in keys))] = record
    return list(kept.values())


def _best_step(folder: Path, problems: list[str]) -> int | None:
    """The step that was best when the newest checkpoint was written; each best step is written at once."""
    states = [path for path in folder.glob("checkpoint-*/trainer_state.json") if path.parent.name[11:].isdigit()]
    newest = max(states, key=lambda path: int(path.parent.name[11:]), default=None)
    return _read_json(newest, problems).get("best_global_step") if newest else None
