"""Finds the files that a recipe names: from the working directory, or else in the repository.

In: settings. Out: the same with paths that exist, where there is such a file. Knows nothing about what the files hold.
"""

import os
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[2]
PATH_KEYS = ("train_file", "eval_file", "score_file", "model_name_or_path", "deepspeed", "chat_template_path")


def resolve_paths(chosen: dict[str, Any]) -> None:
    """Replace each path that is missing from the working directory by the same in the repository, if it is there."""
    for key in PATH_KEYS:
        if isinstance(chosen.get(key), str):
            chosen[key] = _resolved(chosen[key])
    if isinstance(chosen.get("train_file"), list):
        chosen["train_file"] = [
            entry | {"path": _resolved(str(entry["path"]))} if isinstance(entry, dict) and "path" in entry else entry
            for entry in chosen["train_file"]
        ]


def _resolved(path: str) -> str:
    # Not pathlib: these functions take any text, such as a DeepSpeed configuration written out in the recipe.
    in_repository = os.path.join(REPOSITORY, path)
    return in_repository if path and not os.path.exists(path) and os.path.exists(in_repository) else path
