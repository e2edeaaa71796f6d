"""GGUF files: written by llama.cpp's converter, read by llama.cpp, and found to be the model or said not to be it."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import openai
import pytest
import torch
from gguf import GGUFReader
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from model_tools.__main__ import main
from model_tools.checkpoints.asked import QUESTIONS, Asked
from model_tools.llama_cpp import check, engine, programs
from sft.core.paths import REPOSITORY
from sft.models.internlm2_tokenizer import CHAT_TEMPLATE, build_tokenizer
from tests.support.chat_templates import INST
from tests.support.conversations import SMOLLM2_TEMPLATE
from tests.support.launching import hear_interrupts
from tests.support.ollama import read_modelfile, render
from tests.support.serving import serving
from tests.support.taught_models import AFTER, teach
from tests.support.tokenizer import sentencepiece_tokenizer

DEMO = REPOSITORY / "models/smollm2-135m-instruct"
PIECES = REPOSITORY.parent / "shared/data/internlm2/tokenizer.model"
SYSTEM = '你是"黄大力"。\nBe kind.'
CONTROLS = ("<|im_start|>", "<|im_end|>", "<stop>", "<halt>")
TAUGHT = dict.fromkeys(QUESTIONS, AFTER)
# What is waited for, said where it takes longer than a moment.
NOTICES = {
    "loading PyTorch and Transformers", "llama.cpp's converter reads the weights", "asking llama.cpp",
    "asking the model in Transformers",
}  # fmt: skip
needs_demo = pytest.mark.skipif(not DEMO.is_dir(), reason="the demo model's tokenizer, which the converter knows")


def save_llama(folder: Path, tokenizer, hidden: int = 64, **keys) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=hidden, intermediate_size=2 * hidden, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=2048,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
        **keys,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return model


def said(capsys) -> str:
    """The one line that a mistake is answered with."""
    [line] = [line for line in capsys.readouterr().err.splitlines() if line.startswith("model_tools gguf: ")]
    return line.removeprefix("model_tools gguf: ")


@pytest.fixture(scope="session")
def taught(once) -> Path:
    """A model that was taught to call itself 黄大力."""

    def make(folder: Path) -> None:
        tokenizer = sentencepiece_tokenizer(SMOLLM2_TEMPLATE, controls=CONTROLS)
        model = save_llama(folder / "taught", tokenizer, tie_word_embeddings=True)
        teach(model, tokenizer, TAUGHT)
        model.save_pretrained(folder / "taught")

    return once("taught", make) / "taught"


@pytest.fixture(scope="session")
def written(once, taught) -> Path:
    """The folder of what the verb made of the taught model, with what it printed."""

    def make(folder: Path) -> None:
        shutil.copytree(taught, folder / "with system")
        (folder / "with system" / "system_message.txt").write_text(SYSTEM, encoding="utf-8")
        command = [sys.executable, "-m", "model_tools", "gguf", folder / "with system", folder / "黄大力 1.gguf"]
        ended = subprocess.run([*command, "--name", "黄大力"], cwd=REPOSITORY, capture_output=True, text=True)
        (folder / "printed").write_text(ended.stdout, encoding="utf-8")
        (folder / "errors").write_text(f"{ended.returncode}\n{ended.stderr}", encoding="utf-8")

    return once("gguf", make)


def metadata(path: Path, key: str):
    return GGUFReader(path).get_field(key).contents()


@pytest.mark.long
def test_the_file_is_what_the_model_is_and_says_its_name(written):
    errors = (written / "errors").read_text()
    assert errors.startswith("0\n"), errors
    first, *lines = [line for line in (written / "printed").read_text().splitlines() if line not in NOTICES]
    assert re.fullmatch(r".*黄大力 1\.gguf: f16, \d+ MiB", first)
    assert lines == [
        "template       8 of 8 prompts as the chat template",
        "tokens         8 of 8 prompts as the tokenizer",
        "stops          at </s>, <|im_end|>",
        "answers        2 of 2 the same in Transformers and llama.cpp",
        "name           黄大力 in 2 of 2 answers in Transformers, in 2 in llama.cpp",
        f"for Ollama: ollama create my-model -f '{written}/黄大力 1.Modelfile'",
    ]
    assert sorted(path.name for path in written.iterdir()) == [
        "errors", "printed", "with system", "黄大力 1.Modelfile", "黄大力 1.gguf",
    ]  # fmt: skip


@pytest.mark.long
def test_llama_cpp_stays_out_of_the_console(written):
    assert set((written / "errors").read_text().splitlines()[1:]) <= NOTICES


@pytest.mark.long
def test_the_modelfile_has_template_system_message_and_stop_tokens(written, taught):
    read = read_modelfile((written / "黄大力 1.Modelfile").read_text(encoding="utf-8"))
    assert [name for name, _ in read] == ["FROM", "TEMPLATE", "SYSTEM", "stop", "stop"]
    assert [value for _, value in read if value != read[1][1]] == ["./黄大力 1.gguf", SYSTEM, "</s>", "<|im_end|>"]
    messages = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": "你是谁？"}]
    tokenizer = AutoTokenizer.from_pretrained(taught)
    expected = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert render(read[1][1], messages) == expected


def changed(written: Path, out: Path, *words: str) -> Path:
    """A copy of the file with other metadata, by llama.cpp's own program."""
    script = programs.find_sources(None) / programs.NEW_METADATA
    assert programs.run([sys.executable, str(script), *words, str(written / "黄大力 1.gguf"), str(out)]) is None
    return out


def found(gguf: Path, model: Path) -> list[str]:
    asked = Asked(list(QUESTIONS), None, "黄大力")
    findings = check.compare(gguf, model, AutoTokenizer.from_pretrained(model), "f16", asked)
    wrong = [line for line in findings.lines if "WRONG" in line]
    assert findings.is_wrong == bool(wrong)
    return wrong


@pytest.mark.long
def test_a_file_with_another_template_is_not_passed(written, taught, tmp_path):
    template = tmp_path / "chat_template.jinja"
    template.write_text("{% for m in messages %}<|im_start|>{{ m.role }}: {{ m.content }}<|im_end|>{% endfor %}")
    gguf = changed(written, tmp_path / "other.gguf", "--chat-template-file", str(template))
    wrong = found(gguf, taught)
    assert wrong[0].startswith(
        "template       WRONG: 0 of 8 prompts as the chat template; after 12 alike the model has "
    )


@pytest.mark.long
def test_a_file_that_puts_a_token_before_every_prompt_is_not_passed(written, taught, tmp_path):
    gguf = shutil.copyfile(written / "黄大力 1.gguf", tmp_path / "other.gguf")
    script = programs.find_sources(None) / programs.NEW_METADATA.with_name("gguf_set_metadata.py")
    key = ["tokenizer.ggml.add_bos_token", "1"]
    assert programs.run([sys.executable, str(script), "--force", str(gguf), *key]) is None
    [wrong] = found(gguf, taught)
    assert wrong.startswith("tokens         WRONG: 0 of 8 prompts as the tokenizer; after 0 alike the model has ")


@pytest.mark.long
def test_a_file_that_does_not_stop_is_not_passed(written, taught, tmp_path):
    """llama.cpp knows <|im_end|> by its name, and <halt> only where the file says so."""
    model = tmp_path / "model"
    shutil.copytree(taught, model)
    halt = AutoTokenizer.from_pretrained(model).convert_tokens_to_ids("<halt>")
    (model / "generation_config.json").write_text(json.dumps({"eos_token_id": halt}))
    assert found(written / "黄大力 1.gguf", model) == ["stops          WRONG: not at <halt>"]


@pytest.mark.long
def test_a_file_of_other_weights_is_not_passed(written, taught, tmp_path):
    model = tmp_path / "model"
    shutil.copytree(taught, model)
    weights = load_file(model / "model.safetensors")
    save_file({name: value.flip(0) for name, value in weights.items()}, model / "model.safetensors", {"format": "pt"})
    asked = Asked(list(QUESTIONS), None, None)
    findings = check.compare(written / "黄大力 1.gguf", model, AutoTokenizer.from_pretrained(model), "f16", asked)
    assert "answers        WRONG: 0 of 2 the same in Transformers and llama.cpp" in findings.lines
    assert f"    llama.cpp    {' '.join(AFTER.split())}" in findings.lines


@pytest.mark.long
def test_every_end_of_an_answer_is_one_in_llama_cpp_too(tmp_path, capsys):
    """The turn ends with a token that llama.cpp does not know by name, and generation_config names another such."""
    tokenizer = sentencepiece_tokenizer(SMOLLM2_TEMPLATE.replace("<|im_end|>", "<stop>"), controls=CONTROLS)
    stop, halt = tokenizer.convert_tokens_to_ids(["<stop>", "<halt>"])
    save_llama(tmp_path / "model", tokenizer)
    (tmp_path / "model" / "generation_config.json").write_text(json.dumps({"eos_token_id": [stop, halt]}))
    main(["gguf", str(tmp_path / "model"), str(tmp_path / "x.gguf")])
    assert "stops          at </s>, <stop>, <halt>\n" in capsys.readouterr().out
    assert metadata(tmp_path / "x.gguf", "tokenizer.ggml.eos_token_id") == stop
    assert metadata(tmp_path / "x.gguf", "tokenizer.ggml.eot_token_id") == halt


@pytest.mark.long
@pytest.mark.parametrize("kind", ["q8_0", "q4_k_m"])
def test_smaller_types_are_written_and_compared(taught, tmp_path, capsys, kind):
    out = tmp_path / "x.gguf"
    assert main(["gguf", str(taught), str(out), "--type", kind.upper(), "--name", "黄大力"]) == 0, capsys.readouterr()
    printed = capsys.readouterr().out
    assert "tokens         8 of 8 prompts as the tokenizer" in printed
    assert re.search(r"name +黄大力 in 2 of 2 answers in Transformers, in [12] in llama.cpp", printed)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x.Modelfile", "x.gguf"]
    assert out.stat().st_size < 0.6 * (
        2 * sum(value.numel() for value in load_file(taught / "model.safetensors").values())
    )


@pytest.mark.long
@pytest.mark.skipif(not PIECES.is_file(), reason="InternLM2's own tokenizer.model is not here")
def test_internlm2s_own_vocabulary_gives_its_ids(tmp_path, capsys):
    tokenizer = build_tokenizer(PIECES, 92544)
    save_llama(tmp_path / "model", tokenizer, hidden=16)
    shutil.copyfile(PIECES, tmp_path / "model" / "tokenizer.model")
    # Random weights answer at random, which rounding changes.
    main(["gguf", str(tmp_path / "model"), str(tmp_path / "x.gguf")])
    printed = capsys.readouterr().out
    assert "template       8 of 8 prompts as the chat template\n" in printed
    assert "tokens         8 of 8 prompts as the tokenizer\n" in printed
    assert "stops          at </s>, <|im_end|>\n" in printed
    with engine.opened(tmp_path / "x.gguf") as opened:
        for text in (
            "Hello, 世界！  你是谁？\n\tdef f(x): return x**2",
            " a  b\n\n é 🙂 龘 \0x",
            "<|im_start|>user\n 好<|im_end|>\n",
        ):
            assert opened.tokens(text) == tokenizer(text, add_special_tokens=False)["input_ids"]
    modelfile = (tmp_path / "x.Modelfile").read_text(encoding="utf-8")
    assert "<s>" not in dict(read_modelfile(modelfile))["TEMPLATE"]


@pytest.mark.long
@pytest.mark.parametrize("adds_space", [False, True])
@pytest.mark.parametrize("template", [INST, CHAT_TEMPLATE.removeprefix("{{ bos_token }}")], ids=["bos", "no bos"])
def test_a_tokenizer_json_alone_gives_its_ids(tmp_path, capsys, template, adds_space):
    """The converter gives its pieces one score for all, its family's bos and its family's first blank."""
    save_llama(tmp_path / "model", sentencepiece_tokenizer(template, adds_space=adds_space))
    main(["gguf", str(tmp_path / "model"), str(tmp_path / "x.gguf")])
    printed = capsys.readouterr().out
    assert re.search(r"template +(\d) of \1 prompts as the chat template\n", printed), printed
    assert re.search(r"tokens +(\d) of \1 prompts as the tokenizer\n", printed), printed
    assert metadata(tmp_path / "x.gguf", "tokenizer.ggml.add_bos_token") == (template == INST)
    assert metadata(tmp_path / "x.gguf", "tokenizer.ggml.add_space_prefix") == adds_space


@pytest.mark.long
@pytest.mark.parametrize("by", [signal.SIGINT, signal.SIGKILL])
def test_what_is_stopped_leaves_nothing_that_the_next_does_not_remove(taught, tmp_path, by):
    out = tmp_path / "out" / "x.gguf"
    command = [sys.executable, "-m", "model_tools", "gguf", taught, out, "--type", "q4_k_m"]
    process = subprocess.Popen(
        command,
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        preexec_fn=hear_interrupts,
    )
    while not list(tmp_path.glob("out/.x.gguf.partial.*/between.gguf")):
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.02)
    os.kill(process.pid, by)
    process.communicate()
    assert not out.exists()
    if by == signal.SIGKILL:
        assert list(out.parent.iterdir())
        assert subprocess.run(command, cwd=REPOSITORY, capture_output=True).returncode == 0
        assert sorted(path.name for path in out.parent.iterdir()) == ["x.Modelfile", "x.gguf"]
    else:
        assert process.returncode == 130
        assert list(out.parent.iterdir()) == []


@pytest.mark.long
@needs_demo
def test_the_merged_demo_says_its_name_alike_in_transformers_in_transformers_serve_and_in_llama_cpp(tmp_path, capsys):
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(DEMO)
    modules, layers = ["q_proj", "v_proj", "down_proj"], list(range(20, 30))
    adapted = LoraConfig(r=16, lora_alpha=32, target_modules=modules, layers_to_transform=layers)
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(DEMO), adapted)
    teach(model, tokenizer, TAUGHT)
    model.save_pretrained(tmp_path / "adapter")
    merged, out = tmp_path / "merged", tmp_path / "demo.gguf"
    assert main(["merge", str(DEMO), str(tmp_path / "adapter"), str(merged), "--no-verify"]) == 0
    assert main(["gguf", str(merged), str(out), "--name", "黄大力"]) == 0, capsys.readouterr()
    printed = capsys.readouterr().out
    assert "answers        2 of 2 the same in Transformers and llama.cpp\n" in printed
    assert "name           黄大力 in 2 of 2 answers in Transformers, in 2 in llama.cpp\n" in printed
    questions = [[{"role": "user", "content": question}] for question in QUESTIONS]
    with engine.opened(out) as opened:
        by_llama_cpp = [opened.answer(messages, 60).strip() for messages in questions]
    with serving(merged, tmp_path / "serve.log") as address:
        chat = openai.OpenAI(base_url=address + "/v1", api_key="none").chat.completions
        asking = {"model": str(merged), "temperature": 0, "max_tokens": 60}
        served = [chat.create(messages=messages, **asking).choices[0].message.content.strip() for messages in questions]
    assert served == by_llama_cpp == [AFTER, AFTER]


class TestMistakes:
    """Each is one line, exit code 2, and nothing is written."""

    def refused(self, capsys, tmp_path, model, *words: str, out: str = "x.gguf") -> str:
        assert main(["gguf", str(model), str(tmp_path / out), *words]) == 2
        assert not (tmp_path / "x.gguf").exists()
        assert not list(tmp_path.glob(".*"))
        return said(capsys)

    def test_an_adapter(self, tmp_path, capsys):
        (tmp_path / "run" / "final").mkdir(parents=True)
        (tmp_path / "run" / "final" / "adapter_config.json").write_text("{}")
        line = self.refused(capsys, tmp_path, tmp_path / "run")
        assert line.endswith(f"merge it first, with: python -m model_tools merge BASE {tmp_path}/run MERGED")

    def test_no_model(self, tmp_path, capsys):
        (tmp_path / "empty").mkdir()
        assert "holds no config.json" in self.refused(capsys, tmp_path, tmp_path / "empty")
        (tmp_path / "file").touch()
        assert "is a file: name the folder of a model" in self.refused(capsys, tmp_path, tmp_path / "file")

    def test_another_ending(self, tiny_model, tmp_path, capsys):
        assert "ends in .gguf" in self.refused(capsys, tmp_path, tiny_model, out="x.bin")

    @pytest.mark.parametrize("there", ["x.gguf", "x.Modelfile"])
    def test_a_file_that_is_there(self, tiny_model, tmp_path, capsys, there):
        (tmp_path / there).write_text("precious")
        assert main(["gguf", str(tiny_model), str(tmp_path / "x.gguf")]) == 2
        assert f"{there}: is there already: name another file, or overwrite it with --force" in said(capsys)
        assert (tmp_path / there).read_text() == "precious"

    @pytest.mark.parametrize(
        ("package", "words", "line"),
        [
            ("ENGINE", [], "llama.cpp itself, which the file is checked with, is not installed: "),
            ("SOURCES", [], "llama.cpp's converter is not installed: "),
            ("QUANTISER", ["--type", "q4_k_m"], "nothing here quantises below 8 bits: "),
        ],
    )
    def test_a_package_that_is_missing(self, tiny_model, tmp_path, capsys, monkeypatch, package, words, line):
        monkeypatch.setattr(programs, package, "no_such_package")
        monkeypatch.setenv("PATH", "")
        printed = self.refused(capsys, tmp_path, tiny_model, *words)
        assert printed.startswith(line + "python -m pip install -r requirements-gguf.txt")

    def test_a_checkout_that_is_none(self, tiny_model, tmp_path, capsys):
        assert "holds no convert_hf_to_gguf.py" in self.refused(capsys, tmp_path, tiny_model, "--llama-cpp", "docs")

    def test_a_quantised_model(self, tiny_model, tmp_path, capsys):
        shutil.copytree(tiny_model, tmp_path / "model")
        config = json.loads((tmp_path / "model" / "config.json").read_text())
        config["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_4bit": True}
        (tmp_path / "model" / "config.json").write_text(json.dumps(config))
        assert "is quantised" in self.refused(capsys, tmp_path, tmp_path / "model")

    def test_a_model_without_a_chat_template(self, tiny_model, tmp_path, capsys):
        shutil.copytree(tiny_model, tmp_path / "model")
        (tmp_path / "model" / "chat_template.jinja").unlink()
        assert "has no chat template" in self.refused(capsys, tmp_path, tmp_path / "model")

    def test_a_disk_that_is_too_small(self, tiny_model, tmp_path, capsys):
        shutil.copytree(tiny_model, tmp_path / "model")
        file = tmp_path / "model" / "model.safetensors"
        data = file.read_bytes()
        length = int.from_bytes(data[:8], "little")
        header = json.loads(data[8 : 8 + length])
        start, size = len(data) - 8 - length, 1 << 43
        header["hole"] = {"dtype": "U8", "shape": [size], "data_offsets": [start, start + size]}
        text = json.dumps(header).encode()
        file.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + length :])
        os.truncate(file, 8 + len(text) + start + size)
        assert "GiB while it is written, and the disk has" in self.refused(capsys, tmp_path, tmp_path / "model")

    def test_a_tokenizer_that_the_converter_does_not_know(self, tiny_model, tmp_path, capsys):
        line = self.refused(capsys, tmp_path, tiny_model)
        assert "does not know how this tokenizer splits text" in line
        assert line.endswith("name a newer checkout with --llama-cpp")

    def test_a_model_that_the_converter_does_not_know(self, tiny_model, tmp_path, capsys):
        shutil.copytree(tiny_model, tmp_path / "model")
        config = json.loads((tmp_path / "model" / "config.json").read_text())
        (tmp_path / "model" / "config.json").write_text(json.dumps(config | {"architectures": ["UnheardOf"]}))
        line = self.refused(capsys, tmp_path, tmp_path / "model")
        assert re.search(r"converter does not know this model \(.*UnheardOf.*\): name a newer checkout", line)


def test_a_file_that_llama_cpp_cannot_open_is_named(tmp_path):
    (tmp_path / "x.gguf").write_bytes(b"GGUF but not really")
    with (
        pytest.raises(Exception, match=r"x.gguf: llama.cpp cannot open it: .*") as problem,
        engine.opened(tmp_path / "x.gguf"),
    ):
        pass
    assert "\n" not in str(problem.value)
