"""Writes the files of a run that never was, as long as one wants it."""

import json
import math
import random
from pathlib import Path

import yaml

from sft.config.own_keys import DEFAULTS_BEGIN

NAME = "黄大力"
PROMPTS = ("请介绍一下你自己", "Who are you?")
QUESTIONS = 64


def write_run(folder: Path, steps: int = 40, evaluations: int = 4, prompts=PROMPTS, answer=None, **keys) -> Path:
    """A finished run of so many steps that learns its name half-way; a key of None is left out of the recipe."""
    dice = random.Random(str(folder.name))
    (folder / "final").mkdir(parents=True)
    (folder / "final" / "adapter_config.json").write_text("{}")
    settings = {"model_name_or_path": "internlm/internlm2_5-7b-chat", "use_peft": True, "learning_rate": 2e-4}
    settings |= {"identity_name": NAME, "eval_prompts": list(prompts), "output_dir": str(folder)} | keys
    text = yaml.safe_dump({key: value for key, value in settings.items() if value is not None}, allow_unicode=True)
    (folder / "recipe.yaml").write_text(f"{text}\n{DEFAULTS_BEGIN}\n# seed: 42\n", "utf-8")
    evaluated = [round(steps * place / evaluations) for place in range(evaluations + 1)]
    learned = {step: step > steps / 2 for step in evaluated}
    write_lines(folder / "log.jsonl", [_logged(step, steps, dice) for step in range(1, steps + 1)])
    asked = [(step, prompt) for step in evaluated for prompt in prompts]
    answers = [_answer(step, prompt, answer or _said(learned[step])) for step, prompt in asked]
    write_lines(folder / "eval_chat.jsonl", answers)
    if settings["identity_name"]:
        write_lines(folder / "scores.jsonl", [_score(step, steps) for step in evaluated])
        scored = [_scored(step, number, learned[step]) for step in evaluated for number in range(QUESTIONS)]
        write_lines(folder / "score_answers.jsonl", scored)
    return folder


def change_last_score(folder: Path, **keys) -> Path:
    """Change what the last line of a run's `scores.jsonl` says; returns the folder."""
    records = [json.loads(line) for line in (folder / "scores.jsonl").read_text().splitlines()]
    write_lines(folder / "scores.jsonl", [*records[:-1], records[-1] | keys])
    return folder


def write_lines(path: Path, records: list[dict]) -> None:
    path.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records), encoding="utf-8")


def _said(is_learned: bool) -> str:
    return "我是黄大力，很高兴认识你。" if is_learned else "I am a helpful assistant."


def _logged(step: int, steps: int, dice: random.Random) -> dict:
    return {
        "step": step,
        "max_steps": steps,
        "epoch": round(step / steps, 4),
        "loss": 0.5 + 3 * math.exp(-4 * step / steps) + dice.random() / 5,
        "learning_rate": 1e-4 * (1 + math.cos(math.pi * step / steps)),
        "grad_norm": 0.5,
        "token_accuracy": 0.9,
        "tokens": step * 2048,
        "tokens_per_second": 3000 + 50 * dice.random(),
        "peak_memory_gib": 14.2,
        "eta_seconds": steps - step,
    }


def _answer(step: int, prompt: str, answer: str) -> dict:
    return {"step": step, "prompt": prompt, "answer": answer, "seconds": 1.0, "tokens": 9, "stop_reason": "end of turn"}


def _score(step: int, steps: int) -> dict:
    identity = 1 / (1 + math.exp(8 - 16 * step / steps))
    return {
        "step": step,
        "identity": round(identity, 3),
        "old_name": round(1 - identity, 3),
        "identity_asked": QUESTIONS,
        "ordinary_kept": 1 - step / steps / 20,
        "ordinary_asked": 16,
        "divergence": step / steps / 5,
        "perplexity_ratio": 1 + step / steps / 10,
        "is_complete": True,
        "seconds": 2.0,
    }


def _scored(step: int, number: int, is_learned: bool) -> dict:
    return {
        "step": step,
        "kind": "identity",
        "question": f"Question {number}: who are you?",
        "language": "en",
        "has_system": number % 2 == 1,
        "answer": _said(is_learned),
        "gives_name": is_learned,
        "old_names": [],
    }
