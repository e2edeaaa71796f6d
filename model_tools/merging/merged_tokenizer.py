"""Whose tokenizer a merged model gets, and the copy of it: all of it comes from one folder, its chat templates too.

In: the base's folder and the adapters. Out: the tokenizer's files in the merged folder. Knows nothing about weights.
"""

import shutil
from pathlib import Path

from transformers import AutoTokenizer, PreTrainedTokenizerBase
from transformers.utils import CHAT_TEMPLATE_DIR

from model_tools.checkpoints.model_folder import CONFIG_FILE
from model_tools.merging.adapter import Adapter
from sft.core.errors import UserError
from sft.core.json_file import read_json
from sft.core.text import one_line_message
from sft.models import internlm2_tokenizer
from sft.models.written_folder import TOKENIZER_CONFIG

TOKENIZER_FILES = (
    "tokenizer*", "special_tokens_map.json", "added_tokens.json", "chat_template*", "vocab*", "merges.txt", "*.model",
    "*.tiktoken",
)  # fmt: skip
NEVER_ALONE = ("tokenizer.json", "chat_template.jinja")
WEIGHT_ENDINGS = (".safetensors", ".bin", ".pt", ".pth", ".index.json")


def tokenizer_folder(base: Path, adapters: list[Adapter]) -> Path:
    """The folder whose tokenizer is taken: that of the first adapter that has one, else the base's."""
    return next((each.folder for each in adapters if _has_tokenizer(each.folder)), base)


def read_tokenizer(folder: Path, base: Path) -> PreTrainedTokenizerBase:
    """The tokenizer in the folder of a base or of an adapter for it; InternLM2's is built where it is as published.

    Raises:
        UserError: it cannot be loaded.
    """
    if _is_published_internlm2(folder, base):
        vocabulary = read_json(base / CONFIG_FILE)["vocab_size"]
        return internlm2_tokenizer.build_tokenizer(folder / "tokenizer.model", vocabulary)
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder)
        tokenizer("x")  # some settings are looked at only now
        return tokenizer
    except Exception as problem:  # whatever its files make of the libraries that read them
        reason = one_line_message(problem, 200)
        advice = "copy its files again" if folder == base else "copy them again, or remove them: the base's is taken"
        raise UserError(f"{folder}: its tokenizer's files cannot be loaded ({reason}): {advice}") from None


def check_tokenizers(base: Path, adapters: list[Adapter], rows: int | None) -> None:
    """Report what is wrong with the tokenizer before anything is written; `rows` are those of the embedding.

    Raises:
        UserError: it cannot be loaded, has tokens that the embedding has no row for, two adapters give a token
            different ids, or an adapter has only a part of a tokenizer.
    """
    for adapter in adapters:
        _refuse_a_part_of_one(adapter.folder)
    folder = tokenizer_folder(base, adapters)
    if not _has_tokenizer(folder) and not _is_published_internlm2(folder, base):
        return
    tokenizer = read_tokenizer(folder, base)
    if folder != base and rows and len(tokenizer) > rows and not _base_has_as_many(base, len(tokenizer)):
        raise UserError(
            f"{folder}: its tokenizer has {len(tokenizer):,} tokens, and the base's embedding {rows:,} rows: give the "
            f"base as it was trained on (resize_token_embeddings({len(tokenizer)}), saved with save_pretrained)"
        )
    for adapter in adapters:
        if adapter.folder != folder and _has_tokenizer(adapter.folder):
            _compare(tokenizer, folder, read_tokenizer(adapter.folder, base), adapter.folder)


def copy_tokenizer(base: Path, adapters: list[Adapter], out: Path) -> None:
    """Copy the tokenizer and all its chat templates; a fast one is written where InternLM2's is as published."""
    folder = tokenizer_folder(base, adapters)
    copy_tokenizer_files(folder, out)
    if _is_published_internlm2(folder, base):
        read_tokenizer(folder, base).save_pretrained(out)


def copy_tokenizer_files(folder: Path, out: Path) -> None:
    """Copy what a folder holds of a tokenizer, all its chat templates too."""
    for pattern in TOKENIZER_FILES:
        copy_matching(folder, pattern, out)
    if (folder / CHAT_TEMPLATE_DIR).is_dir():
        shutil.copytree(folder / CHAT_TEMPLATE_DIR, out / CHAT_TEMPLATE_DIR)


def copy_matching(folder: Path, pattern: str, out: Path) -> None:
    """Copy the files of a folder that match; weights are none of them."""
    for file in folder.glob(pattern):
        if file.is_file() and not file.name.endswith(WEIGHT_ENDINGS):
            shutil.copyfile(file, out / file.name)


def _has_tokenizer(folder: Path) -> bool:
    return (folder / TOKENIZER_CONFIG).is_file()


def _refuse_a_part_of_one(adapter: Path) -> None:
    """An adapter's template or tokens without the rest would go unused, and the base's be taken without a word."""
    part = next((name for name in NEVER_ALONE if (adapter / name).is_file()), None)
    if part and not _has_tokenizer(adapter):
        raise UserError(
            f"{adapter}: holds {part} and no {TOKENIZER_CONFIG}: copy the whole tokenizer again, or remove it: the "
            "base's is taken"
        )


def _is_published_internlm2(folder: Path, base: Path) -> bool:
    has_only_pieces = (folder / "tokenizer.model").is_file() and not (folder / "tokenizer.json").is_file()
    return has_only_pieces and read_json(base / CONFIG_FILE).get("model_type") == "internlm2"


def _base_has_as_many(base: Path, tokens: int) -> bool:
    """Whether the base's own tokenizer has more tokens than rows too; such models are published."""
    return _has_tokenizer(base) and len(read_tokenizer(base, base)) >= tokens


def _compare(
    tokenizer: PreTrainedTokenizerBase, folder: Path, other: PreTrainedTokenizerBase, other_folder: Path
) -> None:
    """Refuse adapters that were trained on different ids; of two chat templates, say which one is written."""
    tokens = {index: token for token, index in tokenizer.get_vocab().items()}
    for token, index in sorted(other.get_vocab().items(), key=lambda item: item[1]):
        if tokens.get(index, token) != token:
            raise UserError(
                f"{other_folder}: its tokenizer has {token!r} as id {index}, and that of {folder} "
                f"{tokens[index]!r}: adapters of different tokenizers cannot be added up"
            )
    if other.chat_template != tokenizer.chat_template:
        print(f"{other_folder}: has another chat template than {folder}; the merged model gets the second")
