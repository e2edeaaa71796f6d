"""Refuses a model that is not to be had, is incomplete, or whose tokenizer is another model's, before it is loaded.

In: a folder or hub id, or tokens and the size of the vocabulary. Out: nothing, or one line that says what to do. It
imports no torch and knows nothing about recipes.
"""

import json
from pathlib import Path

from sft.core.errors import UserError
from sft.models import hub
from sft.models.weight_files import WeightFiles

# What a fast tokenizer is read from, or built from.
TOKENIZERS = ("tokenizer.json", "tokenizer.model", "spiece.model", "vocab.txt", "vocab.json")


def require_model(model: str, revision: str = "main", *, with_weights: bool = True) -> None:
    """See that the hub, or else its cache, has what is no folder here; a folder is left to whoever loads it.

    Raises:
        UserError: it has not, or cannot be reached; says how to get the model.
    """
    if not Path(model).is_dir():
        hub.require(model, revision, "model", lambda: lack_of_cache(model, revision, with_weights=with_weights))


def check_model_folder(path: str | Path, *, with_weights: bool = True) -> None:
    """Look through a local model folder: configuration, tokenizer and, unless told not to, every shard there and whole.

    What is no folder here is taken for a hub's id and left to whoever loads it.

    Raises:
        UserError: something is missing, cut short or not readable; names the file.
    """
    folder = Path(path)
    if folder.is_file():
        raise UserError(f"model_name_or_path: {folder}: is a file: name the folder it is in")
    if not folder.is_dir():
        return
    config = folder / "config.json"
    if not config.is_file():
        if (folder / "adapter_config.json").is_file():
            merge = f"python -m model_tools merge BASE {folder} MERGED"
            raise UserError(f"model_name_or_path: {folder}: is an adapter, and a run starts from a model: {merge}")
        raise UserError(f"model_name_or_path: {folder}: holds no config.json: is it a model folder?")
    try:
        read = json.loads(config.read_text(encoding="utf-8"))
    except ValueError as problem:
        raise UserError(f"{config}: not JSON ({problem}): download it again") from None
    if not isinstance(read, dict) or "model_type" not in read:
        raise UserError(f"{config}: has no model_type, so nobody can tell what model it is: download it again")
    if not any((folder / name).is_file() for name in TOKENIZERS):
        raise UserError(f"{folder}: holds no tokenizer (looked for {', '.join(TOKENIZERS)}): download it again")
    if with_weights:
        WeightFiles(folder)


def lack_of_cache(model: str, revision: str, *, with_weights: bool = True) -> str | None:
    """What the hub's cache lacks of a model, as a sentence; None where it has it whole."""
    from huggingface_hub import try_to_load_from_cache

    config = try_to_load_from_cache(model, "config.json", revision=revision)
    if not isinstance(config, str):
        return "it is not in the hub's cache"
    folder = Path(config).parent
    try:
        check_model_folder(folder, with_weights=with_weights)
    except UserError as problem:
        lack = str(problem).removeprefix(f"{folder}: ").replace(f"{folder}/", "").rpartition(": ")[0]
        return f"the hub's cache has it only in part ({lack})"
    return None


def check_tokens(largest: int, vocabulary: int, model: str) -> None:
    """See that the model has a row for the largest token of the data.

    Raises:
        UserError: the tokenizer gives tokens that the model does not know.
    """
    if largest >= vocabulary:
        raise UserError(
            f"{model}: its tokenizer gives token {largest:,}, and its weights end at {vocabulary - 1:,}: they are not "
            "of one model: download it again"
        )
