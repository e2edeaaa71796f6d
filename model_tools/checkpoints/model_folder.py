"""Finds what a person names: a model, an adapter and its base model, or a run directory that holds one of them.

In: a path or hub id. Out: folders, and what their JSON files say. Loads no model.
"""

import os
import re
from dataclasses import dataclass
from pathlib import Path

from sft.core.errors import UserError
from sft.core.json_file import read_json

ADAPTER_FILE, CONFIG_FILE = "adapter_config.json", "config.json"
MERGE_RECORD = "merge.json"  # what `merge` leaves beside the weights
AGAIN = "copy or download it again"  # what to do about a damaged file of a model


@dataclass(frozen=True)
class NamedModel:
    """What a person's words came to: a base model, perhaps an adapter for it, and where the tokenizer is."""

    base: str
    adapter: Path | None
    tokenizer: str


def resolve_model(model: str, adapter: str | None = None) -> NamedModel:
    """Find the base model, the adapter and the tokenizer that `model` and `adapter` mean.

    `model` may be a model folder, a hub id, a run directory (its `final/` is meant) or an adapter folder, whose config
    names its base model; `adapter` may be an adapter folder or a run directory.

    Raises:
        UserError: `adapter` holds no adapter, or both name one.
    """
    folder = adapter_folder(Path(model))
    if adapter is not None:
        if folder is not None:
            raise UserError(f"{model}: is an adapter itself: give its base model, or omit --adapter")
        folder = adapter_folder(Path(adapter))
        if folder is None:
            raise UserError(f"{adapter}: holds no adapter: give a run directory, or a folder with {ADAPTER_FILE}")
        base = model
    elif folder is not None:
        base = base_of(folder)
    else:
        return NamedModel(_final_model(model), None, _final_model(model))
    has_tokenizer = (folder / "tokenizer_config.json").is_file()
    return NamedModel(base, folder, str(folder) if has_tokenizer else base)


def require(named: NamedModel) -> None:
    """See that the base model is there, before anything heavy is imported to load it.

    Raises:
        UserError: there is no such folder, it holds no model, or no hub and no cache of one has the model.
    """
    from sft.models.model_folder import require_model

    folder = Path(named.base)
    if folder.is_dir() and not (folder / CONFIG_FILE).is_file():
        raise UserError(f"{named.base}: holds no {CONFIG_FILE}: is it a model folder?")
    require_model(named.base)


def adapter_folder(path: Path) -> Path | None:
    """The folder itself or its `final/`, whichever holds an adapter; None where neither does."""
    return next((folder for folder in (path, path / "final") if (folder / ADAPTER_FILE).is_file()), None)


def display_name(model: str | Path) -> str:
    """What people call a model: of a folder its name, of a run the run's; a hub id stays whole."""
    folder = Path(model)
    if not folder.is_dir():
        return str(model)
    folder = folder.resolve()
    if folder.name == "final":
        return folder.parent.name
    return "/".join(folder.parts[-2:]) if re.fullmatch(r"checkpoint-\d+", folder.name) else folder.name


def base_of(adapter: Path) -> str:
    """The base model that an adapter folder names.

    Raises:
        UserError: it names none, or its config cannot be read.
    """
    base = read_adapter_config(adapter).get("base_model_name_or_path")
    if not base or not isinstance(base, str):
        raise UserError(f"{adapter / ADAPTER_FILE}: names no base model: give the base model, and this as --adapter")
    return base


def read_adapter_config(folder: Path) -> dict:
    """What stands in an adapter folder's adapter_config.json.

    Raises:
        UserError: it cannot be read.
    """
    return read_json(folder / ADAPTER_FILE)


def config_file(model: str) -> Path | None:
    """The config.json of a model folder, or of a hub id whose model was downloaded before; None for any other."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    if os.path.isfile(Path(model) / CONFIG_FILE):  # False for what is too long for a path, too
        return Path(model) / CONFIG_FILE
    try:
        cached = try_to_load_from_cache(model, CONFIG_FILE)
    except HFValidationError:
        return None
    return Path(cached) if isinstance(cached, str) else None


def local_folder(model: str) -> Path:
    """The folder a model lies in; a hub id is downloaded, or found in the hub's cache.

    Raises:
        UserError: there is no such folder, and the hub has no such model or cannot be reached.
    """
    from huggingface_hub import snapshot_download

    from sft.models.hub import downloading
    from sft.models.model_folder import require_model

    folder = Path(_final_model(model))
    if (folder / CONFIG_FILE).is_file():
        return folder
    if folder.is_dir():
        raise UserError(f"{model}: holds no {CONFIG_FILE}: is it a model folder?")
    require_model(model)
    with downloading(model):
        return Path(snapshot_download(model, ignore_patterns=["*.gguf", "*.onnx", "*.h5", "*.msgpack"]))


def _final_model(model: str) -> str:
    """A run directory that holds a whole model means its `final/`."""
    final = Path(model) / "final"
    return str(final) if (final / CONFIG_FILE).is_file() and not (Path(model) / CONFIG_FILE).is_file() else model
