"""What the benchmarks of training have every program do: a recipe, and conversations to train on.

"demo" is recipes/demo.yaml with its own model. "internlm2_5_7b" is recipes/huangdali.yaml in bfloat16 and 1,500 rows
that are made for it, on a model of InternLM2.5-7B's shape with random weights.
"""

import argparse
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml

from benchmarks.shapes import SHAPES, make_model
from sft.core.paths import REPOSITORY
from sft.data.rows.formats import read_rows
from sft.models.precision import of_this_cpu

# Written into every row, since LLaMA-Factory and XTuner do not use the model's own chat template, which adds it.
SYSTEM = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
MODEL = REPOSITORY / "models/smollm2-135m-instruct"
MADE = REPOSITORY / "work_dirs/benchmarks"


@dataclass(frozen=True)
class Task:
    """The settings of a recipe, the conversations to train on, and "cpu" or "cuda"."""

    recipe: dict[str, Any]
    conversations: list[list[dict[str, str]]]
    device: str


def add_device(parser: argparse.ArgumentParser) -> None:
    """The argument that says where to train."""
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")


def device_of(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> str:
    """Where to train; ends the program where there is no such device."""
    if arguments.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch finds no GPU here")
    return arguments.device


def precision_on(device: str) -> dict[str, str | bool]:
    """The precision that adapters get on this CPU or have on a GPU, where a recipe names none."""
    return of_this_cpu(use_peft=True) if device == "cpu" else {"dtype": "bfloat16", "bf16": True, "fp16": False}


def demo(device: str) -> Task:
    """The demo's recipe."""
    recipe = _recipe("demo") | precision_on(device) | {"model_name_or_path": str(MODEL)}
    return Task(recipe, _with_system(REPOSITORY / recipe["train_file"]), device)


def tutorial(device: str) -> Task:
    """The tutorial's recipe on a model of 15 GB, which only a GPU trains in any time.

    In bfloat16, which every program can: fp16's scaler refuses the adapters that TRL keeps in bfloat16.
    """
    model, rows = tutorial_files(device)
    recipe = _recipe("huangdali") | precision_on(device) | {"model_name_or_path": str(model)}
    return Task(recipe, _with_system(rows), device)


def tutorial_files(device: str) -> tuple[Path, Path]:
    """A model of InternLM2.5-7B's shape and 1,500 rows; made once."""
    MADE.mkdir(parents=True, exist_ok=True)
    rows = MADE / "huangdali.jsonl"
    generate = ["data_tools", "generate", "--name", "黄大力", "--rows", "1500", "--seed", "0", "--force"]
    subprocess.run([sys.executable, "-m", *generate, str(rows)], cwd=REPOSITORY, check=True)
    return make_model(SHAPES["InternLM2.5-7B"], MODEL, MADE / "internlm2_5_7b", device), rows


TASKS = {"demo": demo, "internlm2_5_7b": tutorial}


def _recipe(name: str) -> dict[str, Any]:
    return yaml.safe_load((REPOSITORY / f"recipes/{name}.yaml").read_text(encoding="utf-8"))


def _with_system(path: Path) -> list[list[dict[str, str]]]:
    """The file's conversations, each with the system message that the model's own template would add."""
    rows = (row["messages"] for _, row in read_rows(str(path)))
    system = {"role": "system", "content": SYSTEM}
    return [row if row[0]["role"] == "system" else [system, *row] for row in rows]
