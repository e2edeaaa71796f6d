"""The keys of our own in a recipe, as a dataclass that a parser builds its arguments from.

Imports nothing, so that the keys are known before the stack is there. Knows nothing about which values make sense.
"""

from dataclasses import dataclass, field
from typing import Any

# The line of a run's recipe.yaml that ends the keys that were chosen; below it stand all defaults, as comments.
DEFAULTS_BEGIN = "# Everything else stood at its default:"


@dataclass
class OwnKeys:
    """The keys of our own: what TRL, Transformers and PEFT have no field for."""

    train_file: list[dict] | str | None = field(
        default=None,
        metadata={
            "help": "Training file: JSON lines or array, CSV, Parquet, data set folder or hub id; conversations, or "
            "questions with their answers. Or several, each {path, weight, columns}: 1 takes every row once, 0.3 a "
            "random three tenths, 2 every row twice."
        },
    )
    eval_file: str | None = field(
        default=None, metadata={"help": "Data file that is not trained on, for the held-out loss eval_loss."}
    )
    columns: dict[str, str] | None = field(
        default=None,
        metadata={
            "help": "Which column holds what, where a data file names them otherwise and sets no columns itself, such "
            "as {question: 用户, answer: 客服}; also context, system, history, messages, tools."
        },
    )
    chat_template_kwargs: dict[str, Any] | None = field(
        default=None,
        metadata={
            "help": "What the chat template is given beside the messages, in training and whenever the model is asked, "
            "such as {enable_thinking: false}."
        },
    )
    loss_on: str = field(
        default="answers",
        metadata={
            "help": "Where loss falls: on every answer, on the last answer of a row, or on every token.",
            "choices": ["answers", "last_answer", "everything"],
        },
    )
    split_turns: bool = field(
        default=True,
        metadata={
            "help": "Train each answer of a row as a sample of its own where the chat template shows earlier answers "
            "otherwise than the last (without their thinking, for example), so that it is trained as it is asked for."
        },
    )
    truncation: str = field(
        default="error",
        metadata={
            "help": "What happens to a sample longer than max_length: stop (error), drop it, or truncate its end "
            "(keep_start). Dropped and truncated samples and tokens are counted and shown.",
            "choices": ["error", "drop", "keep_start"],
        },
    )
    control_tokens: str = field(
        default="warn",
        metadata={
            "help": "What happens where a row's own text holds a control token of the model, such as <|im_end|>, which "
            "it then becomes: say so, with the count and the first place, or stop.",
            "choices": ["warn", "refuse"],
        },
    )
    eval_prompts: list[str] = field(
        default_factory=list, metadata={"help": "Questions asked before, during and after training."}
    )
    eval_prompts_steps: int = field(
        default=0, metadata={"help": "Ask the evaluation prompts every so many steps; 0 asks before and after only."}
    )
    eval_prompts_system: str | None = field(
        default=None,
        metadata={
            "help": "System message before evaluation prompts and scored questions, '' for none; by default the one "
            "that every training row begins with."
        },
    )
    eval_prompts_generation: dict[str, Any] | None = field(
        default=None,
        metadata={"help": "Fields of Transformers' GenerationConfig for the answers, such as {max_new_tokens: 100}."},
    )
    identity_name: str | None = field(
        default=None, metadata={"help": "The name the model is to learn; with it, every evaluation is scored."}
    )
    identity_old_names: list[str] = field(
        default_factory=list, metadata={"help": "Names it may still give itself, besides those of well-known models."}
    )
    score_file: str | None = field(
        default=None,
        metadata={"help": "YAML file of identity and ordinary questions and texts; the default is the repository's."},
    )
    score_seconds: float = field(
        default=60.0,
        metadata={
            "help": "What one scoring may take, in seconds; if not everything was asked by then, every share says so."
        },
    )
    stop_when_identity: float | None = field(
        default=None,
        metadata={"help": "End training when this share of the identity questions is answered with the name."},
    )
    stop_patience: int = field(
        default=1, metadata={"help": "At how many evaluations in a row stop_when_identity must be reached."}
    )
    early_stopping_patience: int | None = field(
        default=None,
        metadata={
            "help": "End training when the held-out loss has not improved at so many evaluations in a row; with "
            "load_best_model_at_end: true it ends with the best."
        },
    )
    keep_best: str | None = field(
        default=None,
        metadata={
            "help": "Keep the best checkpoint and end with it: by identity, or by the balance of identity and "
            "retention.",
            "choices": ["identity", "balance"],
        },
    )
    resume: str = field(
        default="auto",
        metadata={
            "help": "What to do where the run directory holds an unfinished run: resume from its newest complete "
            "checkpoint (auto), move it aside and start anew (never), or resume from the checkpoint at a path."
        },
    )
    resume_anyway: bool = field(
        default=False, metadata={"help": "Resume from a checkpoint even if settings or data have changed since."}
    )
    dry_run: bool = field(
        default=False, metadata={"help": "Check everything, print the plan and end; no weights are loaded."}
    )
    card: float | None = field(
        default=None,
        metadata={"help": "With dry_run: plan for a GPU of so many GB that is not in this machine, such as 24."},
    )
    save_every_minutes: float = field(
        default=0.0, metadata={"help": "Save a checkpoint after so many minutes without one too; 0 does not."}
    )
    on_bad_step: str = field(
        default="stop",
        metadata={
            "help": "What to do when a step shows that training is broken, such as a NaN loss.",
            "choices": ["stop", "warn"],
        },
    )

    language: str | None = field(
        default=None,
        metadata={
            "help": "Language of warnings, the verdict and the report: zh or en; by default that of the locale, both "
            "where it names neither.",
            "choices": ["zh", "en"],
        },
    )

    def __post_init__(self):
        # What `resume_from_checkpoint` of Transformers takes.
        self.resume = {"true": "auto", "false": "never"}.get(self.resume.lower(), self.resume)
        chosen = self.eval_prompts_generation or {}
        self.eval_prompts_generation = {"max_new_tokens": 100, "do_sample": False} | chosen


@dataclass
class TrainFile:
    """One file to train on, and how often its rows are taken."""

    path: str
    weight: float = 1.0
    columns: dict[str, str] | None = None


def train_files(value: str | list[dict], columns: dict[str, str] | None = None) -> list[TrainFile]:
    """The files that `train_file` names, once `settings_check` has passed it; `columns` is for those that name none."""
    if isinstance(value, str):
        return [TrainFile(value, columns=columns)]
    return [
        TrainFile(str(entry["path"]), float(entry.get("weight", 1.0)), entry.get("columns", columns)) for entry in value
    ]
