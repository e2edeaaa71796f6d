"""Where the files are that a recipe names: found from the working directory, or else in the repository."""

import os
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[2]
PATH_KEYS = ("train_file", "eval_file", "score_file", "model_name_or_path", "deepspeed", "chat_template_path")


def resolve_paths(chosen: dict[str, Any]) -> None:
    """A path that is not found from the working directory is looked for in the repository."""
    for key in PATH_KEYS:
        if isinstance(chosen.get(key), str):
            chosen[key] = _found(chosen[key])
    if isinstance(chosen.get("train_file"), list):
        chosen["train_file"] = [
            entry | {"path": _found(str(entry["path"]))} if isinstance(entry, dict) and "path" in entry else entry
            for entry in chosen["train_file"]
        ]


def _found(path: str) -> str:
    # Not of pathlib: these take any text, a DeepSpeed configuration written out in the recipe too.
    in_repository = os.path.join(REPOSITORY, path)
    return in_repository if path and not os.path.exists(path) and os.path.exists(in_repository) else path
