"""Merge adapters into their base model and write a whole model that needs no PEFT, as `xtuner convert merge` did.

In: a base model and one adapter or several. Out: a new folder. Streams: no more than one layer is in memory at once.
"""

import argparse
import math
import os
from pathlib import Path

from model_tools.checkpoints.model_folder import AGAIN, CONFIG_FILE
from sft.core.errors import UserError
from sft.core.files import atomic_folder, refuse_full_disk, refuse_occupied
from sft.core.imports import importing
from sft.core.json_file import read_json
from sft.core.text import one_line_message

LOADS = "PyTorch and Transformers"

DTYPES = {"auto": None, "bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}
SPARE_BYTES = 64 << 20  # for tokenizer, config and what the file system needs


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the verb's arguments to its parser."""
    parser.add_argument("base", help="the base model's folder or hub id")
    parser.add_argument(
        "adapters",
        nargs="+",
        metavar="adapter[:weight]",
        help="adapter folder or run directory; several are added up, each as strongly as its weight says (default 1)",
    )
    parser.add_argument("out", type=Path, help="folder to write; must not exist or be empty")
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto", help="where layers are merged")
    parser.add_argument(
        "--as",
        dest="as_type",
        choices=["llama", "internlm2"],
        help="layout to write an InternLM2 in: Llama's, which every engine loads (default), or the published one",
    )
    add_writing_arguments(parser)


def add_writing_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that say how a model is written."""
    parser.add_argument("--max-shard-size", default="2GB", metavar="SIZE", help="largest weight file (default 2GB)")
    parser.add_argument("--dtype", choices=DTYPES, default="auto", help="precision to write (default: the base's own)")
    parser.add_argument(
        "--verify",
        action=argparse.BooleanOptionalAction,
        help="ask base with adapter and the merged model the same, and compare (default: if the memory allows)",
    )


def run(arguments: argparse.Namespace) -> int:
    """Run the verb; returns 1 where verifying finds another model, else 0."""
    from model_tools.checkpoints.model_folder import adapter_folder, local_folder

    out = arguments.out
    refuse_occupied(out)
    _refuse_a_shard_size(arguments.max_shard_size)
    _refuse_a_device(arguments.device)
    base = local_folder(arguments.base)
    folders: list[tuple[str, Path, float]] = []
    for named in arguments.adapters:
        path, weight = _path_and_weight(named)
        found = adapter_folder(Path(path))
        if found is None:
            raise UserError(f"{path}: holds no adapter: give a run directory or an adapter folder")
        folders.append((path, found, weight))

    with importing():
        from model_tools.merging import verify
        from model_tools.merging.adapter import Adapter

    adapters: list[Adapter] = []
    for path, folder, weight in folders:
        if any(folder.resolve() == each.folder.resolve() for each in adapters):
            raise UserError(f"{path}: is given twice: give it once, with a weight, such as {path}:2")
        adapters.append(Adapter(folder, weight))
        refuse_another_base(arguments.base, base, folder)
    needed = 0 if arguments.verify is False else verify.bytes_needed(base)
    if arguments.verify and needed > verify.bytes_free():
        raise UserError(f"--verify: needs {needed / 2**30:.1f} GiB of memory, more than is free: use --no-verify")
    merge(arguments.base, base, adapters, out, arguments)
    if arguments.verify is False:
        return 0
    if needed > (free := verify.bytes_free()):
        print(f"not verified: that needs {needed / 2**30:.1f} GiB of memory, and {free / 2**30:.1f} are free")
        return 0
    return verify.report_difference(base, adapters, out)


def merge(name: str, base: Path, adapters: list, out: Path, arguments: argparse.Namespace) -> None:
    """Write the merged model to `out`; until it is complete, what there is of it has another name and does not load.

    Raises:
        UserError: the adapters do not fit the base, the base is quantised, or the disk is too small.
    """
    import torch

    from model_tools.merging import llama_folder, merged_folder
    from model_tools.merging.merged_tokenizer import check_tokenizers
    from model_tools.merging.merged_weights import MergedWeights
    from model_tools.merging.tuned_modules import without_weights
    from sft.models.adapter import read_system_message
    from sft.models.generate import read_settings
    from sft.models.weight_files import WeightFiles

    config = _read_config(base, arguments.as_type)
    layout = (arguments.as_type or "llama") if config.model_type == "internlm2" else None
    as_llama = layout == "llama"
    device = arguments.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = DTYPES[arguments.dtype]
    try:
        model = without_weights(config, adapters)
    except UserError:
        raise
    except Exception as problem:  # whatever its values make of the model's code
        reason = one_line_message(problem, 200)
        raise UserError(f"{base}: no model can be built by its config.json ({reason}): {AGAIN}") from None
    read_settings(base)
    check_tokenizers(base, adapters, getattr(config.get_text_config(), "vocab_size", None))
    weights = MergedWeights(
        model,
        WeightFiles(base),
        adapters,
        getattr(torch, dtype) if dtype else None,
        as_parameters=as_llama,
    )
    read_system_message(adapters[0].folder if adapters else base)  # the card says it, when the weights are written
    refuse_full_disk(out, sum(tensor.nbytes for tensor in weights.shapes.values()) + SPARE_BYTES)
    with atomic_folder(out) as folder:
        weights.write(folder, arguments.max_shard_size, device)
        merged_folder.copy_files(base, adapters, folder)
        if as_llama:
            llama_folder.make_plain_llama(base, folder)
        merged_folder.write_card(name, adapters, folder, out, dtype, bool(weights.untied), layout)
        merged_folder.write_config(base, folder, dtype, bool(weights.untied), as_llama)
    changed = sum(len(unit.modules) for unit in weights.units)
    size = sum(file.stat().st_size for file in out.iterdir())
    names = ", under Llama's names" if as_llama else ""
    print(f"{out}: {changed} modules of {len(weights.shapes)} tensors merged{names}, {size / 2**20:,.0f} MiB")


def refuse_another_base(name: str, base: Path, adapter: Path) -> None:
    """Stop where an adapter was made for another base: by its weights where they are remembered, else by name.

    Raises:
        UserError: says which base it was made for, or that it names none.
    """
    from model_tools.checkpoints.model_folder import ADAPTER_FILE, read_adapter_config
    from sft.models.adapter import model_fingerprint, read_fingerprint

    remembered, own = read_fingerprint(adapter), read_adapter_config(adapter).get("base_model_name_or_path")
    if remembered:
        if remembered != model_fingerprint(str(base)):
            raise UserError(
                f"{adapter}: was trained on other weights than those of {name}: give {own or 'its own base'}"
            )
        return
    advice = f"put this name into its {ADAPTER_FILE} as base_model_name_or_path"
    if not own or not isinstance(own, str):
        raise UserError(f"{adapter}: does not say what its base is: if it is {name}, {advice}")
    if _plain(own) not in {_plain(name), _plain(str(base.resolve()))}:
        gone = ", which is no folder here any more," if Path(own).is_absolute() and not os.path.exists(own) else ""
        raise UserError(
            f"{adapter}: says that its base is {own}{gone or ','} not {name}: if they are the same model, {advice}"
        )


def _plain(name: str) -> str:
    """The last part of a path or id, as people and hubs write it in one way or another; a cache's folder by its model.

    ModelScope's cache writes a dot as `___`. What a run calls `final` has the run's name before it.
    """
    parts = [part for part in Path(name).parts if part != "/"]
    if cached := [part for part in parts if part.startswith("models--")]:
        last = cached[0].rpartition("--")[2]
    else:
        last = "".join(parts[-2:] if parts[-1:] == ["final"] else parts[-1:])
    return "".join(letter for letter in last.lower() if letter.isalnum())


def _path_and_weight(named: str) -> tuple[str, float]:
    path, colon, weight = named.rpartition(":")
    if not colon or Path(named).exists():
        return named, 1.0
    try:
        number = float(weight)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise UserError(
            f"{named}: {weight or 'nothing'} is no weight: write a number after the colon, such as {path}:0.5"
        )
    if number == 0:
        raise UserError(f"{named}: a weight of 0 adds nothing: omit the adapter, or give it another weight")
    return path, number


def _refuse_a_shard_size(size: str) -> None:
    from huggingface_hub.serialization._base import parse_size_to_int

    try:
        is_size = parse_size_to_int(size) > 0
    except (ValueError, OverflowError):
        is_size = False
    if not is_size:
        raise UserError(f"--max-shard-size: {size} is no size: write a number and MB or GB, such as 500MB")


def _refuse_a_device(device: str) -> None:
    if device != "cuda":
        return
    import torch

    if not torch.cuda.is_available():
        raise UserError("--device: PyTorch finds no GPU here: use --device cpu, which gives the same weights")


def _read_config(base: Path, as_type: str | None):
    """The base's configuration.

    Raises:
        UserError: Transformers does not know it, it is quantised, or it has no other layout.
    """
    from transformers import CONFIG_MAPPING, AutoConfig

    from sft.models import internlm2

    internlm2.register_with_transformers()
    kind = read_json(base / CONFIG_FILE, AGAIN).get("model_type")
    if not isinstance(kind, str):
        raise UserError(f"{base / CONFIG_FILE}: names no model_type, so nobody can tell what model it is: {AGAIN}")
    try:
        config = AutoConfig.from_pretrained(base)
    except Exception as problem:  # as above
        reason = one_line_message(problem, 200)
        if kind in CONFIG_MAPPING:
            raise UserError(f"{base / CONFIG_FILE}: Transformers cannot use it ({reason}): {AGAIN}") from None
        raise UserError(f"{base}: Transformers does not know this model ({reason}): merge it with PEFT") from None
    if getattr(config, "quantization_config", None):
        raise UserError(f"{base}: is quantised, and merging would round it again: give the original model")
    if as_type and config.model_type != "internlm2":
        raise UserError(f"{base}: is a {kind}, and only internlm2 has another layout, Llama's: use it as it is")
    return config
