"""Makes the folder of a merged InternLM2 that of a plain Llama, which every engine loads without its makers' code.

In: the base's folder and the written one, with its tokenizer. Out: no code, and a `tokenizer.model` with the names of
`tokenizer.json`: llama.cpp and slow tokenizers read the one, Transformers the other, and both must give the same ids.
"""

from pathlib import Path

from transformers import AutoTokenizer

from sft.core.json_file import read_json, write_json
from sft.models import internlm2_tokenizer
from sft.models.written_folder import TOKENIZER_CONFIG

PIECES = "tokenizer.model"


def make_plain_llama(base: Path, folder: Path) -> None:
    """Remove the makers' code, and write `tokenizer.model` anew where the base has one.

    Raises:
        UserError: the base's tokenizer.model cannot be read.
    """
    for file in folder.glob("*.py"):
        file.unlink()
    path = folder / TOKENIZER_CONFIG
    if not path.is_file():
        return
    config = read_json(path)
    config.pop("auto_map", None)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    # Of llama.cpp's, which would put a blank before a text and <s> before a prompt whose template writes it.
    config["add_prefix_space"] = False
    config["add_bos_token"] = tokenizer("x").input_ids[:1] == [tokenizer.bos_token_id]
    write_json(path, config)
    if (base / PIECES).is_file():
        (folder / PIECES).write_bytes(internlm2_tokenizer.with_names_of(base / PIECES, tokenizer))
