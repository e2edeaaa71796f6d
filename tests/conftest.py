"""The smallest real things, built once a session: a two-layer Llama, its tokenizer, a few conversations."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
# Models this small are slower on several threads than on one, many times so beside another worker.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import yaml
from filelock import FileLock

from sft.core.console import quiet_the_stack
from sft.core.language import VARIABLES
from tests.support.conversations import CONVERSATIONS, xtuner_row
from tests.support.forked_runs import OUTCOME, Runs
from tests.support.recipes import SMALL_LORA

quiet_the_stack()


def pytest_terminal_summary(terminalreporter):
    passed = terminalreporter.stats.get("passed", [])
    outcomes = [line for report in passed for name, line in report.user_properties if name == OUTCOME]
    if outcomes:
        terminalreporter.write_line("\n| fault | outcome |\n| --- | --- |")
        for fault, became in outcomes:
            terminalreporter.write_line(f"| {fault} | {became} |")


@pytest.fixture(autouse=True)
def no_notice(monkeypatch):
    """On a slow machine what a test compares would hold notices of what is waited for, which test_console is about."""
    monkeypatch.setattr("sft.core.console.SILENCE", 600.0)


@pytest.fixture(autouse=True)
def no_language(monkeypatch):
    """Whatever the machine's locale is and another test chose, texts are shown in both languages."""
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("LANG", "C.UTF-8")
    monkeypatch.setattr("sft.core.language._chosen", None)


@pytest.fixture(scope="session")
def once(request, tmp_path_factory):
    """Have a folder filled by `fill(folder)`, once for all workers that run tests beside each other; returns it."""
    own = tmp_path_factory.getbasetemp()
    shared = (own.parent if hasattr(request.config, "workerinput") else own) / "shared"
    shared.mkdir(exist_ok=True)

    def make(name: str, fill: Callable[[Path], object]) -> Path:
        folder, is_done = shared / name, shared / f"{name}.done"
        with FileLock(shared / f"{name}.lock"):
            if not is_done.exists():
                folder.mkdir()  # fails again where it has failed before
                fill(folder)
                is_done.touch()
        return folder

    return make


@pytest.fixture(scope="session")
def tokenizer():
    """A byte-level BPE of 400 pieces with SmolLM2's chat template."""
    from tests.support.tokenizer import tiny_tokenizer

    return tiny_tokenizer()


@pytest.fixture(scope="session")
def tiny_model(tokenizer, once) -> Path:
    """A folder with a randomly initialised Llama of two layers and its tokenizer."""

    def save(models: Path) -> None:
        import torch
        from transformers import LlamaConfig, LlamaForCausalLM

        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=512,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
        LlamaForCausalLM(config).save_pretrained(models / "tiny-llama")
        tokenizer.save_pretrained(models / "tiny-llama")

    return once("models", save) / "tiny-llama"


@pytest.fixture(scope="session")
def train_file(once) -> Path:
    """Forty rows in XTuner's form."""

    def write(folder: Path) -> None:
        rows = [xtuner_row(CONVERSATIONS[index % len(CONVERSATIONS)]) for index in range(40)]
        lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
        (folder / "train.jsonl").write_text("".join(lines), encoding="utf-8")

    return once("data", write) / "train.jsonl"


@pytest.fixture(scope="session")
def runs():
    """Starts runs of `train_sft.py` in processes of their own that need not import the stack."""
    server = Runs()
    yield server
    server.close()


@pytest.fixture
def write_recipe(tiny_model, train_file, tmp_path):
    """Write a small LoRA recipe on the tiny model, with the given keys on top; returns its path."""

    def write(**keys) -> Path:
        settings = {
            "model_name_or_path": str(tiny_model),
            "train_file": str(train_file),
            "output_dir": str(tmp_path / "run"),
            **SMALL_LORA,
            "lr_scheduler_type": "cosine",
            "warmup_steps": 0.03,
            "save_strategy": "no",
            "max_steps": 4,
            "logging_steps": 1,
            "report_to": "none",
        } | keys
        path = tmp_path / "tiny.yaml"
        path.write_text(yaml.safe_dump(settings, allow_unicode=True), encoding="utf-8")
        return path

    return write


@pytest.fixture
def make_trainer(write_recipe):
    """Build the real trainer of a recipe, as train_sft.py does; returns it with its dataset card."""

    def make(**keys):
        from sft.config.settings import read_settings
        from sft.data.dataset import load_dataset, load_held_out
        from sft.models.loading import load_model, load_tokenizer
        from sft.training import launch
        from sft.training.trainer import RecipeTrainer

        recipe = launch.start(read_settings([str(write_recipe(**keys))]))
        tokenizer = load_tokenizer(recipe.model.model_name_or_path)
        packs, card = load_dataset(recipe, tokenizer)
        Path(recipe.training.output_dir).mkdir(exist_ok=True)
        held_out = load_held_out(recipe, tokenizer)
        return RecipeTrainer(recipe, load_model(recipe.model), tokenizer, packs, held_out, card=card), card

    return make


@pytest.fixture(scope="session")
def workplace(once, tiny_model) -> Path:
    """A repository in which a person has done the first steps."""
    from tests.support.workplace import make_workplace

    return once("workplace", lambda folder: make_workplace(folder, tiny_model))


@pytest.fixture
def here(workplace, tmp_path) -> Path:
    """A copy of it for one test."""
    return shutil.copytree(workplace, tmp_path / "sft", symlinks=True)
