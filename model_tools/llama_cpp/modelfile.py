"""Writes what Ollama needs beside a GGUF file: a Modelfile with template, stop tokens and system message.

In: the file's name and the model's tokenizer. Out: text. What a Modelfile cannot hold is said in it, and never guessed.
"""

import re
from dataclasses import dataclass
from pathlib import Path

from gguf import GGUFReader, Keys
from transformers import PreTrainedTokenizerBase

from model_tools.llama_cpp import ollama_template
from sft.core.text import shell_word
from sft.models.chat_template import ChatTemplate

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")


@dataclass(frozen=True)
class Modelfile:
    """The text of a Modelfile, and what of the model it could not say."""

    text: str
    omitted: list[str]


def model_name(gguf: Path) -> str:
    """What the model may be called in Ollama, which takes few letters."""
    return gguf.stem.lower() if NAME.fullmatch(gguf.stem) else "my-model"


def describe(
    gguf: Path, tokenizer: PreTrainedTokenizerBase, ends: list[int], system: str | None, context: int | None
) -> Modelfile:
    """The Modelfile of a GGUF file in the same folder; `system` is the message the model was trained with."""
    template, name = ChatTemplate(tokenizer), model_name(gguf)
    lines = [f"# ollama create {name} -f {shell_word(gguf.with_suffix('.Modelfile').name)}", f"FROM ./{gguf.name}"]
    omitted = []
    takes_system = True
    try:
        parts = ollama_template.learn(template)
        takes_system = parts.opens_system is not None
        lines += _notes(template, parts)
        lines.append(f'TEMPLATE """{ollama_template.go_template(parts, _first_token(gguf, tokenizer))}"""')
    except ollama_template.CannotSay as problem:
        omitted.append(f"TEMPLATE: {problem}")
        lines += [
            f"# No TEMPLATE: the model's chat template cannot be said in Ollama's words: {problem}.",
            "# Ollama then looks for one that resembles it in a list of its own, and where it finds none sends your",
            f"# words bare: before you trust an answer, look at: ollama show --template {name}",
        ]
    if system and not (takes_system and ollama_template.is_sayable(system)):
        reason = "a Modelfile cannot hold its characters" if takes_system else "the chat template takes none"
        omitted.append(f"SYSTEM: {reason}")
        lines.append(f"# No SYSTEM: the model was trained with a system message, but {reason}: send it yourself.")
    elif system:
        lines.append(f'SYSTEM """{system}"""')
    lines += [f'PARAMETER stop "{tokenizer.convert_ids_to_tokens(end)}"' for end in ends]
    if context:
        lines += [
            f"# The model reads {context:,} tokens. Ollama lets it as many as memory allows, on most machines 4,096,",
            f"# and forgets the beginning of a longer conversation. More, for more memory: PARAMETER num_ctx {context}",
        ]
    return Modelfile("\n".join(lines) + "\n", omitted)


def _first_token(gguf: Path, tokenizer: PreTrainedTokenizerBase) -> str:
    """The text of the token that llama.cpp puts before every prompt of this file by itself; Ollama does so too."""
    added = GGUFReader(gguf).get_field(Keys.Tokenizer.ADD_BOS)
    return str(tokenizer.bos_token) if added and added.contents() else ""


def _notes(template: ChatTemplate, parts: ollama_template.Parts) -> list[str]:
    notes = []
    if parts.opens_system is None:
        notes.append("# The model's chat template takes no system message; Ollama leaves one out.")
    if template.day:
        notes.append(f"# The date in TEMPLATE is that of the day it was written, {template.day}.")
    return notes
