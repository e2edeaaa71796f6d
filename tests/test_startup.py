"""No front door imports what it does not use: what is missing is reported without torch, whose import takes seconds."""

import json
import subprocess
import sys

import pytest

from sft.core.paths import REPOSITORY

# Runs each command of a list in one process, and prints what it ended with and which heavy packages are there then.
PROGRAM = """
import contextlib, importlib, io, json, os, sys
module, commands, missing = json.loads(sys.argv[1])
sys.modules.update(dict.fromkeys(missing))
from sft.core.errors import UserError
main = importlib.import_module(module).main
for command in commands:
    error = io.StringIO()
    with contextlib.redirect_stderr(error), contextlib.redirect_stdout(io.StringIO()):
        try:
            code = main(command)
        except UserError as problem:
            code, _ = 2, error.write(str(problem))
    heavy = sorted({"torch", "transformers", "peft", "datasets", "gradio", "optuna"} & set(sys.modules) - set(missing))
    print(json.dumps([code, error.getvalue(), heavy]))
"""


def outcomes(module: str, commands: list[list[str]], folder, missing: tuple[str, ...] = ()) -> list:
    """(exit code, error output, heavy packages that were imported by then) of each command."""
    process = subprocess.run(
        [sys.executable, "-c", PROGRAM, json.dumps([module, commands, missing])],
        cwd=folder,
        env={"PYTHONPATH": str(REPOSITORY), "HF_HUB_OFFLINE": "1", "PATH": "/usr/bin:/bin", "HOME": str(folder)},
        capture_output=True,
        text=True,
        check=True,
    )
    return [json.loads(line) for line in process.stdout.splitlines()]


IN_DATA_TOOLS = {
    "inspect none.jsonl": "none.jsonl",
    "inspect rows.jsonl --tokenizer none": "none: ",
    "dedup none.jsonl out.jsonl": "none.jsonl",
    "split none.jsonl --train a.jsonl --eval b.jsonl": "none.jsonl",
    "preview none.yaml": "none.yaml: no such recipe",
    "preview recipe.yaml --model_name_or_path a/b/c": "a/b/c: no such folder",
    "preview recipe.yaml --model_name_or_path a/b/c --eval_file none.jsonl": "a/b/c: no such folder",
    "preview recipe.yaml --train_file none.jsonl": "none.jsonl: no such file",
    "preview recipe.yaml --epochs 3": "epochs: no such setting; here it is num_train_epochs",
    "anchor out.jsonl --model none --prompts none.txt": "none.txt",
    "anchor out.jsonl --model a/b/c --prompts prompts.txt": "a/b/c: no such folder",
}
IN_MODEL_TOOLS = {
    "ask none none.yaml --name a": "none.yaml",
    "chat a/b/c": "a/b/c: no such folder",
    "chat nobody/nothing": "nobody/nothing: it is not in the hub's cache",
    "chat empty": "empty: holds no config.json",
    "diagnose none": "none: no such folder",
    "export-adapter none out": "none: no such file or folder",
    "export-llama a/b/c out": "a/b/c: no such folder",
    "gguf a/b/c out.gguf": "a/b/c: no such folder",
    "import-xtuner none.py out.yaml": "none.py",
    "info none": "none: no such file or folder",
    "merge a/b/c none out": "a/b/c: no such folder",
    "merge base none out": "none: holds no adapter",
    "report none": "none: no run directory",
    "score a/b/c recipe.yaml": "a/b/c: no such folder",
    "score a/b/c recipe.yaml --train_file none.jsonl": "a/b/c: no such folder",
    "score base nameless.yaml": "nameless.yaml: has no identity_name",
    "score a/b/c nameless.yaml --identity_name a": "a/b/c: no such folder",
    "score base recipe.yaml --score_file none.yaml": "score_file: none.yaml: no such file",
    "score base none.yaml": "none.yaml: no such recipe",
    "web a/b/c --port 0": "a/b/c: no such folder",
}
IN_TRAIN_SFT = {
    "none.yaml": "none.yaml: no such recipe",
    "recipe.yaml --model_name_or_path a/b/c": "a/b/c: no such folder",
    "recipe.yaml --model_name_or_path empty": "empty: holds no config.json",
    "recipe.yaml --train_file none.jsonl": "none.jsonl: no such file",
}
IN_SWEEP = {
    "none.yaml lora_r=8,16": "none.yaml: no such recipe",
    "recipe.yaml --max_steps 10 lora_r=8,16": "--max_steps: a key of the recipe: write max_steps=10;",
    "recipe.yaml --max_steps=10 lora_r=8,16": "--max_steps: a key of the recipe: write max_steps=10;",
    "recipe.yaml --epochs 3 lora_r=8,16": "--epochs: no such setting; here it is num_train_epochs;",
    "recipe.yaml lora_r=8,16 model_name_or_path=empty": "empty: holds no config.json",
}


@pytest.fixture
def workplace(tmp_path):
    """A folder with a recipe whose model is a hub id, a row, an empty folder and what passes for a base model."""
    row = {"conversation": [{"input": "a", "output": "b"}]}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n")
    (tmp_path / "prompts.txt").write_text("Who are you?\n")
    (tmp_path / "recipe.yaml").write_text(
        "model_name_or_path: nobody/nothing\ntrain_file: rows.jsonl\nuse_peft: true\nidentity_name: a\n"
    )
    (tmp_path / "nameless.yaml").write_text("lora_r: 8\nuse_peft: true\n")
    (tmp_path / "empty").mkdir()
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "config.json").write_text('{"model_type": "llama"}')
    return tmp_path


@pytest.mark.parametrize(
    ("module", "commands"),
    [
        ("data_tools.__main__", IN_DATA_TOOLS),
        ("model_tools.__main__", IN_MODEL_TOOLS),
        ("train_sft", IN_TRAIN_SFT),
        ("sweep", IN_SWEEP),
    ],
    ids=["data_tools", "model_tools", "train_sft", "sweep"],
)
def test_what_is_missing_is_reported_without_the_stack(workplace, module, commands):
    results = outcomes(module, [command.split() for command in commands], workplace)
    for (command, said), (code, error, heavy) in zip(commands.items(), results, strict=True):
        assert (code, heavy) == (2, []), command
        assert said in error, command


def test_a_package_that_is_missing_is_reported_without_the_stack(workplace):
    ((code, error, heavy),) = outcomes("model_tools.__main__", [["web", "base"]], workplace, missing=("gradio",))
    assert (code, heavy) == (2, [])
    assert error.endswith("Gradio is not installed: python -m pip install -r requirements-web.txt\n")
    command = ["recipe.yaml", "lora_r=8,16", "--optuna", "2"]
    ((code, error, heavy),) = outcomes("sweep", [command], workplace, missing=("optuna",))
    assert (code, heavy) == (2, [])
    assert error == "--optuna needs Optuna: python -m pip install -r requirements-sweep.txt"


def test_info_reads_a_model_and_an_adapter_without_torch(tiny_model, tmp_path):
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    model = get_peft_model(
        AutoModelForCausalLM.from_pretrained(tiny_model), LoraConfig(r=4, target_modules="all-linear")
    )
    model.save_pretrained(tmp_path / "adapter")
    commands = [["info", str(tiny_model)], ["info", str(tmp_path / "adapter")]]
    results = outcomes("model_tools.__main__", commands, tmp_path)
    assert [(code, heavy) for code, _, heavy in results] == [(0, [])] * 2


def test_a_preview_reads_a_recipe_without_what_only_training_needs(write_recipe, tmp_path):
    for_training = {"peft", "bitsandbytes", "deepspeed", "torch._inductor.compile_fx"}
    program = (
        "import sys; from data_tools.__main__ import main; main(sys.argv[1:]); "
        f"print(); print(sorted({for_training} & set(sys.modules)))"
    )
    command = [sys.executable, "-c", program, "preview", str(write_recipe()), "--max_length", "256"]
    shown = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout
    assert shown.splitlines()[-1] == "[]"
