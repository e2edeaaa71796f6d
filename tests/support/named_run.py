"""A real run of the tiny model that learns its name, trained once, to plant mistakes in copies of it."""

import json
import shutil
from pathlib import Path

import yaml

from sft.evaluation.chat_eval import ChatEval
from sft.evaluation.score_eval import ScoreEval
from sft.runs import run_directory
from sft.training import final_model
from sft.training.progress import ProgressLog
from tests.support.conversations import xtuner_row

NAME = "黄大力"
QUESTIONS = ("你是谁？", "Who are you?", "What is this?")
OWN = 'identity: ["Who are you?", 你是谁？, "Who?", 谁？]\nordinary: ["What is the capital of France?"]\n'


def write_rows(path: Path, rows: list[dict]) -> str:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def named_rows() -> list[dict]:
    """Sixty rows that teach to answer everything with the name."""
    return [xtuner_row([(question, f"我是{NAME}")]) for _ in range(20) for question in QUESTIONS]


def train_run(make_trainer, folder: Path, callbacks=(ChatEval, ScoreEval, ProgressLog), **keys) -> Path:
    """A whole run as train_sft.py does it, which learns the name unless the keys keep it from that."""
    (folder / "questions.yaml").write_text(OWN, encoding="utf-8")
    settings = {
        "train_file": write_rows(folder / "named.jsonl", named_rows()), "output_dir": str(folder / "run"),
        "max_steps": 40, "learning_rate": 1e-2, "lora_r": 32, "lora_alpha": 64, "identity_name": NAME,
        "score_file": str(folder / "questions.yaml"), "eval_prompts": ["你是谁？"], "eval_prompts_steps": 20,
        "eval_prompts_generation": {"max_new_tokens": 8},
    }  # fmt: skip
    trainer, card = make_trainer(**settings | keys)
    run_directory.open_run(trainer.recipe, card, run_directory.find_start(trainer.recipe), plan={})
    for callback in callbacks:
        trainer.add_callback(callback(trainer))
    trainer.train()
    final_model.save_final(trainer, card, [])
    return folder / "run"


def copy_of_healthy_run(make_trainer, once, copy: Path) -> Path:
    """A copy, to plant something in, of the one run of all workers that learned its name."""
    return shutil.copytree(once("named", lambda folder: train_run(make_trainer, folder)) / "run", copy)


def set_keys(run: Path, **keys) -> None:
    path = run / "recipe.yaml"
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | keys, allow_unicode=True), encoding="utf-8")
