"""Refuses a model folder that is incomplete, or whose tokenizer is another model's, before any weight is loaded.

In: a folder, or tokens and the size of the vocabulary. Out: nothing, or one line that says what to do. Knows nothing
about recipes.
"""

import json
from pathlib import Path

import pyarrow.compute as compute
from datasets import Dataset
from huggingface_hub import try_to_load_from_cache

from sft.core.errors import UserError
from sft.models.weight_files import WeightFiles

# What a fast tokenizer is read from, or built from.
TOKENIZERS = ("tokenizer.json", "tokenizer.model", "spiece.model", "vocab.txt", "vocab.json")


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


def check_tokens(packs: Dataset, vocabulary: int, model: str) -> None:
    """See that the model has a row for every token of the data.

    Raises:
        UserError: the tokenizer gives tokens that the model does not know.
    """
    largest = compute.max(compute.list_flatten(packs.with_format("arrow")[:]["input_ids"])).as_py()
    if largest >= vocabulary:
        raise UserError(
            f"{model}: its tokenizer gives token {largest:,}, and its weights end at {vocabulary - 1:,}: they are not "
            "of one model: download it again"
        )
