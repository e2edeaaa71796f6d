"""Lays a model's folder out as llama.cpp's converter must find it: the weights linked, the tokenizer as it works here.

In: a model folder and its tokenizer. Out: another folder. The converter reads only part of what a tokenizer says of
itself and guesses the rest from the model's family; each guess that can be wrong is answered here beforehand. Writes no
GGUF.
"""

import json
from pathlib import Path
from typing import Any

from sentencepiece.sentencepiece_model_pb2 import ModelProto  # type: ignore[attr-defined]
from transformers import PreTrainedTokenizerBase

from model_tools.checkpoints.model_folder import CONFIG_FILE
from sft.core.json_file import read_json
from sft.models.chat_template import KWARGS, QUESTION, ChatTemplate

PIECES = "tokenizer.model"
# Written anew; all else of a folder is linked.
TOKENIZER = (PIECES, "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
TEMPLATES = ("chat_template.jinja", "chat_template.json", "additional_chat_templates")
REMOTE_CODE = "auto_map"  # where a model's files name the Python that is to load them
BYTE_PIECE = "<0x{:02X}>"
TYPES = ModelProto.SentencePiece.Type


def stage(model: Path, tokenizer: PreTrainedTokenizerBase, staged: Path) -> None:
    """Fill an empty folder with what the converter is to read.

    The converter trusts remote code: none of the model's own is staged, and nothing that names it.
    """
    for file in model.iterdir():
        if file.is_file() and file.suffix != ".py" and file.name not in (CONFIG_FILE, *TOKENIZER, *TEMPLATES):
            (staged / file.name).symlink_to(file.resolve())
    config = read_json(model / CONFIG_FILE)
    config.pop(REMOTE_CODE, None)
    (staged / CONFIG_FILE).write_text(json.dumps(config, ensure_ascii=False), encoding="utf-8")
    tokenizer.save_pretrained(str(staged))
    for name in TEMPLATES:
        (staged / name).unlink(missing_ok=True)
    settings = read_json(staged / "tokenizer_config.json") | _what_is_guessed(tokenizer)
    settings.pop(REMOTE_CODE, None)
    if getattr(tokenizer.backend_tokenizer.model, "byte_fallback", False):
        settings["add_prefix_space"] = adds_space = _adds_space(tokenizer)
        (staged / PIECES).write_bytes(_sentencepiece_model(tokenizer, adds_space))
    (staged / "tokenizer_config.json").write_text(json.dumps(settings, ensure_ascii=False), encoding="utf-8")


def _what_is_guessed(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    template = ChatTemplate(tokenizer)
    end = next(iter(template.end_tokens), tokenizer.eos_token_id)
    asks = template.prompt([QUESTION])
    bos = str(tokenizer.bos_token or "")
    return {
        # It takes the eos of the text, at which no answer ends.
        "eos_token": None if end is None else tokenizer.convert_ids_to_tokens(end),
        # It adds a bos by the family's custom: twice where the template writes one, or where the model never saw one.
        "add_bos_token": bool(bos) and asks.startswith(bos) and asks.count(bos) == 1,
        "add_eos_token": False,
        # It prefers a template in this file to that in a file beside it.
        "chat_template": _templates(tokenizer),
        # It knows no other place of tokens that have another name in the sentencepiece model.
        "added_tokens_decoder": {
            str(number): {"content": token.content, "special": token.special, "normalized": token.normalized}
            for number, token in tokenizer.added_tokens_decoder.items()
        },
    }


def _templates(tokenizer: PreTrainedTokenizerBase) -> str | list[dict[str, str]]:
    """The chat template, or several by name; what it is always given here, it sets itself there."""
    kwargs = tokenizer.init_kwargs.get(KWARGS) or {}
    given = "".join(f"{{%- set {name} = {_jinja(value)} -%}}" for name, value in kwargs.items())
    templates = tokenizer.chat_template
    if isinstance(templates, dict):
        return [{"name": name, "template": given + text} for name, text in templates.items()]
    return given + str(templates)


def _jinja(value: Any) -> str:
    """A value as Jinja writes it, which is JSON but for three words."""
    words = {"null": "none"}
    written = json.dumps(value, ensure_ascii=False)
    return words.get(written, written)


def _adds_space(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether a space is put before the text that follows a control token, as sentencepiece once did."""
    control = str(tokenizer.bos_token or tokenizer.eos_token)
    first = tokenizer(control + "a", add_special_tokens=False)["input_ids"][1:2]
    return str(tokenizer.convert_ids_to_tokens(first)[0]).startswith("▁")


def _sentencepiece_model(tokenizer: PreTrainedTokenizerBase, adds_space: bool) -> bytes:
    """The `tokenizer.model` that a tokenizer.json came from: its pieces, with scores in the order of its merges.

    From a tokenizer.json alone the converter gives every piece one score, and llama.cpp then splits words elsewhere.
    """
    stored = json.loads(tokenizer.backend_tokenizer.to_str())
    vocabulary: dict[str, int] = stored["model"]["vocab"]
    ranks: dict[str, int] = {}
    for rank, (left, right) in enumerate(stored["model"]["merges"]):
        ranks.setdefault(left + right, rank)
    bytes_ = {BYTE_PIECE.format(number) for number in range(256)}
    model = ModelProto()
    pieces = {number: text for text, number in vocabulary.items()}
    for number in range(max(pieces) + 1):
        text = pieces.get(number, f"[PAD{number}]")
        kind = TYPES.Value("BYTE" if text in bytes_ else "UNKNOWN" if text == tokenizer.unk_token else "NORMAL")
        model.pieces.add(piece=text, score=-float(ranks.get(text, len(ranks))), type=kind)
    model.trainer_spec.model_type = model.trainer_spec.ModelType.Value("BPE")
    model.trainer_spec.byte_fallback = True
    model.normalizer_spec.add_dummy_prefix = adds_space
    return bytes(model.SerializeToString())
