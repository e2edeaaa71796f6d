"""Remembers beside an adapter which base model it was trained on, so that no other is taken for it.

In: a base model. Out: `base_model.json` with its name and the fingerprint of its weights.
"""

import json
from pathlib import Path

from transformers.utils import cached_file

from sft.core.errors import UserError
from sft.models.weight_files import WeightFiles

RECORD = "base_model.json"


def fingerprint(model: str, revision: str = "main") -> str | None:
    """The fingerprint of a model folder's or hub id's weights; None where they lie in no file known here."""
    config = cached_file(model, "config.json", revision=revision, _raise_exceptions_for_missing_entries=False)
    try:
        return WeightFiles(Path(config).parent).fingerprint() if config else None
    except UserError:
        return None


def write_fingerprint(folder: str | Path, model: str, found: str | None) -> None:
    """Write the record into an adapter folder."""
    content = json.dumps({"name": model, "fingerprint": found}, ensure_ascii=False, indent=2)
    (Path(folder) / RECORD).write_text(content + "\n", encoding="utf-8")


def read_fingerprint(folder: Path) -> str | None:
    """The fingerprint that an adapter folder remembers, if any.

    Raises:
        UserError: the record cannot be read.
    """
    path = folder / RECORD
    if not path.is_file():
        return None
    try:
        return json.loads(path.read_text(encoding="utf-8"))["fingerprint"]
    except (ValueError, KeyError, TypeError, OSError) as problem:
        raise UserError(f"{path}: cannot be read ({problem}): write the adapter again, or remove this file") from None
