"""The files of a run directory: their names, what they hold, and how they are read.

In: a run directory, of a run that ended, is still running or was killed. Out: a `Run`. Loads no model and no torch;
what a killed run left half-written is skipped and reported.

Who writes them: `run_directory` what is known before training, `progress` LOG and RESULT, `chat_eval` ANSWERS,
`score_eval` SCORES and SCORED_ANSWERS, `report_writer` TIME and SAMPLE, `final_model` FINAL.
"""

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields
from pathlib import Path

import yaml

from sft.config.own_keys import DEFAULTS_BEGIN
from sft.core.errors import UserError
from sft.core.files import atomic_write
from sft.core.language import Text, _
from sft.core.text import one_line_message

# The mark of a run directory: the first file that a run writes.
RECIPE = "recipe.yaml"
STACK_DEFAULTS, CARD, ENVIRONMENT = "stack_defaults.json", "dataset_card.json", "environment.json"
PLAN = "plan.json"  # the last file before training: where it is, the run directory is that of the run it plans
LOG, ANSWERS = "log.jsonl", "eval_chat.jsonl"
SCORES, SCORED_ANSWERS = "scores.jsonl", "score_answers.jsonl"
TIME, SAMPLE = "time.json", "sample.json"
RESULT = "result.json"
FINAL = "final"
# What a line of each file must hold to be of use.
LINES: dict[str, dict[str, type]] = {
    LOG: {"step": int},
    ANSWERS: {"step": int, "prompt": str, "answer": str},
    SCORES: {"step": int},
    SCORED_ANSWERS: {"step": int, "kind": str, "question": str, "answer": str},
}


@dataclass
class Answer:
    """What the model said to one prompt at one step; seconds are the whole batch's."""

    step: int
    prompt: str
    answer: str
    seconds: float
    tokens: int
    stop_reason: str  # that of `sft.models.generate.Reply`


@dataclass(frozen=True)
class RunResult:
    """How a run ended, as `result.json` has it; a run that was killed leaves none.

    `status` is a value of `exit_codes.STATUSES`; `step` the last optimizer step done; `final` the folder in the run
    directory that holds the final weights, None where the run is not done; `stopped_early` why it was done before its
    last step, None where it was not; `verdict` what came of it in words (`Verdict.to_dict`); `score` the line of
    `scores.jsonl` about the weights, None where they were not scored; `seconds` (and `times`, by activity) count the
    parts before a resumption too; the memory is the main process's peak.
    """

    status: str
    exit_code: int
    message: str | None
    step: int
    total_steps: int
    final: str | None
    score: dict | None
    seconds: float
    times: dict[str, float]
    peak_memory_gib: float
    trainable_parameters: int
    stopped_early: str | None = None
    verdict: dict | None = None

    @property
    def is_done(self) -> bool:
        """Whether the run went through to its end."""
        return self.status == "done"


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
    plan: dict = field(default_factory=dict)
    result: RunResult | None = None
    log: list[dict] = field(default_factory=list)
    held_out: list[dict] = field(default_factory=list)
    answers: list[dict] = field(default_factory=list)
    scores: list[dict] = field(default_factory=list)
    scored_answers: list[dict] = field(default_factory=list)
    best_step: int | None = None
    has_final: bool = False
    problems: list[Text] = field(default_factory=list)

    @property
    def name(self) -> str:
        """The folder's own name."""
        return self.folder.resolve().name

    @property
    def identity_name(self) -> str | None:
        """The name that the run was to teach."""
        return self.settings.get("identity_name")

    @property
    def last_step(self) -> int:
        """The last step that anything is known of."""
        recorded = (self.log, self.held_out, self.answers, self.scores)
        return max((records[-1]["step"] for records in recorded if records), default=0)

    @property
    def max_steps(self) -> int:
        """Optimizer steps of the whole run; 0 where no file says how many."""
        return int(number((self.log or [{}])[-1].get("max_steps")) or number(self.card.get("total_steps")) or 0)

    @property
    def final_score(self) -> dict | None:
        """The score of what is in `final/`: of the last step, or with `keep_best` of the best; None before step 1."""
        trained = [score for score in self.scores if score["step"]]
        return next((score for score in reversed(trained) if self.best_step in (None, score["step"])), None)

    @property
    def evaluated_steps(self) -> list[int]:
        """The steps at which the model was asked or scored."""
        return sorted({record["step"] for record in (*self.answers, *self.scores)})

    @property
    def stopped_early(self) -> Text | None:
        """Why the run ended before its last step: the name was learned, or the held-out loss improved no more."""
        if not self.has_final or self.last_step >= self.max_steps:
            return None
        wanted = self.settings.get("stop_when_identity")
        reached = number(self.scores[-1].get("identity")) if self.scores else None
        if wanted is not None and reached is not None and reached >= wanted:
            return _(
                "{reached:.0%} of the identity questions are answered with the name, and stop_when_identity asks for "
                "{wanted:.0%}.",
                reached=reached,
                wanted=wanted,
            )
        losses = [(step, loss) for step, loss in points(self.held_out, "eval_loss") if loss is not None]
        patience = self.settings.get("early_stopping_patience")
        if not patience or not losses:
            return None
        best_step, best = min(losses, key=lambda point: point[1])
        later = sum(record["step"] > best_step for record in self.held_out)
        if later < patience:
            return None
        return _(
            "The held-out loss has not been below {best:.4f}, that of step {step:,}, at {later} evaluations in a row "
            "(early_stopping_patience).",
            best=best,
            step=best_step,
            later=later,
        )


def is_run_directory(folder: Path) -> bool:
    """Whether a run has begun there."""
    return (folder / RECIPE).is_file()


def read_run(folder: Path) -> Run:
    """Everything that the files of a run directory hold.

    Raises:
        UserError: the folder is no run directory.
    """
    run = Run(folder)
    run.settings, run.others = _read_recipe(folder)
    run.stack_defaults = _read_json(folder / STACK_DEFAULTS, run.problems)
    run.card = _read_json(folder / CARD, run.problems)
    run.environment = _read_json(folder / ENVIRONMENT, run.problems)
    run.plan = _read_json(folder / PLAN, run.problems)
    run.sample = _read_json(folder / SAMPLE, run.problems)
    run.time = _read_json(folder / TIME, run.problems)
    run.result = _read_result(folder, run.problems)
    records = {name: _read_lines(folder / name, needed, run.problems) for name, needed in LINES.items()}
    run.log = _each_step_once(record for record in records[LOG] if "loss" in record)
    run.held_out = _each_step_once(record for record in records[LOG] if "eval_loss" in record)
    run.scores = _each_step_once(records[SCORES])
    run.answers = _each_step_once(records[ANSWERS], "prompt")
    run.scored_answers = _each_step_once(records[SCORED_ANSWERS], "kind", "question", "has_system")
    run.best_step = _best_step(folder, run.problems) if run.settings.get("keep_best") else None
    run.has_final = any((folder / FINAL / name).is_file() for name in ("adapter_config.json", "config.json"))
    return run


def read_plan(folder: Path) -> dict:
    """What a run wrote in `plan.json`, a `Plan` as JSON; empty where it is not there, or is damaged."""
    return _read_json(folder / PLAN, [])


def read_result(folder: Path) -> RunResult | None:
    """How a run ended; None where it has not ended, was killed, or the file is damaged."""
    return _read_result(folder, [])


def write_result(folder: Path, result: RunResult) -> None:
    """Write `result.json` atomically.

    Raises:
        UserError: it cannot be written.
    """
    write_json(folder / RESULT, asdict(result))


def write_json(path: Path, content: dict, *, indent: int | None = 2) -> None:
    """Write a file of one JSON object atomically.

    Raises:
        UserError: it cannot be written.
    """
    with atomic_write(path) as file:
        # A lone surrogate, which JSON can hold and UTF-8 cannot, becomes a question mark.
        file.write((json.dumps(content, ensure_ascii=False, indent=indent) + "\n").encode("utf-8", "replace"))


def cut_back(folder: Path, step: int) -> None:
    """Remove what a run recorded after a step from which it resumes, and a line that was cut short."""
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
    return _read_json(folder / TIME, [])


def number(value: object) -> float | None:
    """The value as a number; None where it is none, NaN or infinite."""
    if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value):
        return value
    return None


def partly_asked(score: Mapping, kind: str = "identity") -> tuple[int, int] | None:
    """(asked, in all) questions of a kind, identity or ordinary, in a scoring; None where it asked all of them."""
    asked, total = (number(score.get(key)) for key in (f"{kind}_asked", f"{kind}_total"))
    return None if asked is None or total is None or asked >= total else (int(asked), int(total))


def points(records: list[dict], key: str) -> list[tuple[float, float | None]]:
    """(step, value) of each record that has the key; the value is None where it was NaN or infinite."""
    return [(record["step"], number(record[key])) for record in records if record.get(key) is not None]


def _read_recipe(folder: Path) -> tuple[dict, dict]:
    """The keys a person set, and all the others."""
    path = folder / RECIPE
    if not is_run_directory(folder):
        raise UserError(f"{folder}: no run directory: it holds no {RECIPE}; name one, such as work_dirs/demo")
    try:
        text = path.read_text(encoding="utf-8")
        _, _, comments = text.partition(DEFAULTS_BEGIN)
        settings = yaml.safe_load(text)
        others = yaml.safe_load("\n".join(line.removeprefix("# ") for line in comments.splitlines())) or {}
    except (yaml.YAMLError, OSError, ValueError) as problem:
        raise UserError(f"{path}: cannot be read ({one_line_message(problem, 100)}): mend it") from None
    if not isinstance(settings, dict) or not isinstance(others, dict):
        raise UserError(f"{path}: cannot be read: a recipe is a list of `key: value` lines")
    return settings, others


def _read_json(path: Path, problems: list[Text]) -> dict:
    """A file's object; an empty one where the file is not there, or is not whole."""
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_bytes())
    except ValueError:
        content = None
    if not isinstance(content, dict):
        problems.append(_("{file} is damaged and was skipped", file=path.name))
        return {}
    return content


def _read_result(folder: Path, problems: list[Text]) -> RunResult | None:
    """A result; a value that a later version has added is ignored, one that is missing makes it a damaged one."""
    content = _read_json(folder / RESULT, problems)
    if not content:
        return None
    if missing := [entry.name for entry in fields(RunResult) if entry.name not in content and entry.default is MISSING]:
        problems.append(_("{file} lacks {keys} and was skipped", file=RESULT, keys=", ".join(missing)))
        return None
    return RunResult(**{entry.name: content[entry.name] for entry in fields(RunResult) if entry.name in content})


def _read_lines(path: Path, needed: Mapping[str, type], problems: list[Text]) -> list[dict]:
    """The records of a JSONL file; a line that is cut short or lacks what is needed is skipped and reported."""
    records = []
    # Only a newline ends a line: `splitlines` would also break at characters that models write.
    lines = path.read_bytes().split(b"\n") if path.is_file() else []
    for line_number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except ValueError:
            record = None
        if isinstance(record, dict) and all(isinstance(record.get(key), kind) for key, kind in needed.items()):
            records.append(record)
        else:
            problems.append(_("{file}: line {number} is damaged and was skipped", file=path.name, number=line_number))
    return records


def _each_step_once(records: Iterable[dict], *keys: str) -> list[dict]:
    """The records without what a run that was resumed did again: of each step (and keys) the last, none beyond."""
    by_step: dict[tuple, dict] = {}
    last = -1
    for record in records:
        if record["step"] < last:
            by_step = {key: earlier for key, earlier in by_step.items() if earlier["step"] < record["step"]}
        last = record["step"]
        by_step[(last, *(str(record.get(key)) for key in keys))] = record
    return list(by_step.values())


def _best_step(folder: Path, problems: list[Text]) -> int | None:
    """The step that was best when the newest checkpoint was written; each best step is written at once."""
    states = [path for path in folder.glob("checkpoint-*/trainer_state.json") if path.parent.name[11:].isdigit()]
    newest = max(states, key=lambda path: int(path.parent.name[11:]), default=None)
    return _read_json(newest, problems).get("best_global_step") if newest else None
