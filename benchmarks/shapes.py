"""The shapes of published models, and models of such a shape that are made in place.

Speed and memory depend on a model's shape and not on the values of its weights, so that nothing has to be downloaded.
"""

import shutil
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

DIMENSIONS = ("num_hidden_layers", "hidden_size", "intermediate_size", "num_attention_heads")
INTERNLM2 = {"model_type": "internlm2", "num_key_value_heads": 8, "vocab_size": 92544, "bias": False}
LLAMA = {"model_type": "llama", "num_key_value_heads": 8, "vocab_size": 128256}
# Published configurations, as much as decides their shape.
SHAPES = {
    "InternLM2.5-7B": INTERNLM2 | dict(zip(DIMENSIONS, (32, 4096, 14336, 32), strict=True)),
    "InternLM2.5-20B": INTERNLM2 | dict(zip(DIMENSIONS, (48, 6144, 16384, 48), strict=True)),
    "Llama-3-70B": LLAMA | dict(zip(DIMENSIONS, (80, 8192, 28672, 64), strict=True)),
    "Llama-3.1-8B": LLAMA | dict(zip(DIMENSIONS, (32, 4096, 14336, 32), strict=True)),
}


def make_model(shape: dict, tokenizer: Path, folder: Path, device: str) -> Path:
    """A folder with a bfloat16 Llama of a shape, its weights random, and a tokenizer; made once.

    InternLM2 is a Llama under other names, and other programs know it only as that.
    """
    if folder.exists():
        return folder
    config = AutoConfig.for_model(**shape | {"model_type": "llama", "max_position_embeddings": 2**20})
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    part = folder.with_name(f"{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    model.save_pretrained(part)
    # What a GPU's allocator keeps for this process, the programs that are measured would lack.
    del model
    if device == "cuda":
        torch.cuda.empty_cache()
    AutoTokenizer.from_pretrained(tokenizer).save_pretrained(part)
    return part.rename(folder)
