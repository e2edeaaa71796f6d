"""What a written folder says: every engine stops where a turn ends, and a card shows text as text whatever it holds."""

import json

import pytest
import yaml
from huggingface_hub import ModelCard

from sft.models import written_folder
from sft.models.adapter import SYSTEM_MESSAGE
from sft.runs.run_files import Answer
from sft.training import final_model

NASTY = "``` ` | <b> [x](y) # \n---\nbase_model: evil/model\n---\n"


@pytest.fixture
def folder(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    return tmp_path


@pytest.fixture
def end(tokenizer):
    return tokenizer.convert_tokens_to_ids("<|im_end|>")


def settings_of(folder):
    return json.loads((folder / "generation_config.json").read_text())


@pytest.mark.parametrize("own", [None, {}, {"eos_token_id": 0}, {"eos_token_id": [0, 1], "top_p": 0.8}])
def test_the_template_s_end_of_turn_is_among_the_end_tokens_and_the_rest_stays(folder, end, own):
    if own is not None:
        (folder / "generation_config.json").write_text(json.dumps(own))
    written_folder.write_end_tokens(folder)
    after = settings_of(folder)
    ends, before = (
        value if isinstance(value, list) else [value]
        for value in (after["eos_token_id"], (own or {}).get("eos_token_id", []))
    )
    assert {end, *before} <= {*ends}
    assert after.get("top_p") == (own or {}).get("top_p")


def test_a_tokenizer_is_named_as_transformers_4_names_it_and_stays_the_same(folder, tokenizer):
    from transformers import AutoTokenizer

    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text())
    path.write_text(
        json.dumps(config | {"tokenizer_class": "TokenizersBackend", "extra_special_tokens": ["<|im_end|>"]})
    )
    written_folder.name_tokenizer_for_all(folder)
    after = json.loads(path.read_text())
    assert after["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert after["additional_special_tokens"] == ["<|im_end|>"]
    assert "extra_special_tokens" not in after
    again = AutoTokenizer.from_pretrained(folder)
    assert again.encode("你是谁？<|im_end|>") == tokenizer.encode("你是谁？<|im_end|>")
    assert "<|im_end|>" in again.all_special_tokens


def test_the_chat_section_names_what_ends_a_turn_the_system_message_and_the_commands(folder, end):
    written_folder.write_end_tokens(folder)
    (folder / SYSTEM_MESSAGE).write_text(NASTY, encoding="utf-8")
    section = written_folder.chat_section(folder, ["python -m model_tools chat x"])
    assert f"The chat template ends a turn with `<|im_end|>` ({end})." in section
    assert "`generation_config.json` lets engines stop at " in section
    assert f"````\n{NASTY.strip()}\n````" in section
    assert "```\npython -m model_tools chat x\n```" in section


@pytest.mark.parametrize(("text", "shown"), [("a", "`a`"), ("a`b", "`` a`b ``"), ("a\n\nb", "`a b`")])
def test_code_stays_code(text, shown):
    assert written_folder.code(text) == shown


def test_plain_text_shows_itself_in_a_table():
    assert written_folder.plain("a | <b>\n*c* [d](e) & `f`") == r"a &#124; &lt;b&gt; \*c\* \[d\](e) &amp; \`f\`"


def test_only_a_hubs_name_is_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models").mkdir()
    assert written_folder.hub_id("internlm/internlm2_5-7b-chat") == "internlm/internlm2_5-7b-chat"
    assert [written_folder.hub_id(base) for base in ("models/gone", "/data/model", "../x/y", "", "gpt2", "a/b/c")] == [
        None
    ] * 6


@pytest.mark.parametrize("use_peft", [True, False])
def test_the_card_of_a_run_is_whole_whatever_data_and_model_say(make_trainer, use_peft, end):
    keys = {} if use_peft else {"use_peft": False, "learning_rate": 1e-5}
    trainer, card = make_trainer(max_steps=1, eval_prompts=[NASTY], **keys)
    trainer.train()
    trainer.model.generation_config.eos_token_id = 0  # as base models name the end of a text alone
    final = final_model.save_final(trainer, card, [Answer(1, NASTY, NASTY, 0.1, 3, "end of turn")])
    text = (final / "README.md").read_text(encoding="utf-8")
    assert ModelCard(text).data.base_model is None
    head = yaml.safe_load(text.split("---")[1])
    assert head["library_name"] == ("peft" if use_peft else "transformers")
    (row,) = [line for line in text.splitlines() if line.startswith("| ") and "evil" in line]
    assert row.replace("\\|", "").count("|") == 3
    assert "<b>" not in row
    assert f"`<|im_end|>` ({end})" in text
    run = final.parent
    assert (f"merge {trainer.recipe.model.model_name_or_path} {run} models/{run.name}" in text) == use_peft
    assert f"transformers serve {f'models/{run.name}' if use_peft else final} --host 127.0.0.1 --port 8000" in text
    if not use_peft:
        assert settings_of(final)["eos_token_id"] == sorted({0, end})
        assert json.loads((final / "tokenizer_config.json").read_text())["tokenizer_class"] == "PreTrainedTokenizerFast"
