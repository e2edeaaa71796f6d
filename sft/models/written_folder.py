"""What a written model's folder says to others: where an answer ends, for programs; how to chat with it, for people.

In: a folder with its tokenizer. Out: `generation_config.json` and `tokenizer_config.json` as other engines read them,
and parts of a model card, in which text that comes from data or a model stays text.
"""

import re
from pathlib import Path

from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id
from transformers import AutoTokenizer, PreTrainedTokenizerBase
from transformers.utils import GENERATION_CONFIG_NAME as GENERATION_CONFIG

from sft.core.json_file import read_json, write_json
from sft.core.text import one_line, shell_word
from sft.models.adapter import read_system_message
from sft.models.chat_template import ChatTemplate
from sft.models.generate import end_tokens, read_settings

TOKENIZER_CONFIG = "tokenizer_config.json"
# What Transformers 5 writes, and what both 5 and 4 read, on which other engines stand.
OLD_CLASS = {"TokenizersBackend": "PreTrainedTokenizerFast"}
NEW_TOKENS, OLD_TOKENS = "extra_special_tokens", "additional_special_tokens"


def name_tokenizer_for_all(folder: Path) -> None:
    """Name class and special tokens of a folder's tokenizer as Transformers 4 does too, which fails on 5's names."""
    path = folder / TOKENIZER_CONFIG
    if not path.is_file():
        return
    before = read_json(path)
    after = dict(before)
    if named := OLD_CLASS.get(before.get("tokenizer_class", "")):
        after["tokenizer_class"] = named
    if isinstance(before.get(NEW_TOKENS), list):
        after.setdefault(OLD_TOKENS, after.pop(NEW_TOKENS))
    if after != before:
        write_json(path, after)


def write_end_tokens(folder: Path) -> None:
    """Let every engine stop where a turn ends: base models' settings often name the end of the text alone.

    Raises:
        UserError: its `generation_config.json` cannot be read.
    """
    if not (folder / TOKENIZER_CONFIG).is_file():
        return
    tokenizer = AutoTokenizer.from_pretrained(folder)
    path = folder / GENERATION_CONFIG
    own = read_json(path) if path.is_file() else {}
    if ends := end_tokens(read_settings(folder), tokenizer):
        own["eos_token_id"] = ends if len(ends) > 1 else ends[0]
    if tokenizer.pad_token_id is not None:
        own.setdefault("pad_token_id", tokenizer.pad_token_id)
    write_json(path, own)


def chat_section(folder: Path, commands: list[str]) -> str:
    """The card's section on chatting: what ends a turn, the system message of the training, the commands.

    Raises:
        UserError: the record of the system message cannot be read.
    """
    parts = ["## Chat"]
    if (folder / TOKENIZER_CONFIG).is_file():
        parts.append(_turns(folder, AutoTokenizer.from_pretrained(folder)))
    if system := read_system_message(folder):
        parts.append("Every conversation it was trained on began with this system message; begin with it too:")
        parts.append(fence(system))
    parts.append(fence("\n".join(commands)))
    return "\n\n".join(parts)


def adapter_commands(base: str, adapter: str) -> list[str]:
    """What a person types to chat with an adapter, and to merge and serve it."""
    merged = f"models/{Path(adapter).name}"
    base, adapter, merged = map(shell_word, (base, adapter, merged))
    return [
        f"python -m model_tools chat {base} --adapter {adapter}",
        f"python -m model_tools merge {base} {adapter} {merged}",
        *serving_commands(merged),
    ]


def serving_commands(model: str) -> list[str]:
    """What serves a whole model's folder; the last of them needs a GPU."""
    return [
        f"transformers serve {model} --host 127.0.0.1 --port 8000",
        f"vllm serve {model} --host 127.0.0.1 --port 8000",
    ]


def _turns(folder: Path, tokenizer: PreTrainedTokenizerBase) -> str:
    learned = ChatTemplate(tokenizer).end_tokens if tokenizer.chat_template else []
    if not learned:
        return "The tokenizer's chat template ends no turn." if tokenizer.chat_template else "It has no chat template."
    text = f"The chat template ends a turn with {_tokens(tokenizer, learned)}."
    path = folder / GENERATION_CONFIG
    if not path.is_file():
        return text
    ends = read_json(path).get("eos_token_id", learned)
    ends = ends if isinstance(ends, list) else [ends]
    return f"{text} `{GENERATION_CONFIG}` lets engines stop at {_tokens(tokenizer, ends)}."


def _tokens(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> str:
    return ", ".join(f"{code(str(tokenizer.convert_ids_to_tokens(number)))} ({number})" for number in ids)


def hub_id(base: str) -> str | None:
    """The name of a base model if it is one on a hub, for a card's metadata; None for what is or was a folder."""
    owner, slash, _ = base.partition("/")
    try:
        validate_repo_id(base)
    except HFValidationError:
        return None
    return base if slash and not Path(base).exists() and not Path(owner).exists() else None


def plain(text: str) -> str:
    """Text on one line that Markdown shows as it is, also in a table's cell."""
    text = re.sub(r"([\\`*_\[\]~])", r"\\\1", one_line(text))
    for character, entity in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;"), ("|", "&#124;")):
        text = text.replace(character, entity)
    return text


def code(text: str) -> str:
    """Text as a span of code on one line, whatever backticks it holds."""
    line = one_line(text)
    ticks = "`" * (_longest_ticks(line) + 1)
    space = " " if "`" in line else ""
    return f"{ticks}{space}{line}{space}{ticks}"


def fence(text: str, language: str = "") -> str:
    """Text as a block of code, whatever backticks it holds."""
    ticks = "`" * max(3, _longest_ticks(text) + 1)
    return f"{ticks}{language}\n{text.strip()}\n{ticks}"


def _longest_ticks(text: str) -> int:
    return max(map(len, re.findall("`+", text)), default=0)
