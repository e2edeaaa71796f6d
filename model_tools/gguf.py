"""Write a model as one GGUF file for llama.cpp, Ollama and LM Studio, check it with llama.cpp, add a Modelfile.

In: a whole model, merged or fully fine-tuned. Out: a file and, beside it, a Modelfile with the model's own template,
stop tokens and system message. llama.cpp's own converter writes the file. Needs requirements-gguf.txt.
"""

import argparse
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from model_tools.llama_cpp import programs
from sft.core import files, unfinished
from sft.core.errors import UserError
from sft.core.json_file import read_json
from sft.core.text import shell_word
from sft.core.verbs import add_output

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

LOADS = "PyTorch and Transformers"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the verb's arguments to its parser."""
    parser.add_argument("model", type=Path, help="folder of a merged model, or run directory of a full fine-tuning")
    add_output(parser, "out", metavar="out.gguf", help="file to write; out.Modelfile comes beside it")
    parser.add_argument(
        "--type", type=str.lower, choices=programs.TYPES, default="f16", help="of its weights (default f16)"
    )
    parser.add_argument("--name", help="the name that the model is to say (default: that of its run)")
    parser.add_argument(
        "--llama-cpp", type=Path, metavar="DIR", help="a checkout of llama.cpp (default: that of requirements-gguf.txt)"
    )


def run(arguments: argparse.Namespace) -> int:
    """Run the verb; returns 1 where llama.cpp makes another model of the file, else 0."""
    out, modelfile = arguments.out, arguments.out.with_suffix(".Modelfile")
    if out.suffix != ".gguf":
        raise UserError(f"{out}: the programs that read it know it by its ending: name a file that ends in .gguf")
    files.check_output(modelfile, [], arguments.force)
    folder = _whole_model(arguments.model)

    from sft.models.weight_files import WeightFiles

    programs.check_engine()
    sources = programs.find_sources(arguments.llama_cpp)
    stored = WeightFiles(folder)
    _refuse_config(folder)

    from model_tools.checkpoints.asked import asked_of
    from model_tools.llama_cpp import check, conversion
    from model_tools.llama_cpp.modelfile import model_name
    from sft.models.generate import end_tokens, read_settings
    from sft.models.loading import load_tokenizer

    quantiser = None if arguments.type in programs.CONVERTED else programs.find_quantiser(arguments.llama_cpp)
    weights = sum(tensor.elements for tensor in stored.tensors.values())
    files.refuse_full_disk(out, conversion.bytes_needed(weights, arguments.type))
    tokenizer = load_tokenizer(str(folder))
    if not tokenizer.chat_template:
        raise UserError(f"{folder}: has no chat template, so that no program could ask it: add a chat_template.jinja")
    ends = end_tokens(read_settings(folder), tokenizer)
    asked = asked_of(_made_of(folder))
    asked.name = arguments.name or asked.name
    with _workplace(out) as work:
        written = conversion.Conversion(folder, tokenizer, ends, arguments.type, sources, quantiser).write(work)
        files.bring_to_disk(written)
        os.replace(written, os.path.realpath(out))
    print(f"{out}: {arguments.type}, {out.stat().st_size / 2**20:,.0f} MiB")
    _write_modelfile(modelfile, out, folder, tokenizer, ends)
    findings = check.compare(out, folder, tokenizer, arguments.type, asked)
    print(*findings.lines, sep="\n")
    if findings.is_wrong:
        print(f"{out}: llama.cpp does NOT make of it what the model is: do not use it")
        return 1
    print(f"for Ollama: ollama create {model_name(out)} -f {shell_word(str(modelfile))}")
    return 0


def _whole_model(model: Path) -> Path:
    """The folder of the weights.

    Raises:
        UserError: it is an adapter, which must be merged first, or no model.
    """
    from model_tools.checkpoints.model_folder import adapter_folder, local_folder

    if model.is_file():
        raise UserError(f"{model}: is a file: name the folder of a model")
    if adapter_folder(model):
        merge = f"python -m model_tools merge BASE {shell_word(str(model))} MERGED"
        raise UserError(f"{model}: is an adapter, and a GGUF file is a whole model: merge it first, with: {merge}")
    return local_folder(str(model))


def _made_of(folder: Path) -> list[Path]:
    """A model's folder and those of the adapters that were merged into it, as far as `merge` recorded them."""
    from model_tools.checkpoints.model_folder import MERGE_RECORD

    record = read_json(folder / MERGE_RECORD) if (folder / MERGE_RECORD).is_file() else {}
    return [folder.resolve(), *(Path(adapter["path"]) for adapter in record.get("adapters") or ())]


def _refuse_config(folder: Path) -> None:
    from model_tools.checkpoints.model_folder import CONFIG_FILE

    if read_json(folder / CONFIG_FILE).get("quantization_config"):
        raise UserError(f"{folder}: is quantised, and converting would round it again: give the original model")


def _write_modelfile(
    modelfile: Path, gguf: Path, folder: Path, tokenizer: "PreTrainedTokenizerBase", ends: list[int]
) -> None:
    """Write the Modelfile, and say what of the model it cannot hold."""
    from model_tools.checkpoints.model_folder import CONFIG_FILE
    from model_tools.llama_cpp.modelfile import describe
    from sft.models.adapter import read_system_message

    context = read_json(folder / CONFIG_FILE).get("max_position_embeddings")
    described = describe(gguf, tokenizer, ends, read_system_message(folder), context)
    with files.atomic_write(modelfile) as file:
        file.write(described.text.encode())
    for reason in described.omitted:
        print(f"{modelfile}: without {reason}")


@contextmanager
def _workplace(out: Path) -> Iterator[Path]:
    """A folder beside the file to be written, for all that is written on the way; nothing of it stays."""
    place = Path(os.path.realpath(out))
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        with unfinished.folder_beside(place) as work:
            yield work
    except OSError as problem:
        raise UserError(f"{out}: cannot be written: {problem.strerror or problem}: name another file") from None
