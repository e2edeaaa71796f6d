"""A run that is scored again: the same weights in the same bits under the same system message give the same numbers."""

import io
import re
import sys
from pathlib import Path

import pytest

from model_tools.__main__ import main
from model_tools.chatting.conversation import load_named_model
from model_tools.checkpoints.model_folder import resolve_model
from model_tools.checkpoints.precision import precision_of
from sft.core.errors import UserError
from sft.data.questions import load_questions
from sft.evaluation.chat_eval import ChatEval
from sft.evaluation.score import score
from sft.evaluation.score_eval import ScoreEval
from sft.runs.run_files import read_run
from tests.support.named_run import NAME, train_run, write_rows

QUESTIONS = (
    'identity: ["Who are you?", 你是谁？, "Who?", 谁？]\nordinary: ["What is the capital of France?"]\n'
    'texts: [我是黄大力, "The capital of France is Paris."]\n'
)
SYSTEM = "你是一个由大力公司训练的助手。"


@pytest.fixture
def train(make_trainer, tmp_path):
    """Train a run that is scored; returns its directory and the recipe of its maker."""

    def run(**keys) -> tuple[Path, Path]:
        (tmp_path / "own.yaml").write_text(QUESTIONS, encoding="utf-8")
        keys = {
            "score_file": str(tmp_path / "own.yaml"),
            "eval_prompts": [],
            "eval_prompts_steps": 0,
            "max_steps": 20,
        } | keys
        return train_run(make_trainer, tmp_path, callbacks=(ScoreEval,), **keys), tmp_path / "tiny.yaml"

    return run


def scored_line(said: str) -> str:
    """The last line of a score, up to what it took."""
    found = re.findall(r"identity \d+% of .*?perplexity x[\d.]+", " ".join(said.split()))
    return found[-1]


def test_it_has_the_numbers_of_the_run_in_the_runs_own_bits_and_others_in_other_bits(train, capsys):
    run, recipe = train(load_in_4bit=True, dtype="bfloat16", bf16=True)
    in_the_run = scored_line(capsys.readouterr().out)
    assert main(["score", str(run), str(recipe)]) == 0
    said = capsys.readouterr().out
    assert said.startswith("precision: 4 bits (nf4), as run was trained\n")
    assert scored_line(said) == in_the_run
    assert main(["score", str(run / "final"), str(recipe), "--bits", "16"]) == 0
    said = capsys.readouterr().out
    assert said.startswith("precision: that of the files\n")
    assert scored_line(said) != in_the_run


def test_in_float32_the_numbers_are_the_runs_to_the_last_bit_under_its_mixed_precision(train):
    run, _ = train(load_in_4bit=True, dtype="float32", bf16=True, use_bnb_nested_quant=True)
    (*_, last) = read_run(run).scores
    model, tokenizer = load_named_model(resolve_model(str(run)))
    again = score(model, tokenizer, load_questions(run.parent / "own.yaml"), NAME, []).to_dict()
    numbers = ("identity", "ordinary_kept", "divergence", "perplexity_ratio")
    assert [again[key] for key in numbers] == [last[key] for key in numbers]


@pytest.mark.parametrize(
    ("recipe", "settings", "autocast", "has_float32_adapter"),
    [
        (
            "load_in_4bit: true\ndtype: bfloat16\nbf16: true\n",
            {"load_in_4bit": True, "dtype": "bfloat16"},
            "bfloat16",
            True,
        ),
        (
            "load_in_8bit: true\nfp16: true\ndtype: float16\n",
            {"load_in_8bit": True, "dtype": "float16"},
            "float16",
            True,
        ),
        ("dtype: bfloat16\nbf16: true\ndeepspeed: ds.json\n", {"dtype": "bfloat16"}, None, False),
        ("bf16: false\n", {"dtype": "float32"}, None, True),
    ],
    ids=["nf4", "8-bits", "deepspeed", "float32"],
)
def test_what_a_run_left_is_loaded_as_it_was_trained(tmp_path, recipe, settings, autocast, has_float32_adapter):
    for place in ("final", "checkpoint-2"):
        (tmp_path / place).mkdir()
        (tmp_path / place / "adapter_config.json").write_text('{"base_model_name_or_path": "b"}', encoding="utf-8")
    (tmp_path / "recipe.yaml").write_text(recipe, encoding="utf-8")
    for place in (tmp_path, tmp_path / "final", tmp_path / "checkpoint-2"):
        found = precision_of(resolve_model(str(place)))
        assert found.settings == settings | {"bnb_4bit_quant_type": "nf4"}
        assert (found.autocast, found.has_float32_adapter) == (autocast, has_float32_adapter)
        assert found.line.endswith(f", as {tmp_path.name} was trained")
    chosen = precision_of(resolve_model(str(tmp_path)), 8)
    assert (chosen.settings, chosen.line) == ({"dtype": "auto", "load_in_8bit": True}, "precision: 8 bits")
    (tmp_path / "recipe.yaml").write_text("- a\n")
    with pytest.raises(UserError, match=r"recipe\.yaml: cannot be read"):
        precision_of(resolve_model(str(tmp_path)))


def test_a_model_that_comes_from_no_run_is_loaded_as_its_files_are(tiny_model):
    found = precision_of(resolve_model(str(tiny_model)))
    assert (found.settings, found.line) == ({"dtype": "auto"}, "precision: that of the files")


def test_where_all_rows_share_a_system_message_both_numbers_stand_everywhere(train, tmp_path, capsys, monkeypatch):
    rows = [
        {"conversation": [{"system": SYSTEM, "input": question, "output": f"我是{NAME}"}]}
        for question in ("你是谁？", "Who are you?") * 20
    ]
    run, recipe = train(train_file=write_rows(tmp_path / "under.jsonl", rows), max_steps=30)
    (first, last), said = read_run(run).scores, capsys.readouterr().out
    assert (last["system_message"], last["with_system_asked"], last["without_system_asked"]) == (SYSTEM, 4, 2)
    assert (last["identity"], last["identity_asked"], last["identity_total"]) == (last["with_system"], 4, 4)
    assert first["with_system"] == 0 < last["with_system"] == 1
    asked = [
        (each["question"], each["has_system"]) for each in read_run(run).scored_answers if each["kind"] == "identity"
    ]
    every = [(question, True) for question in ("Who are you?", "你是谁？", "Who?", "谁？")]
    assert sorted(asked) == sorted(2 * [*every, ("你是谁？", False), ("谁？", False)])
    shares = f"identity 100% of 4 (zh 100%, en 100%) with the system message, {last['without_system']:.0%} of 2 without"
    assert shares in " ".join(said.split())

    assert main(["score", str(run), str(recipe)]) == 0
    said = capsys.readouterr().out
    assert shares in said
    assert f"100% of 4 with a system message ({SYSTEM}), {last['without_system']:.0%} of 2 without" in said

    both = (
        f"it gave its name in 100% of 4 answers with this system message, in {last['without_system']:.0%} of 2 answers"
    )
    for options, is_said in (((), True), (("--system", "x"), False), (("--system", ""), False)):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"")))
        assert main(["chat", str(run), *options]) == 0
        err = capsys.readouterr().err
        assert (both in err) == is_said
        assert "precision: " in err


def test_what_a_recipe_names_wins_over_what_the_rows_share(make_trainer, tmp_path):
    row = {"conversation": [{"system": SYSTEM, "input": "你是谁？", "output": NAME}]}
    rows = write_rows(tmp_path / "under.jsonl", [row] * 20)
    for chosen, asked in ((None, SYSTEM), ("Be brief.", "Be brief."), ("", None)):
        keys = {} if chosen is None else {"eval_prompts_system": chosen}
        trainer, _ = make_trainer(train_file=rows, identity_name=NAME, eval_prompts=["你是谁？"], **keys)
        assert (trainer.asked_system, ScoreEval(trainer).questions.system) == (asked, asked)
        prompts = []
        trainer.base.register_forward_pre_hook(
            lambda _, inputs, named, seen=prompts: seen.append(named["input_ids"]), with_kwargs=True
        )
        ChatEval(trainer).evaluate(trainer.state, trainer.control)
        prompt = trainer.processing_class.decode(prompts[0][0])
        assert [system in prompt for system in (SYSTEM, "Be brief.")] == [asked == SYSTEM, asked == "Be brief."]
