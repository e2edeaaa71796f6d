"""Ask the base model ordinary questions and write its own answers as rows, to be mixed in.

In: a model and questions. Out: rows in XTuner's form. A model that also trains on what it would have said anyway keeps
more of itself. Loads the model, and with it torch; most other verbs do without.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path

from data_tools import inputs
from sft.core import files
from sft.core.errors import UserError
from sft.core.imports import importing
from sft.core.text import counted
from sft.core.verbs import add_output
from sft.data.readers.row_file import RowFile
from sft.data.rows import formats
from sft.data.rows.json_line import json_line

LOADS = "PyTorch and Transformers"

BATCH = 8


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what the verb takes."""
    add_output(parser, "out", help="JSONL file to write")
    parser.add_argument("--model", required=True, help="the base model: a folder or hub id")
    parser.add_argument(
        "--prompts",
        type=Path,
        required=True,
        help="text file, one question a line; or a data file, whose questions count",
    )
    inputs.add_columns(parser)
    parser.add_argument("--max_new_tokens", type=int, default=128, help="longest answer; a longer one is skipped")


def run(arguments: argparse.Namespace) -> int:
    """Ask the questions and write the rows whose answers can be used; returns the exit code."""
    from sft.models.model_folder import require_model

    prompts = list(dict.fromkeys(read_prompts(inputs.row_file(arguments.prompts, arguments))))
    if not prompts:
        raise UserError(f"{arguments.prompts}: holds no question")
    require_model(arguments.model)

    with importing():
        from trl import ModelConfig

        from sft.models.loading import load_model, load_tokenizer

    tokenizer = load_tokenizer(arguments.model)
    model = load_model(ModelConfig(model_name_or_path=arguments.model, dtype="auto")).eval()
    generation = {"max_new_tokens": arguments.max_new_tokens, "do_sample": False}
    skipped = {"did not end": 0, "empty": 0, "gives a model's name": 0}
    written = 0
    with files.atomic_write(arguments.out, arguments.prompts) as file:
        for prompt, answer, fault in _answers(model, tokenizer, prompts, generation):
            if fault:
                skipped[fault] += 1
            else:
                file.write(json_line({"conversation": [{"input": prompt, "output": answer}]}))
                written += 1
        if not written:
            raise UserError(f"{arguments.out}: no answer could be used ({_listed(skipped)}): raise --max_new_tokens")
    questions = counted(len(prompts), "question")
    print(f"{arguments.out}: {counted(written, 'row')} of {questions}; skipped: {_listed(skipped)}")
    return 0


def read_prompts(file: RowFile) -> Iterator[str]:
    """The questions of a text file, line by line, or of a data file, the first of each row.

    Raises:
        UserError: the file cannot be read, or holds a bad row.
    """
    if file.path.endswith(".txt") and not file.columns:
        for number, line in files.numbered_lines(file.path):
            try:
                yield line.decode("utf-8").strip()
            except UnicodeDecodeError:
                raise UserError(f"{file.path}:{number}: not UTF-8: save the file as UTF-8") from None
        return
    for _, row in formats.read_rows(file):
        yield next(message["content"] for message in row["messages"] if message["role"] == "user")


def _answers(model, tokenizer, prompts: list[str], generation: dict) -> Iterator[tuple[str, str, str | None]]:
    """Yield (question, answer, why the answer cannot be used or None)."""
    from tqdm import tqdm

    from sft.data.identity import OLD_NAMES, role_of_name
    from sft.models.generate import reply_to_all

    for start in tqdm(range(0, len(prompts), BATCH), desc="asking", unit="batch", disable=None):
        batch = prompts[start : start + BATCH]
        conversations = [[{"role": "user", "content": prompt}] for prompt in batch]
        for prompt, reply in zip(batch, reply_to_all(model, tokenizer, conversations, generation), strict=True):
            fault = None
            if not reply.text:
                fault = "empty"
            elif reply.stop_reason != "end of turn":
                fault = "did not end"
            elif any(role_of_name(reply.text, name, prompt) for name in OLD_NAMES):
                fault = "gives a model's name"
            yield prompt, reply.text, fault


def _listed(skipped: dict[str, int]) -> str:
    return ", ".join(f"{count:,} {why}" for why, count in skipped.items())
