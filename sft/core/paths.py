"""Finds the files that a recipe names: from the working directory, or else in the repository.

In: settings. Out: the same with paths that exist, where there is such a file. Knows nothing about what the files hold.
"""

import os
import re
from pathlib import Path
from typing import Any

HUB_ID = re.compile(r"[\w.-]+/[\w.-]+(?::[\w.-]+){0,2}")
FILE_NAME = re.compile(r"\.(?:jsonl?|ndjson|csv|tsv|txt|parquet|gz|zst)$", re.IGNORECASE)
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


def is_data(name: str) -> bool:
    """Whether there is such a file or folder, or the name is a data set's on the hub, perhaps with `:SPLIT`."""
    return os.path.isfile(name) or is_data_set(name)


def is_data_set(name: str) -> bool:
    """Whether the name is that of a folder, or of a data set on the hub: no file's, and of no folder that is there."""
    if os.path.exists(name):
        return os.path.isdir(name)
    path = name.partition(":")[0]
    if os.path.isdir(path):
        return True
    is_a_path = name.startswith((".", "~")) or os.path.isdir(name.partition("/")[0]) or bool(FILE_NAME.search(name))
    return bool(HUB_ID.fullmatch(name)) and not is_a_path


def _resolved(path: str) -> str:
    # Not pathlib: these functions take any text, such as a DeepSpeed configuration written out in the recipe.
    in_repository = os.path.join(REPOSITORY, path)
    return in_repository if path and not os.path.exists(path) and os.path.exists(in_repository) else path
