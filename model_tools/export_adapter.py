"""Write the adapter of a checkpoint as a PEFT folder, also of XTuner's .pth, as `xtuner convert pth_to_hf` did.

In: a checkpoint of ours, of DeepSpeed's or XTuner's. Out: a new folder that `PeftModel.from_pretrained` loads. Nothing
in the checkpoint is run. InternLM2's fused modules are split into those of the native model.
"""

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from sft.core.errors import UserError

LOADS = "PyTorch and Transformers"

if TYPE_CHECKING:
    from model_tools.checkpoints.trained_adapter import TrainedAdapter

OTHER_FILES = ("README.md", "base_model.json")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the verb's arguments to its parser."""
    parser.add_argument(
        "checkpoint", type=Path, help="checkpoint, adapter folder, run directory, or XTuner's iter_N.pth"
    )
    parser.add_argument("out", type=Path, help="folder to write; must not exist or be empty")
    parser.add_argument("--fp32", action="store_true", help="write float32: ZeRO's own masters where there are any")
    parser.add_argument("--base", type=Path, metavar="DIR", help="the base model's folder, if it is not where it was")
    parser.add_argument(
        "--as",
        dest="as_type",
        choices=["llama"],
        help="write it for engines that load an InternLM2's adapter beside a base that export-llama wrote (--base)",
    )
    parser.add_argument("--config", type=Path, metavar="CONFIG.py", help="the XTuner config, if it is not in the .pth")


def run(arguments: argparse.Namespace) -> int:
    """Run the verb; returns its exit code."""
    from model_tools.checkpoints import trained_adapter
    from sft.core.files import atomic_folder, refuse_occupied

    refuse_occupied(arguments.out)
    if not arguments.checkpoint.exists():
        raise UserError(f"{arguments.checkpoint}: no such file or folder: check the path")
    adapter = trained_adapter.read_adapter(arguments.checkpoint, arguments.fp32, arguments.config)
    tensors, config = dict(adapter.tensors), dict(adapter.config)
    if arguments.base:
        config["base_model_name_or_path"] = str(arguments.base)
    tensors, config, is_split = _for_native_model(tensors, config, arguments)
    if arguments.as_type:
        from model_tools.checkpoints import internlm2_adapter

        config = internlm2_adapter.for_engines(tensors, config, arguments.checkpoint)
    before = _dtypes(tensors)
    if arguments.fp32:
        tensors = {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}
    with atomic_folder(arguments.out) as folder:
        # Card and record know the base in its makers' layout, whose weights have another fingerprint.
        others = () if arguments.as_type and arguments.base else OTHER_FILES
        _write(folder, tensors, config, adapter, arguments.out, others)
    cast = f" (from {before})" if before != _dtypes(tensors) else ""
    print(f"{arguments.out}: {_summary(tensors, config)}{cast}")
    print(f"  from {adapter.origin}{'; wqkv split into q_proj, k_proj, v_proj' if is_split else ''}")
    return 0


def _for_native_model(tensors: dict, config: dict, arguments: argparse.Namespace) -> tuple[dict, dict, bool]:
    """Tensors and config with InternLM2's own names turned into those of the native model; others as they are.

    Raises:
        UserError: the base model is needed for what its names mean, and is not here.
    """
    from model_tools.checkpoints import internlm2_adapter
    from model_tools.checkpoints.model_folder import config_file

    if not internlm2_adapter.has_published_names(tensors):
        return tensors, config, False
    base = config.get("base_model_name_or_path")
    path = config_file(base) if base else None
    if path is None:
        raise UserError(
            f"{arguments.checkpoint}: has InternLM2's fused modules, and their heads are not known without the base "
            f"model ({base} is no folder here): add --base DIR"
        )
    if not arguments.as_type and not internlm2_adapter.is_internlm2(path):
        return tensors, config, False
    return *internlm2_adapter.to_native(tensors, config, path, arguments.checkpoint), True


def _write(
    folder: Path, tensors: dict, config: dict, adapter: "TrainedAdapter", out: Path, others: tuple[str, ...]
) -> None:
    """Write weights, tokenizer and card, and copy other files; the config, without which nothing loads, comes last."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    from model_tools.checkpoints.model_folder import ADAPTER_FILE
    from model_tools.merging.merged_tokenizer import copy_matching, copy_tokenizer_files
    from sft.models.adapter import SYSTEM_MESSAGE

    whole = {name: tensor.contiguous() for name, tensor in tensors.items()}
    try:
        save_file(whole, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    except SafetensorError as problem:
        raise OSError(str(problem)) from None
    if adapter.folder:
        copy_tokenizer_files(adapter.folder, folder)
        for name in (SYSTEM_MESSAGE, *others):
            copy_matching(adapter.folder, name, folder)
    if not (folder / "README.md").is_file():
        _write_card(folder, config, adapter.origin, out)
    content = json.dumps(config, ensure_ascii=False, indent=2, sort_keys=True)
    (folder / ADAPTER_FILE).write_text(content + "\n", encoding="utf-8")


def _write_card(folder: Path, config: dict, origin: str, out: Path) -> None:
    from huggingface_hub import ModelCard, ModelCardData

    from sft.models.written_folder import adapter_commands, chat_section, code, hub_id, plain

    base = config.get("base_model_name_or_path") or ""
    card_data = ModelCardData(
        library_name="peft", base_model=hub_id(base), pipeline_tag="text-generation", tags=["lora"]
    )
    made = f"An adapter for {code(base)}, written by `python -m model_tools export-adapter` from {code(origin)}."
    sections = [f"# {plain(out.name)}", made, chat_section(folder, adapter_commands(base, str(out)))]
    ModelCard(f"---\n{card_data.to_yaml()}\n---\n\n" + "\n\n".join(sections) + "\n").save(folder / "README.md")


def _summary(tensors: dict, config: dict) -> str:
    from model_tools.checkpoints.adapter_tensors import module_ranks

    names = sorted({module.rpartition(".")[2] for module in module_ranks(tensors)})
    size = sum(tensor.nbytes for tensor in tensors.values())
    lora = f"r {config.get('r')}, alpha {config.get('lora_alpha')}, {' '.join(names)}, " if names else ""
    return f"{len(tensors)} tensors, {lora}{size / 2**20:,.2f} MiB, {_dtypes(tensors)}"


def _dtypes(tensors: dict) -> str:
    return " ".join(sorted({str(tensor.dtype).removeprefix("torch.") for tensor in tensors.values()}))
