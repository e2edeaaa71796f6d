"""What decides how a run comes out: every setting a person chose, and of files and models what is in them.

In: a recipe. Out: plain data, of which two runs that come out alike have the same, and what two of them differ in.
Knows nothing about running.
"""

import json
import os
from datetime import date
from pathlib import Path
from typing import Any

from sft.config.recipe import SECRET_KEYS, Recipe
from sft.core.files import content_hash
from sft.core.paths import PATH_KEYS
from sft.data.questions import BUILT_IN, load_questions
from sft.data.readers.row_file import RowFile
from sft.models.adapter import model_fingerprint
from sft.models.hub import require_data_set

MODEL_TEXTS = (".json", ".jinja", ".model")  # of a model folder: configuration, tokenizer, chat template
# Where a run writes, how it begins, how many processes read its data and in what language it is shown: no part of what
# it computes.
NO_INPUTS = {
    "output_dir",
    "resume",
    "resume_anyway",
    "dry_run",
    "card",
    "dataset_num_proc",
    "control_tokens",
    "language",
}


# The day on which a run first began, which it goes on to tell a chat template that asks for the date.
DATE = "chat_template_date"


class Digests:
    """Digests of files and model folders, each made once; what is neither, such as a hub id, stands for itself."""

    def __init__(self) -> None:
        self._digests: dict[str, Any] = {}

    def of(self, name: str) -> str | dict[str, str | None]:
        """The digest of a file; of a model folder, of each file that matters; anything else as it is."""
        if name not in self._digests:
            self._digests[name] = _digest(name)
        return self._digests[name]

    def of_data(self, path: str, columns: dict[str, str] | None) -> str:
        """The digest of a data file, or of a data set, and of the columns it is read by."""
        key = f"{path} {columns}"
        if key not in self._digests:
            require_data_set(path)
            self._digests[key] = RowFile(path, columns).digest()
        return self._digests[key]


def inputs_of(recipe: Recipe, digests: Digests) -> dict[str, Any]:
    """Every setting that was chosen, as JSON has it; where one names a file or a model's folder, its digest.

    Raises:
        UserError: the questions of `score_file` cannot be read.
    """
    chosen = {key: value for key, value in recipe.chosen.items() if key not in SECRET_KEYS | NO_INPUTS}
    chosen["seed"] = recipe.training.seed
    chosen[DATE] = date.today().isoformat()
    if recipe.run.identity_name:
        chosen["score_file"] = recipe.run.score_file or str(BUILT_IN)
        load_questions(chosen["score_file"])  # a run would read it only after its data
    for key in PATH_KEYS:
        if isinstance(chosen.get(key), str) and key not in ("train_file", "eval_file"):
            chosen[key] = digests.of(chosen[key])
    chosen["train_file"] = [[digests.of_data(file.path, file.columns), file.weight] for file in recipe.train_files]
    if recipe.run.eval_file:
        chosen["eval_file"] = digests.of_data(recipe.run.eval_file, recipe.run.columns)
    return json.loads(json.dumps(chosen, default=str))


def changes(earlier: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """What differs between two runs' inputs, a few words a key."""
    keys = [*now, *(key for key in earlier if key not in now)]
    return [_change(key, earlier.get(key), now.get(key)) for key in keys if earlier.get(key) != now.get(key)]


def _change(key: str, earlier: object, now: object) -> str:
    if key in PATH_KEYS and earlier is not None and now is not None:
        return f"{key}: its content has changed"
    shown = ("its default" if value is None else json.dumps(value, ensure_ascii=False) for value in (earlier, now))
    return f"{key}: {' -> '.join(shown)}"


def _digest(name: str) -> str | dict[str, str | None]:
    """SHA-256 of a file; of a model folder, its weights' fingerprint and SHA-256 of every small file."""
    # Not of pathlib: these take any text, a DeepSpeed configuration written out in the recipe too.
    if os.path.isfile(name):
        return content_hash(name)
    if not os.path.isdir(name):
        return name
    texts = sorted(file for file in Path(name).iterdir() if file.suffix in MODEL_TEXTS and file.is_file())
    return {"weights": model_fingerprint(name)} | {file.name: content_hash(file) for file in texts}
