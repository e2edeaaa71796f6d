"""The merged model's tokenizer: all of it from one folder, and compared with that folder's."""

import json

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from model_tools.__main__ import main
from model_tools.merging import verify
from model_tools.merging.adapter import Adapter
from tests.support.adapters import llama, lora, merge, save_adapter

TEMPLATE = "{% for message in messages %}<|im_start|>{{ message['content'] }}<|im_end|>{% endfor %}"
CONFIG, JINJA = "tokenizer_config.json", "chat_template.jinja"


@pytest.fixture
def folders(pair, tokenizer):
    return pair(llama(vocab_size=len(tokenizer) + 8), lora(target_modules=["q_proj"]))


def another(tokenizer, template: str | None = TEMPLATE, **keys) -> PreTrainedTokenizerFast:
    """The same tokens with another template and other special tokens."""
    made = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer.backend_tokenizer,
        **{"bos_token": "<|im_start|>", "eos_token": "<|endoftext|>", "pad_token": "<|im_start|>"} | keys,
    )
    made.chat_template = template
    return made


def save(tokenizer, folder, place: str) -> None:
    """Save a tokenizer with its template in one of the places that Transformers looks into."""
    tokenizer.save_pretrained(folder)
    if place == CONFIG:
        (folder / JINJA).unlink(missing_ok=True)
        config = json.loads((folder / CONFIG).read_text())
        (folder / CONFIG).write_text(json.dumps(config | {"chat_template": tokenizer.chat_template}))


@pytest.mark.parametrize("own", [CONFIG, JINJA])
@pytest.mark.parametrize("others", [CONFIG, JINJA])
def test_the_adapters_template_and_tokens_win_wherever_they_stand(folders, tmp_path, tokenizer, own, others):
    base, adapter = folders
    save(tokenizer, base, others)
    (base / "special_tokens_map.json").write_text(json.dumps({"eos_token": "<|im_end|>"}))
    save(another(tokenizer), adapter, own)
    assert main(["merge", str(base), str(adapter), str(tmp_path / "out"), "--verify"]) == 0
    merged = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert (merged.chat_template, merged.eos_token, merged.pad_token) == (TEMPLATE, "<|endoftext|>", "<|im_start|>")


def test_an_adapter_without_a_template_gives_none(folders, tmp_path, tokenizer):
    base, adapter = folders
    save(tokenizer, base, JINJA)
    another(tokenizer, template=None).save_pretrained(adapter)
    assert merge(base, adapter, tmp_path / "out") == 0
    assert AutoTokenizer.from_pretrained(tmp_path / "out").chat_template is None


@pytest.mark.parametrize("whose", ["adapter", "base"])
def test_templates_beside_the_first_come_along(folders, tmp_path, tokenizer, whose):
    base, adapter = folders
    templates = {"default": TEMPLATE, "tool_use": "{{ tools }}"}
    save(tokenizer, base, JINJA)
    another(tokenizer, template=templates).save_pretrained(adapter if whose == "adapter" else base)
    assert merge(base, adapter, tmp_path / "out") == 0
    assert AutoTokenizer.from_pretrained(tmp_path / "out").chat_template == templates


def test_templates_of_the_base_do_not_come_to_an_adapters_tokenizer(folders, tmp_path, tokenizer):
    base, adapter = folders
    another(tokenizer, template={"default": TEMPLATE, "tool_use": "{{ tools }}"}).save_pretrained(base)
    tokenizer.save_pretrained(adapter)
    assert merge(base, adapter, tmp_path / "out") == 0
    assert AutoTokenizer.from_pretrained(tmp_path / "out").chat_template == tokenizer.chat_template


def test_the_first_adapter_that_has_a_tokenizer_gives_it(folders, tmp_path, tokenizer, capsys):
    base, first = folders
    second, third = (
        save_adapter(llama(vocab_size=408), base, lora(target_modules=["q_proj"]), tmp_path / name)
        for name in ("second", "third")
    )
    another(tokenizer).save_pretrained(second)
    tokenizer.save_pretrained(third)
    adapters = [str(each) for each in (first, second, third)]
    assert main(["merge", str(base), *adapters, str(tmp_path / "out"), "--no-verify"]) == 0
    assert AutoTokenizer.from_pretrained(tmp_path / "out").chat_template == TEMPLATE
    assert (
        f"{third}: has another chat template than {second}; the merged model gets the second" in capsys.readouterr().out
    )


class TestRefusals:
    def test_two_adapters_that_give_an_id_to_two_tokens(self, folders, refused, tmp_path, tokenizer):
        base, first = folders
        second = save_adapter(llama(vocab_size=408), base, lora(target_modules=["q_proj"]), tmp_path / "second")
        for folder, token in ((first, "<one>"), (second, "<two>")):
            tokenizer.save_pretrained(folder)
            own = AutoTokenizer.from_pretrained(folder)
            own.add_tokens(token)
            own.save_pretrained(folder)
        said = refused(base, first, second)
        assert f"{second}: its tokenizer has '<two>' as id 400, and that of {first} '<one>'" in said

    def test_more_tokens_than_the_embedding_has_rows(self, folders, refused, tokenizer):
        base, adapter = folders
        tokenizer.save_pretrained(adapter)
        own = AutoTokenizer.from_pretrained(adapter)
        own.add_tokens([f"<{number}>" for number in range(9)])
        own.save_pretrained(adapter)
        assert "its tokenizer has 409 tokens, and the base's embedding 408 rows" in refused(base, adapter)

    @pytest.mark.parametrize("whose", ["adapter", "base"])
    def test_a_tokenizer_that_cannot_be_loaded(self, folders, refused, tokenizer, whose):
        base, adapter = folders
        folder = adapter if whose == "adapter" else base
        tokenizer.save_pretrained(folder)
        (folder / "tokenizer.json").write_text("{")
        said = refused(base, adapter)
        assert f"{folder}: its tokenizer's files cannot be loaded" in said
        assert ("or remove them: the base's is taken" in said) == (whose == "adapter")

    @pytest.mark.parametrize("kept", ["tokenizer.json", JINJA])
    def test_a_part_of_a_tokenizer_is_not_passed_over(self, folders, refused, tokenizer, kept):
        base, adapter = folders
        tokenizer.save_pretrained(base)
        another(tokenizer).save_pretrained(adapter)
        for name in {CONFIG, "tokenizer.json", JINJA} - {kept}:
            (adapter / name).unlink()
        assert f"{adapter}: holds {kept} and no tokenizer_config.json: copy the whole" in refused(base, adapter)

    def test_a_tokenizer_that_loads_and_reads_no_text(self, folders, refused, tokenizer):
        base, adapter = folders
        tokenizer.save_pretrained(adapter)
        config = json.loads((adapter / CONFIG).read_text())
        (adapter / CONFIG).write_text(json.dumps(config | {"model_max_length": "x"}))
        assert f"{adapter}: its tokenizer's files cannot be loaded" in refused(base, adapter)

    @pytest.mark.parametrize("text", ["{", "[]", '{"eos_token_id": "x"'], ids=range(3))
    def test_generation_settings_that_cannot_be_read(self, folders, refused, text):
        base, adapter = folders
        (base / "generation_config.json").write_text(text)
        assert f"{base}/generation_config.json: cannot be read (" in refused(base, adapter)

    @pytest.mark.parametrize("ends", ["x", ["x"], {"a": 1}, {}, 2.5, -1, 10**20, [2, None], True], ids=str)
    def test_end_tokens_that_are_none(self, folders, refused, tokenizer, ends):
        base, adapter = folders
        tokenizer.save_pretrained(adapter)
        (base / "generation_config.json").write_text(json.dumps({"eos_token_id": ends}))
        assert f"{base}/generation_config.json: " in refused(base, adapter)


class TestVerify:
    @pytest.fixture
    def merged(self, folders, tmp_path, tokenizer):
        """Base, adapter and a merged folder that was written right."""
        base, adapter = folders
        tokenizer.save_pretrained(adapter)
        assert merge(base, adapter, tmp_path / "out") == 0
        return base, [Adapter(adapter)], tmp_path / "out"

    def test_the_same_tokenizer_is_no_difference(self, merged):
        assert verify.tokenizer_difference(*merged) is None

    @pytest.mark.parametrize(
        ("keys", "reason"),
        [({"template": TEMPLATE}, "its chat template writes"), ({}, "its tokenizer ends at <|endoftext|>")],
        ids=["template", "end"],
    )
    def test_another_one_is_told_of_though_the_weights_are_the_same(self, merged, tokenizer, capsys, keys, reason):
        (merged[2] / JINJA).unlink()
        another(tokenizer, **{"template": tokenizer.chat_template} | keys).save_pretrained(merged[2])
        assert verify.report_difference(*merged) == 1
        assert reason in capsys.readouterr().out

    def test_other_ids_are_told_of(self, merged, tokenizer, capsys):
        file = merged[2] / "tokenizer.json"
        content = json.loads(file.read_text())
        content["model"]["merges"] = []
        file.write_text(json.dumps(content))
        assert verify.report_difference(*merged) == 1
        assert "other ids than that of" in capsys.readouterr().out
