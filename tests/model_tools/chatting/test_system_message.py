"""The system message that a run was trained with goes with its model: merged, exported, asked and chatted with."""

import io
import json
import sys
from pathlib import Path

import pytest

from model_tools.__main__ import main
from model_tools.chat import opening_system
from model_tools.checkpoints.model_folder import resolve_model
from sft.models.adapter import read_system_message, write_system_message
from tests.support.taught_models import AFTER, BEFORE, write_pair

SYSTEM = "你是黄大力，\n一个助手。"


@pytest.fixture(scope="module")
def pair(tiny_model, tmp_path_factory) -> tuple[str, str]:
    base, adapter = named_pair(tiny_model, tmp_path_factory.mktemp("pair"))
    write_system_message(adapter, SYSTEM)
    return base, adapter


def named_pair(model, folder, base: str | None = None) -> tuple[str, str]:
    """A base and an adapter that names it, or another one, as its base."""
    own, adapter = write_pair(model, folder, BEFORE, AFTER)
    path = Path(adapter) / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"base_model_name_or_path": base or own}))
    return own, adapter


@pytest.fixture
def say(monkeypatch, capsys):
    def run(lines: str, *arguments: str) -> tuple[str, str]:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(lines.encode())))
        assert main(["chat", *arguments, "--max_new_tokens", "8"]) == 0
        return capsys.readouterr()

    return run


def test_chat_begins_with_it_unless_another_or_none_is_asked_for(pair, say, tmp_path):
    base, adapter = pair
    talk = tmp_path / "talk.jsonl"
    lines = f"你是谁？\n/save {talk}\n/reset\n你是谁？\n/save {talk}\n/system\n你是谁？\n/save {talk}\n"
    for options, system in ((), SYSTEM), (("--system", "x"), "x"), (("--system", ""), None):
        talk.unlink(missing_ok=True)
        err = say(lines, base, "--adapter", adapter, *options)[1]
        said = [json.loads(line)["messages"] for line in talk.read_text(encoding="utf-8").splitlines()]
        told = [{"role": "system", "content": system}] if system else []
        assert [messages[:-2] for messages in said] == [told, told, []]
        assert ("system message: 你是黄大力， 一个助手。\n" in err) == (system == SYSTEM)


def test_a_merged_model_and_an_exported_adapter_carry_it(pair, tmp_path, capsys):
    base, adapter = pair
    assert main(["merge", base, adapter, str(tmp_path / "merged"), "--no-verify"]) == 0
    assert main(["export-adapter", adapter, str(tmp_path / "exported")]) == 0
    for folder in ("merged", "exported"):
        assert read_system_message(tmp_path / folder) == SYSTEM
        assert opening_system(resolve_model(str(tmp_path / folder)), None) == SYSTEM
    capsys.readouterr()


def test_the_message_of_a_base_is_not_that_of_an_adapter_trained_without_one(pair, tmp_path):
    base, adapter = pair
    assert main(["merge", base, adapter, str(tmp_path / "merged"), "--no-verify"]) == 0
    other = named_pair(base, tmp_path, str(tmp_path / "merged"))[1]
    assert opening_system(resolve_model(str(tmp_path / "merged"), other), None) is None
    assert main(["merge", str(tmp_path / "merged"), other, str(tmp_path / "again"), "--no-verify"]) == 0
    assert read_system_message(tmp_path / "again") is None


def test_ask_says_under_which_system_message_it_asks_and_does(pair, tmp_path, capsys):
    questions = tmp_path / "questions.yaml"
    questions.write_text(
        "identity:\n- 你是谁？\nother:\n- Name three colours, please.\n- 2 + 2 = ?\n- 介绍一下你自己\n",
        encoding="utf-8",
    )
    _, adapter = pair
    said = {}
    for system in (None, ""):
        options = [] if system is None else ["--system", system]
        assert main(["ask", adapter, str(questions), "--name", "黄大力", *options]) == 0
        said[system] = capsys.readouterr().out
    assert said[None].startswith("system message: 你是黄大力， 一个助手。\n")
    assert said[""].startswith("system message: the chat template decides\n")
    assert "identity: 黄大力 in 0 of 1 answers before, 1 after" in said[""]  # as it was taught
    assert said[None].partition("\n")[2] != said[""].partition("\n")[2]
