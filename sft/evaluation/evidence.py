"""Gathers what is known of one run, or of one that is only planned, for a diagnosis: what was meant, taught and seen.

In: a recipe, its training files, its tokenizer, a run's own files. Out: `Evidence`; what a cause makes of it is a
`Finding`. Judges nothing but whether the name was learned; loads no model.
"""

import dataclasses
import re
import shlex
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from transformers import GenerationConfig, PreTrainedConfig, PreTrainedTokenizerBase

from sft.config.load import read_recorded_recipe
from sft.config.own_keys import TrainFile
from sft.config.recipe import Recipe
from sft.core.errors import UserError
from sft.core.paths import REPOSITORY
from sft.core.text import one_line_message
from sft.data.dataset import load_identity_rows
from sft.data.dataset_card import DatasetCard
from sft.data.identity import OLD_NAMES, gives_name, mentions
from sft.data.identity_files import read_identity_rows
from sft.data.identity_rows import IdentityRows, others
from sft.data.questions import system_to_ask_with
from sft.models.chat_template import ChatTemplate
from sft.runs.run_files import RECIPE, Run
from sft.runs.verdict import LEARNED

# Nearly all rows: what they carry is what the model was trained with.
NEARLY_ALL = 0.95
# A run of fewer steps shows nothing about its other settings.
FEW_STEPS = 30
# Examples that a finding shows.
SHOWN = 3
NAMED = re.compile(r"(?:\b(?:named|called)\s+|名叫|名为|你叫)([\w-]+)")


@dataclass
class Evidence:
    """What is known; where something is None or empty, no cause is looked for in it.

    `tokenizer` is the one that was, or will be, trained with; `chat_tokenizer` and `chat_folder` are those of the model
    that is asked. A plan has no `run` yet.
    """

    recipe: Recipe | None = None
    name: str | None = None
    rows: IdentityRows | None = None
    files: list[TrainFile] = field(default_factory=list)
    card: dict = field(default_factory=dict)
    tokenizer: PreTrainedTokenizerBase | None = None
    run: Run | None = None
    chat_folder: Path | None = None
    chat_tokenizer: PreTrainedTokenizerBase | None = None

    @property
    def steps(self) -> int | None:
        """Optimizer steps that were done, or that are planned where none is known to be done; None if nobody knows."""
        return (self.run.last_step if self.run else 0) or self.card.get("total_steps")

    @property
    def epochs(self) -> float | None:
        """Passes over the rows in these steps; None if nobody knows."""
        per_epoch = self.card.get("steps_per_epoch")
        return self.steps / per_epoch if self.steps and per_epoch else None

    @property
    def old_names(self) -> list[str]:
        """Names that are not the wanted one."""
        return others([*OLD_NAMES, *(self.recipe.run.identity_old_names if self.recipe else ())], self.name)

    @property
    def score(self) -> dict:
        """The score of what the run kept; empty where none was taken."""
        return (self.run.final_score if self.run else None) or {}

    @property
    def identity_share(self) -> float | None:
        """Share of the identity questions that the model answered with the name in the end; None where nobody asked."""
        if not self.name or self.score:
            return self.score.get("identity")
        given = [gives_name(answer["answer"], self.name, answer["prompt"]) for answer in self.last_answers]
        # An evaluation prompt need not be about identity: only where all give the name is it known to be learned.
        return 1.0 if given and all(given) else None

    @property
    def is_learned(self) -> bool:
        """Whether the run itself saw that the name was learned."""
        return (self.identity_share or 0.0) >= LEARNED

    @property
    def last_answers(self) -> list[dict]:
        """What the evaluation prompts were answered with last."""
        answers = self.run.answers if self.run else []
        return [answer for answer in answers if answer["step"] == answers[-1]["step"]]

    @cached_property
    def default_system(self) -> str | None:
        """The system message that the chat template writes by itself, if any."""
        return default_system(self.tokenizer) if self.tokenizer else None

    @property
    def default_names(self) -> list[str]:
        """Other names than the wanted one in the template's own system message."""
        text = self.default_system or ""
        named = others(NAMED.findall(text), self.name)
        return list(dict.fromkeys([*(old for old in self.old_names if mentions(text, old)), *named]))

    @property
    def asked_system(self) -> str | None:
        """The system message that the model was, or will be, asked with: as `RecipeTrainer.asked_system`."""
        chosen = self.recipe.run.eval_prompts_system if self.recipe else None
        return system_to_ask_with(chosen, self.rows.common_system if self.rows else None)

    @property
    def rows_have_their_own_system(self) -> bool:
        """Whether nearly all rows bring a system message of their own."""
        return self.rows is not None and self.rows.rows_with_system >= NEARLY_ALL * self.rows.rows

    @property
    def train(self) -> str:
        """The command that trains by this recipe."""
        return f"deepspeed --quiet train_sft.py {shlex.quote(str(self.recipe.path))}"


def evidence_of_plan(recipe: Recipe, tokenizer: PreTrainedTokenizerBase, card: DatasetCard) -> Evidence:
    """What is known before the first step.

    Raises:
        UserError: a training file cannot be read.
    """
    rows = load_identity_rows(recipe, tokenizer)
    return Evidence(recipe, rows.name, rows, recipe.train_files, card.to_dict(), tokenizer)


def evidence_of_run(run: Run) -> Evidence:
    """What a run's own files and its training files show; training files that are gone are skipped.

    Raises:
        UserError: the recipe or a training file cannot be read.
    """
    recipe = recorded_recipe(run)
    evidence = Evidence(recipe, card=run.card, run=run)
    settings, paths = recipe.run, [(file, found_path(file.path)) for file in recipe.train_files]
    evidence.name = settings.identity_name
    evidence.files = [dataclasses.replace(file, path=str(path)) for file, path in paths if path]
    if evidence.files:
        evidence.rows = read_identity_rows(evidence.files, evidence.name, settings.identity_old_names)
        evidence.name = evidence.rows.name
    return evidence


def recorded_recipe(run: Run) -> Recipe:
    """The recipe of a run, whether its files and its hardware are here or not.

    Raises:
        UserError: it cannot be read.
    """
    return read_recorded_recipe(run.folder / RECIPE, run.settings)


def found_path(path: str) -> Path | None:
    """A recipe's path, from the working directory or the repository; None where it leads nowhere."""
    return next((place for place in (Path(path), REPOSITORY / path) if place.exists()), None)


def default_system(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """The system message that a chat template writes by itself where there is none; None where it writes none."""
    question, own = {"role": "user", "content": "<Q>"}, {"role": "system", "content": "<S>"}
    bare, full = (rendered(tokenizer, messages).partition("<Q>")[0] for messages in ([question], [own, question]))
    before, own_text, after = full.partition("<S>")
    if not own_text or not bare.startswith(before) or not bare.endswith(after):
        return None
    return bare[len(before) : len(bare) - len(after)].strip() or None


def rendered(tokenizer: PreTrainedTokenizerBase, messages: list[dict]) -> str:
    """The text a model is asked with; a refusal of the template is a text as well, to be compared."""
    try:
        return ChatTemplate(tokenizer).prompt(messages)
    except UserError as refusal:
        return f"refused: {str(refusal).removeprefix(str(tokenizer.name_or_path))}"


def generation_settings(folder: Path) -> GenerationConfig | None:
    """How a folder's model answers where nobody says otherwise; None where the folder does not say.

    Raises:
        UserError: its file cannot be read.
    """
    try:
        if (folder / "generation_config.json").is_file():
            return GenerationConfig.from_pretrained(folder)
        if (folder / "config.json").is_file():
            config, _ = PreTrainedConfig.get_config_dict(folder)
            return GenerationConfig(eos_token_id=config.get("eos_token_id"))
    except (OSError, ValueError) as problem:
        reason = one_line_message(problem, 160)
        raise UserError(f"{folder}: its generation_config.json cannot be read ({reason}): copy it again") from None
    return None
