"""What a LoRA adapter says of itself beside its weights: how strongly it counts, and the base model it was trained on.

The second is `base_model.json` in the adapter's folder: the base model's name and the fingerprint of its weights, so
that no other model is taken for it.
"""

import json
from pathlib import Path

from sft.core.errors import UserError
from sft.models.weight_files import WeightFiles

BASE_RECORD = "base_model.json"
# In the folder of an adapter or model: the system message that every conversation it was trained on began with.
SYSTEM_MESSAGE = "system_message.txt"


def lora_scale(alpha: float, rank: int, *, is_rslora: bool) -> float:
    """What LoRA multiplies its output with: alpha/r (arXiv:2106.09685), or alpha/√r (rsLoRA, arXiv:2312.03732)."""
    return alpha / (rank**0.5 if is_rslora else rank)


def scale_line(alpha: float, rank: int, *, is_rslora: bool) -> str:
    """Such as "r 64, alpha 16: scale alpha/r = 0.25"."""
    root = "√" if is_rslora else ""
    return f"r {rank}, alpha {alpha}: scale alpha/{root}r = {lora_scale(alpha, rank, is_rslora=is_rslora):g}"


def model_fingerprint(model: str, revision: str = "main") -> str | None:
    """The fingerprint of a model folder's or hub id's weights; None where they are in no file known here."""
    from transformers.utils import cached_file  # seconds that reading a record need not wait for

    config = cached_file(model, "config.json", revision=revision, _raise_exceptions_for_missing_entries=False)
    try:
        return WeightFiles(Path(config).parent).fingerprint() if config else None
    except UserError:
        return None


def write_fingerprint(folder: str | Path, model: str, fingerprint: str | None) -> None:
    """Write the record of the base model into an adapter folder."""
    content = json.dumps({"name": model, "fingerprint": fingerprint}, ensure_ascii=False, indent=2)
    (Path(folder) / BASE_RECORD).write_text(content + "\n", encoding="utf-8")


def read_fingerprint(folder: Path) -> str | None:
    """The base model's fingerprint that an adapter folder remembers, if any.

    Raises:
        UserError: the record cannot be read.
    """
    path = folder / BASE_RECORD
    if not path.is_file():
        return None
    try:
        fingerprint = json.loads(path.read_text(encoding="utf-8"))["fingerprint"]
        if not isinstance(fingerprint, str | None):
            raise TypeError("its fingerprint is no text")
        return fingerprint
    except (ValueError, KeyError, TypeError, OSError) as problem:
        raise UserError(f"{path}: cannot be read ({problem}): write the adapter again, or remove this file") from None


def write_system_message(folder: str | Path, message: str) -> None:
    """Write the system message that every conversation of the training began with into an adapter or model folder."""
    (Path(folder) / SYSTEM_MESSAGE).write_bytes(message.encode("utf-8"))


def read_system_message(folder: Path) -> str | None:
    """The system message that the adapter or model in a folder was trained with, if every row had the same.

    Raises:
        UserError: the file is there and cannot be read.
    """
    path = folder / SYSTEM_MESSAGE
    if not path.is_file():
        return None
    try:
        return path.read_bytes().decode("utf-8")
    except (OSError, UnicodeDecodeError) as problem:
        raise UserError(f"{path}: cannot be read ({problem}): write the message again, or remove this file") from None
