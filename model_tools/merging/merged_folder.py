"""Writes what a merged model's folder holds beside its weights: config, tokenizer, generation settings, card.

In: the base's folder and the adapters' folders. Out: files that Transformers and other engines load. The config is the
base's own file with as little changed as can be, so that what their loaders look for is still there.
"""

import json
import shutil
from pathlib import Path

from huggingface_hub import ModelCard, ModelCardData
from peft import LoraConfig, PeftType
from transformers import AutoTokenizer, GenerationConfig

from model_tools.checkpoints.model_folder import CONFIG_FILE, MERGE_RECORD, read_json
from model_tools.merging.tuned_modules import Adapter
from sft.models import internlm2, internlm2_tokenizer
from sft.models.adapter import SYSTEM_MESSAGE
from sft.models.generate import end_tokens

TOKENIZER_FILES = (
    "tokenizer*", "special_tokens_map.json", "added_tokens.json", "chat_template*", "vocab*", "merges.txt", "*.model",
    "*.tiktoken",
)  # fmt: skip
OTHER_FILES = ("generation_config.json", "*processor_config.json", "LICENSE*", "NOTICE*", "*.py")
WEIGHT_ENDINGS = (".safetensors", ".bin", ".pt", ".pth", ".index.json")


def copy_files(base: Path, adapters: list[Adapter], out: Path) -> None:
    """Copy tokenizer, template, generation settings, licenses and the base's own code; the config comes last.

    The tokenizer is that of the first adapter that has one, else the base's.
    """
    for pattern in (*TOKENIZER_FILES, *OTHER_FILES):
        _copy(base, pattern, out)
    tuned = next((each.folder for each in adapters if (each.folder / "tokenizer_config.json").is_file()), None)
    if tuned:
        for pattern in TOKENIZER_FILES:
            _copy(tuned, pattern, out)
    elif _is_published_internlm2(base):
        vocabulary = read_json(base / CONFIG_FILE)["vocab_size"]
        internlm2_tokenizer.build_tokenizer(base / "tokenizer.model", vocabulary).save_pretrained(out)
    _copy(adapters[0].folder, SYSTEM_MESSAGE, out)
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
        config["tie_word_embeddings"] = False
    _write_json(out / CONFIG_FILE, config)


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


def _copy(folder: Path, pattern: str, out: Path) -> None:
    for file in folder.glob(pattern):
        if file.is_file() and not file.name.endswith(WEIGHT_ENDINGS):
            shutil.copyfile(file, out / file.name)


def _is_published_internlm2(base: Path) -> bool:
    has_only_pieces = (base / "tokenizer.model").is_file() and not (base / "tokenizer.json").is_file()
    return has_only_pieces and read_json(base / CONFIG_FILE).get("model_type") == "internlm2"


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
