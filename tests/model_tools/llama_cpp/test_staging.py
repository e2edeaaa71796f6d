"""What llama.cpp is given: no code of a model, which its converter would run, and no question through a proxy."""

import json
import shutil

import pytest
from transformers import AutoConfig, AutoTokenizer

from model_tools.llama_cpp import engine, staging

CODE = """
from pathlib import Path
from transformers import LlamaConfig, PreTrainedTokenizerFast
Path({!r}).touch()
class OwnConfig(LlamaConfig):
    pass
class OwnTokenizer(PreTrainedTokenizerFast):
    pass
"""


def test_code_of_the_model_is_run_by_nobody_who_trusts_it(tiny_model, tmp_path, monkeypatch):
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    model, staged, was_run = tmp_path / "model", tmp_path / "staged", tmp_path / "was run"
    shutil.copytree(tiny_model, model)
    (model / "own.py").write_text(CODE.format(str(was_run)))
    for name, own in (
        ("config.json", {"AutoConfig": "own.OwnConfig"}),
        ("tokenizer_config.json", {"AutoTokenizer": ["own.OwnTokenizer", "own.OwnTokenizer"]}),
    ):
        content = json.loads((model / name).read_text())
        (model / name).write_text(json.dumps(content | {"auto_map": own}))
    staged.mkdir()
    staging.stage(model, AutoTokenizer.from_pretrained(model, trust_remote_code=False), staged)
    # As the converter loads them.
    AutoConfig.from_pretrained(staged, trust_remote_code=True)
    AutoTokenizer.from_pretrained(staged, trust_remote_code=True)
    assert not was_run.exists()
    assert not list(staged.glob("*.py"))


@pytest.mark.parametrize("name", ["HTTP_PROXY", "http_proxy", "ALL_PROXY"])
def test_llama_cpp_is_asked_without_a_proxy(monkeypatch, name):
    monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.delenv("NO_PROXY", raising=False)
    assert not any(engine.Engine("http://127.0.0.1:1", "key")._client._mounts.values())
