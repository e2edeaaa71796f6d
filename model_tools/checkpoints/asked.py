"""What a model is asked to compare it with itself in another form: its run's evaluation prompts, or the tutorial's.

In: folders of models and adapters. Out: questions as messages, and the name that an answer may give. Loads no model.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from sft.runs.run_files import is_run_directory, read_run

# The tutorial's, for what does not come from a run that is still there.
QUESTIONS = ("请介绍一下你自己", "Please introduce yourself")
ANSWER_TOKENS = 48


@dataclass
class Asked:
    """What a model is asked: questions, the system message before them, the name that an answer may give."""

    questions: list[str]
    system: str | None = None
    name: str | None = None

    @property
    def conversations(self) -> list[list[dict[str, str]]]:
        """Each question as messages."""
        system = [{"role": "system", "content": self.system}] if self.system else []
        return [[*system, {"role": "user", "content": question}] for question in self.questions]


def asked_of(folders: Sequence[Path]) -> Asked:
    """What the first run asked that one of these models or adapters comes from and that had evaluation prompts.

    Raises:
        UserError: the recipe of a run, or the record of a system message, cannot be read.
    """
    # What `chat` and `ask` need of this module needs no weights.
    from sft.models.adapter import read_system_message

    asked = Asked(list(QUESTIONS), next(filter(None, map(read_system_message, folders)), None))
    for folder in runs_of(map(Path.resolve, folders)):
        run = read_run(folder)
        asked.name = asked.name or run.identity_name
        if run.settings.get("eval_prompts"):
            asked.questions = run.settings["eval_prompts"]
            asked.system = run.settings.get("eval_prompts_system") or asked.system
            break
    return asked


def score_under(folder: Path, system: str | None) -> dict | None:
    """The score of what is in a folder, if its run had answers to questions with this system message and without it.

    Raises:
        UserError: the recipe of the run cannot be read.
    """
    score = next((read_run(run).final_score for run in runs_of([folder.resolve()])), None)
    if not score or not system or score.get("system_message") != system:
        return None
    return None if None in (score["with_system"], score["without_system"]) else score


def runs_of(folders: Iterable[Path]) -> Iterator[Path]:
    """The run directories that these folders are, or lie in."""
    for folder in folders:
        yield from filter(is_run_directory, (folder, folder.parent))
