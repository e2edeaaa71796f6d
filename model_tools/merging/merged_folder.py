"""Writes what a merged model's folder holds beside its weights: config, tokenizer, generation settings, card.

In: the base's folder and the adapters' folders. Out: files that Transformers and other engines load. The config is the
base's own file with as little changed as can be, so that what their loaders look for is still there.
"""

import json
from pathlib import Path

from huggingface_hub import ModelCard, ModelCardData
from peft import LoraConfig, PeftType
from transformers import AutoTokenizer, GenerationConfig

from model_tools.checkpoints.model_folder import CONFIG_FILE, MERGE_RECORD, read_json
from model_tools.merging.adapter import Adapter
from model_tools.merging.merged_tokenizer import copy, copy_tokenizer
from sft.models import internlm2
from sft.models.adapter import SYSTEM_MESSAGE
from sft.models.generate import end_tokens

OTHER_FILES = ("generation_config.json", "*processor_config.json", "LICENSE*", "NOTICE*", "*.py")


def copy_files(base: Path, adapters: list[Adapter], out: Path) -> None:
    """Copy tokenizer, template, generation settings, licenses and the base's own code; the config comes last.

    The tokenizer is that of the first adapter that has one, else the base's.
    """
    for pattern in OTHER_FILES:
        copy(base, pattern, out)
    copy_tokenizer(base, adapters, out)
    copy(adapters[0].folder, SYSTEM_MESSAGE, out)
    _name_the_class_everyone_knows(out / "tokenizer_config.json")
    _write_end_tokens(out)


def write_config(base: Path, out: Path, dtype: str | None, is_untied: bool, as_llama: bool) -> None:
    """Write `config.json`, without which nothing loads: so it is written last."""
    config = read_json(base / CONFIG_FILE)
    if as_llama and config["model_type"] == "internlm2":
        config = internlm2.as_llama(config)
    if dtype:
        config.pop("torch_dtype", None)
        config["dtype"] = config["torch_dtype"] = dtype
    if is_untied:
        _untie(config)
    _write_json(out / CONFIG_FILE, config)


def _untie(config: dict) -> None:
    """Say that input and output embeddings are two, and say it of every text model in it too: engines look there."""
    config["tie_word_embeddings"] = False
    for part in config.values():
        if isinstance(part, dict) and {"vocab_size", "tie_word_embeddings", "text_config"} & part.keys():
            _untie(part)


def write_card(base: str, adapters: list[Adapter], out: Path, title: str, dtype: str | None, is_untied: bool) -> None:
    """Write what it was made of: `README.md` for people, `merge.json` for programs."""
    made_of = [{"path": str(adapter.folder), "weight": adapter.weight} for adapter in adapters]
    _write_json(out / MERGE_RECORD, {"base": base, "adapters": made_of, "dtype": dtype, "untied": is_untied})
    data = ModelCardData(
        library_name="transformers",
        base_model=None if Path(base).exists() else base,
        pipeline_tag="text-generation" if (out / "tokenizer_config.json").is_file() else None,
        tags=["lora", "merged"],
    )
    lines = "\n".join(f"- `{each.folder}`, weight {each.weight:g}: {_describe(each)}" for each in adapters)
    untied = "\n\nInput and output embeddings were one in the base model and are two here." if is_untied else ""
    text = (
        f"---\n{data.to_yaml()}\n---\n\n# {title}\n\n`{base}` with these adapters merged into its weights by "
        f"`python -m model_tools merge`:\n\n{lines}{untied}\n"
    )
    ModelCard(text).save(out / "README.md")


def _describe(adapter: Adapter) -> str:
    config = adapter.config
    rank = f" r {config.r}, alpha {config.lora_alpha}" if isinstance(config, LoraConfig) else ""
    return f"{PeftType(config.peft_type).value}{rank}"


def _name_the_class_everyone_knows(path: Path) -> None:
    """Transformers 5 calls a plain fast tokenizer by a name that Transformers 4, in other engines, does not know."""
    if path.is_file():
        config = read_json(path)
        if config.get("tokenizer_class") == "TokenizersBackend":
            _write_json(path, config | {"tokenizer_class": "PreTrainedTokenizerFast"})


def _write_end_tokens(out: Path) -> None:
    """Let every engine stop where a turn ends: base models' settings often name the end of the text alone."""
    if not (out / "tokenizer_config.json").is_file():
        return
    tokenizer = AutoTokenizer.from_pretrained(out)
    path = out / "generation_config.json"
    settings = GenerationConfig.from_pretrained(out) if path.is_file() else GenerationConfig()
    own = read_json(path) if path.is_file() else {}
    if ends := end_tokens(settings, tokenizer):
        own["eos_token_id"] = ends if len(ends) > 1 else ends[0]
    if tokenizer.pad_token_id is not None:
        own.setdefault("pad_token_id", tokenizer.pad_token_id)
    _write_json(path, own)


def _write_json(path: Path, content: dict) -> None:
    path.write_text(json.dumps(content, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
