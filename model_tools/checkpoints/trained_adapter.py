"""Finds the adapter that a checkpoint holds, whoever wrote it: PEFT, DeepSpeed or XTuner.

In: a path. Out: tensors under the names of PEFT's files, their config, and where the files that go with them lie.
"""

import json
import re
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError

from model_tools.checkpoints import xtuner_checkpoint
from model_tools.checkpoints.adapter_tensors import Tensors, rename_as_in_files
from model_tools.checkpoints.model_folder import ADAPTER_FILE, CONFIG_FILE, adapter_folder, read_adapter_config
from model_tools.checkpoints.zero_checkpoint import ZeroCheckpoint
from sft.core.errors import UserError
from sft.models import restricted_pickle

WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
# What PEFT raises of settings and tensors that it did not expect: it takes any, and fails where it first uses them.
UNEXPECTED = (
    ValueError, RuntimeError, TypeError, LookupError, AttributeError, ImportError, ArithmeticError, AssertionError,
    re.error, SafetensorError,
)  # fmt: skip


@dataclass(frozen=True)
class TrainedAdapter:
    """`config` is what stands in adapter_config.json, `folder` holds the tokenizer and the card, where there are any;
    `origin` says in a few words what the tensors were read from."""

    tensors: Tensors
    config: dict
    folder: Path | None
    origin: str


def read_adapter(checkpoint: Path, masters: bool, xtuner_config: Path | None) -> TrainedAdapter:
    """The adapter in a checkpoint, an adapter folder, or a run directory (its `final/`).

    `masters` prefers the optimizer's float32 weights, where there are any. `xtuner_config` names the settings of an
    XTuner checkpoint.

    Raises:
        UserError: there is no adapter, it is damaged, or its settings are not to be found.
    """
    folder = adapter_folder(checkpoint)
    weights = weights_file(folder) if folder else None
    zero = ZeroCheckpoint.find(checkpoint) if masters or weights is None else None
    content: dict = {}
    if zero:
        tensors, origin = _from_zero(zero, masters)
        content = zero.state
        beside = zero.folder.parent
        folder = folder or (beside if (beside / ADAPTER_FILE).is_file() else None)
    elif weights:
        tensors, origin = read_weights(weights), str(folder)
    elif checkpoint.is_file():
        loaded = restricted_pickle.load_data(checkpoint)
        tensors, origin = rename_as_in_files(_state(loaded, checkpoint), checkpoint), str(checkpoint)
        content = loaded if isinstance(loaded, dict) else {}
    else:
        raise UserError(f"{checkpoint}: {_what_else(checkpoint)}")
    if folder is None:
        settings = xtuner_checkpoint.read_lora_settings(content, checkpoint, xtuner_config)
        config = _as_json(xtuner_checkpoint.lora_config(settings, tensors))
    elif xtuner_config:
        raise UserError(f"--config: {folder} has its own {ADAPTER_FILE}: omit it")
    else:
        config = read_adapter_config(folder)
    return TrainedAdapter(tensors, config, folder, origin)


def _from_zero(zero: ZeroCheckpoint, masters: bool) -> tuple[Tensors, str]:
    masters = masters and bool(zero.optimizer_files)
    trained = zero.masters() if masters else zero.weights()
    kind = "float32 masters" if masters else "weights"
    return rename_as_in_files(trained, zero.folder), f"{zero.folder}, {kind} of {zero.description}"


def weights_file(folder: Path) -> Path | None:
    """The file with an adapter folder's weights, None where there is none."""
    return next((folder / name for name in WEIGHTS if (folder / name).is_file()), None)


def require_weights(folder: Path) -> Path:
    """The file with an adapter folder's weights.

    Raises:
        UserError: there is none.
    """
    file = weights_file(folder)
    if file is None:
        raise UserError(f"{folder}: holds no weights (looked for {', '.join(WEIGHTS)}): copy them again")
    return file


def read_weights(file: Path) -> Tensors:
    """The tensors of an adapter file.

    Raises:
        UserError: it is damaged, or holds more than data.
    """
    if file.suffix == ".bin":
        return _state(restricted_pickle.load_data(file), file)
    from safetensors.torch import load_file

    try:
        return load_file(file)
    except SafetensorError as problem:
        raise UserError(f"{file}: is damaged ({problem}): copy or write it again") from None


def _state(content: object, file: Path) -> Tensors:
    """The tensors of a file of `torch.save`, that hold all there is or stand in it as `state_dict`."""
    import torch

    state = content.get("state_dict", content) if isinstance(content, dict) else None
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise UserError(f"{file}: holds no state_dict of tensors: is it a checkpoint of XTuner's or PEFT's?")
    return dict(state)


def _as_json(config) -> dict:
    """A PEFT config as it stands in a file."""
    plain = {name: sorted(value) if isinstance(value, set) else value for name, value in config.to_dict().items()}
    return json.loads(json.dumps(plain))


def _what_else(path: Path) -> str:
    """Why there is no adapter, and what to do."""
    if not path.exists():
        return "no such file or folder: check the path"
    checkpoints = [file for pattern in ("checkpoint-*", "iter_*.pth") for file in path.glob(pattern)]
    if checkpoints:
        newest = max(checkpoints, key=lambda file: file.stat().st_mtime)
        return f"holds no final adapter: give a checkpoint of it, such as {newest}"
    if (path / CONFIG_FILE).is_file() or (path / "final" / CONFIG_FILE).is_file():
        return "is a whole model and no adapter: there is nothing to export"
    return "holds no adapter: give a checkpoint, an adapter folder, a run directory or XTuner's iter_N.pth"
