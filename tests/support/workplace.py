"""A copy of the repository as a person's is after the first steps: small models, data, short recipes, finished runs."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import yaml
from peft import LoraConfig, get_peft_model

from sft.core.paths import REPOSITORY
from tests.support.conversations import SMOLLM2_TEMPLATE
from tests.support.launching import BIN, free_port, launch
from tests.support.published_internlm2 import PublishedInternLM2, random_weights, tiny_internlm2
from tests.support.taught_models import write_pair
from tests.support.xtuner_configs import QLORA
from tests.support.xtuner_files import write_xtuner, xtuner_config

NOT_OF_A_CLONE = {".git", ".venv", "data", "models", "work_dirs"}
# What makes a recipe short, and one that a CPU can run.
SHORT = {
    "dtype": "float32",
    "fp16": False,
    "bf16": False,
    "lora_r": 8,
    "lora_alpha": 2,
    "max_steps": 2,
    "eval_prompts_generation": {"max_new_tokens": 2},
    "score_seconds": 0.1,
}
PYTHON = BIN / "python"
HUB_ID = "internlm/internlm2_5-7b-chat"
PORTS = {"deepspeed": "--master_port", "torchrun": "--master_port", "accelerate launch": "--main_process_port"}


def make_workplace(folder: Path, tiny_model: Path) -> None:
    """Fill an empty folder."""
    shutil.copytree(REPOSITORY, folder, ignore=_not_copied, dirs_exist_ok=True)
    _borrow_environment(folder)
    _write_models(folder, tiny_model)
    _write_data(folder)
    _write_recipes(folder)
    run = "train_sft.py recipes/{}.yaml"
    for command in (
        run.format("huangdali"),
        run.format("demo"),
        f"-m model_tools merge {HUB_ID} work_dirs/huangdali models/huangdali --no-verify",
        f"-m model_tools export-llama {HUB_ID} models/internlm2_5-llama --no-verify",
    ):
        ended = launch(PYTHON, *command.split(), cwd=folder)
        assert ended.returncode == 0, ended.stdout + ended.stderr
    for name in ("a", "b"):
        shutil.copytree(folder / "work_dirs" / "demo", folder / "work_dirs" / name)


def start(command: str, folder: Path, locale: str = "C.UTF-8", **options) -> subprocess.Popen:
    """A command as a person types it there, in a shell of this locale with the environment activated, offline."""
    for program, port in PORTS.items():
        command = re.sub(rf"^{program} ", f"{program} {port} {free_port()} ", command)
    environment = os.environ | {"PATH": f"{BIN}:{os.environ['PATH']}", "HF_HUB_OFFLINE": "1", "LANG": locale}
    environment.pop("PYTHONPATH", None)
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    return subprocess.Popen(
        ["bash", "-c", f"exec {command}" if "|" not in command else command],
        cwd=folder, env=environment, text=True, start_new_session=True, **(pipes | options),
    )  # fmt: skip


def _not_copied(folder: str, names: list[str]) -> set[str]:
    at_top = NOT_OF_A_CLONE if Path(folder) == REPOSITORY else set()
    return {name for name in names if name in at_top or name.endswith(("_cache", "__pycache__"))}


def _borrow_environment(folder: Path) -> None:
    """A `.venv` that make finds ready: the environment of this test."""
    (folder / ".venv").mkdir()
    for name in ("bin", "include", "lib", "pyvenv.cfg"):
        (folder / ".venv" / name).symlink_to(Path(sys.prefix) / name)
    (folder / ".venv" / "ready").touch()


def _write_models(folder: Path, tiny_model: Path) -> None:
    models = folder / "models"
    models.mkdir()
    base, _ = write_pair(tiny_model, models, "Ask away.", "Ask away.")
    Path(base).rename(models / "smollm2-135m-instruct")
    shutil.rmtree(models / "adapter")
    (folder / "internlm").mkdir()
    shutil.copytree(tiny_internlm2(folder / HUB_ID), models / "internlm2_5-7b-chat")
    own = PublishedInternLM2(random_weights(64, 4, 2, inner=128, vocabulary=1200), 64, 4, 2)
    adapted = get_peft_model(own, LoraConfig(r=4, lora_alpha=12, target_modules=["wqkv", "wo"]))
    state = {f"llm.{name}": value for name, value in adapted.state_dict().items() if "lora_" in name}
    (folder / "work_dirs" / "old").mkdir(parents=True)
    write_xtuner(folder / "work_dirs/old/iter_500.pth", state, xtuner_config(folder / HUB_ID, rank=4, alpha=12))


def _write_data(folder: Path) -> None:
    data = folder / "data"
    data.mkdir()
    generate = [PYTHON, "-m", "data_tools", "generate", "--name", "黄大力", "--seed", "0", "--rows"]
    for rows, file, *options in ((200, "huangdali", "--holdout", "questions.yaml"), (60, "demo")):
        ended = launch(*generate, rows, f"data/{file}.jsonl", *options, cwd=folder)
        assert ended.returncode == 0, ended.stderr
    shutil.copy(data / "huangdali.jsonl", data / "messages.jsonl")
    # As the tutorial has it: no question, and a name that must go.
    questions = ["你知道你是人工智能吗?", "Who are you?"]
    nested = {"conversation": [{"system": "S", "input": "xxx", "output": "xxx"}]}
    rows = [{"conversation": [{"system": "S", "input": nested, "output": "我是尖米的智能助手。"}]}] * 20
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
    (folder / "assistant_Tuner.jsonl").write_text("".join(lines), encoding="utf-8")
    for name in ("Q_list.txt", "questions.txt"):
        (folder / name).write_text("\n".join(questions) + "\n", encoding="utf-8")
    repair = [PYTHON, "-m", "data_tools", "repair", "assistant_Tuner.jsonl", "repaired.jsonl"]
    ended = launch(*repair, "--questions", "Q_list.txt", cwd=folder)
    assert ended.returncode == 0, ended.stderr
    template = {"family": "smollm2", "template": SMOLLM2_TEMPLATE, "bos": "<|im_start|>", "eos": "<|im_end|>"}
    (folder / "templates.json").write_text(json.dumps([template]), encoding="utf-8")


def _write_recipes(folder: Path) -> None:
    recipes = folder / "recipes"
    for name in ("demo", "huangdali"):
        recipe = yaml.safe_load((recipes / f"{name}.yaml").read_text(encoding="utf-8"))
        (recipes / f"{name}.yaml").write_text(yaml.safe_dump(recipe | SHORT, allow_unicode=True), encoding="utf-8")
    shutil.copy(recipes / "huangdali.yaml", recipes / "mine.yaml")
    (folder / "CONFIG.py").write_text(QLORA, encoding="utf-8")
