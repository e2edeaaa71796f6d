"""Writes what a merged model's folder holds beside its weights: config, tokenizer, generation settings, card.

In: the base's folder and the adapters' folders. Out: files that Transformers and other engines load. The config is the
base's own file with as little changed as can be, so that what their loaders look for is still there.
"""

from pathlib import Path

from huggingface_hub import ModelCard, ModelCardData
from peft import LoraConfig, PeftType

from model_tools.checkpoints.model_folder import CONFIG_FILE, MERGE_RECORD
from model_tools.merging.adapter import Adapter
from model_tools.merging.merged_tokenizer import copy_matching, copy_tokenizer
from sft.core.json_file import read_json, write_json
from sft.core.text import shell_word
from sft.models import internlm2
from sft.models.adapter import SYSTEM_MESSAGE
from sft.models.written_folder import (
    TOKENIZER_CONFIG,
    chat_section,
    code,
    hub_id,
    name_tokenizer_for_all,
    plain,
    serving_commands,
    write_end_tokens,
)

OTHER_FILES = ("generation_config.json", "*processor_config.json", "LICENSE*", "NOTICE*", "*.py")


def copy_files(base: Path, adapters: list[Adapter], out: Path) -> None:
    """Copy tokenizer, template, generation settings, licenses and the base's own code; the config comes last.

    The tokenizer is that of the first adapter that has one, else the base's.
    """
    for pattern in OTHER_FILES:
        copy_matching(base, pattern, out)
    copy_tokenizer(base, adapters, out)
    copy_matching(adapters[0].folder if adapters else base, SYSTEM_MESSAGE, out)
    name_tokenizer_for_all(out)
    write_end_tokens(out)


def write_config(base: Path, out: Path, dtype: str | None, is_untied: bool, as_llama: bool) -> None:
    """Write `config.json`, without which nothing loads: so it is written last."""
    config = read_json(base / CONFIG_FILE)
    if as_llama:
        config = internlm2.as_llama(config)
    if dtype:
        config.pop("torch_dtype", None)
        config["dtype"] = config["torch_dtype"] = dtype
    if is_untied:
        _untie(config)
    write_json(out / CONFIG_FILE, config)


def _untie(config: dict) -> None:
    """Say that input and output embeddings are two, and say it of every text model in it too: engines look there."""
    config["tie_word_embeddings"] = False
    for part in config.values():
        if isinstance(part, dict) and {"vocab_size", "tie_word_embeddings", "text_config"} & part.keys():
            _untie(part)


def write_card(
    base: str, adapters: list[Adapter], out: Path, named: Path, dtype: str | None, is_untied: bool, layout: str | None
) -> None:
    """Write what it was made of: `README.md` for people, `merge.json` for programs.

    `named` is what `out` will be called; `layout` is "llama" or "internlm2" for an InternLM2, else None.
    """
    made_of = [{"path": str(adapter.folder), "weight": adapter.weight} for adapter in adapters]
    write_json(out / MERGE_RECORD, {"base": base, "adapters": made_of, "dtype": dtype, "untied": is_untied})
    data = ModelCardData(
        library_name="transformers",
        base_model=hub_id(base),
        pipeline_tag="text-generation" if (out / TOKENIZER_CONFIG).is_file() else None,
        tags=["lora", "merged"] if adapters else None,
    )
    parts = [f"# {plain(named.name)}", f"{code(base)}, written anew by `python -m model_tools merge`."]
    if adapters:
        parts[1] = f"{code(base)} with these adapters merged into its weights by `python -m model_tools merge`:"
        parts.append(
            "\n".join(f"- {code(str(each.folder))}, weight {each.weight:g}: {_describe(each)}" for each in adapters)
        )
    if is_untied:
        parts.append("Input and output embeddings were one in the base model and are two here.")
    if layout == "llama":
        parts.append("The weights lie under Llama's names, so that any engine loads them without remote code.")
    if (out / TOKENIZER_CONFIG).is_file():
        folder = shell_word(str(named))
        # No server loads the layout of InternLM2's makers without their code.
        served = serving_commands(folder) if layout != "internlm2" else []
        parts.append(chat_section(out, [f"python -m model_tools chat {folder}", *served]))
    ModelCard(f"---\n{data.to_yaml()}\n---\n\n" + "\n\n".join(parts) + "\n").save(out / "README.md")


def _describe(adapter: Adapter) -> str:
    config = adapter.config
    rank = f" r {config.r}, alpha {config.lora_alpha}" if isinstance(config, LoraConfig) else ""
    return f"{PeftType(config.peft_type).value}{rank}"
