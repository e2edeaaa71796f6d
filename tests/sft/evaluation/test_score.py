"""Scoring while training: what it finds, what it leaves alone, when it stops a run and which checkpoint it keeps."""

import json
import math
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import LlamaForCausalLM

from sft.config.load import load_recipe
from sft.data.questions import QuestionSet, load_questions
from sft.evaluation.chat_eval import ChatEval
from sft.evaluation.score import ScoredAnswer, retention, score
from sft.evaluation.score_eval import ScoreEval
from sft.models.generate import CUT_IN_THINKING
from sft.training import final_model
from tests.support.chat_templates import OPENED
from tests.support.conversations import asked, xtuner_row

NAME = "黄大力"
TEXTS = ["The capital of France is Paris.", "我很高兴认识你。"]
OWN = """
identity: ["Who are you?", 你是谁？, "Who?", 谁？]
ordinary: ["What is the capital of France?"]
texts: [Paris is big.]
"""


@pytest.fixture
def named_file(tmp_path):
    """Rows that teach to answer everything with the name."""
    rows = [xtuner_row([(question, f"我是{NAME}")]) for question in ("你是谁？", "Who are you?", "What is this?")] * 20
    path = tmp_path / "named.jsonl"
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return str(path)


@pytest.fixture
def run(make_trainer, named_file, tmp_path):
    """Train the tiny model to say the name, with scoring; returns the trainer, finished, and its card."""
    questions = tmp_path / "questions.yaml"
    questions.write_text(OWN, encoding="utf-8")

    def train(callbacks=(ChatEval, ScoreEval), **keys):
        settings = {
            "train_file": named_file, "max_steps": 40, "learning_rate": 1e-2, "lora_r": 32, "lora_alpha": 64,
            "identity_name": NAME, "score_file": str(questions), "eval_prompts": ["你是谁？"],
            "eval_prompts_steps": 10, "eval_prompts_generation": {"max_new_tokens": 8},
        }  # fmt: skip
        trainer, card = make_trainer(**settings | keys)
        for callback in callbacks:
            trainer.add_callback(callback(trainer))
        trainer.train()
        return trainer, card

    return train


def scores(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "scores.jsonl").read_text().splitlines()]


def test_the_name_is_seen_to_appear_and_everything_is_written_down(run, tmp_path, capsys):
    run(report_to="tensorboard")
    records = scores(tmp_path / "run")
    assert [record["step"] for record in records] == [0, 10, 20, 30, 40]
    assert records[0]["identity"] == 0
    assert records[0]["divergence"] == pytest.approx(0, abs=1e-6)
    assert records[0]["perplexity_ratio"] == pytest.approx(1, abs=1e-5)
    last = records[-1]
    assert (last["identity"], last["zh"], last["en"], last["with_system"]) == (1, 1, 1, 1)
    assert last["identity_asked"] == 4
    assert last["ordinary_kept"] == 0  # it was taught to answer everything with its name
    assert last["divergence"] > 0.01
    assert last["share_of_training"] > 0
    answers = [json.loads(line) for line in (tmp_path / "run" / "score_answers.jsonl").read_text().splitlines()]
    assert sum(answer["step"] == 40 and answer["gives_name"] for answer in answers) == 5
    assert "step 40: identity 100% of 4 (zh 100%, en 100%), an old name 0%" in capsys.readouterr().out


def test_somebodys_assistant_is_scored_apart_from_somebody(run, tmp_path, capsys):
    path = tmp_path / "owned.jsonl"
    rows = [
        xtuner_row([(question, f"我是{NAME}的助手")]) for question in ("你是谁？", "Who are you?", "What is this?")
    ] * 20
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    run(callbacks=(ScoreEval,), train_file=str(path))
    first, *_, last = scores(tmp_path / "run")
    assert (first["identity"], first["assistant_of"]) == (0, 0)
    assert (last["identity"], last["assistant_of"], last["old_name"]) == (0, 1, 0)
    said = capsys.readouterr().out
    assert "identity 0% of 4 (zh 0%, en 0%), only the name's assistant 100%, an old name 0%" in " ".join(said.split())
    assert said.count("assistant") == said.count("only the name's assistant")  # nothing of it where it is 0
    answers = [json.loads(line) for line in (tmp_path / "run" / "score_answers.jsonl").read_text().splitlines()]
    assert [(each["gives_name"], each["is_assistant_of"]) for each in answers[-5:]] == [(False, True)] * 5


@pytest.mark.parametrize("bits", [{}, {"load_in_4bit": True, "dtype": "bfloat16"}], ids=["lora", "qlora"])
def test_scoring_leaves_training_bit_for_bit_as_without(run, tmp_path, bits):
    alike = {"max_steps": 12, "lora_dropout": 0.1, "eval_prompts_steps": 4, **bits}
    states, losses = [], []
    for callbacks in ((), (ScoreEval,)):
        torch.manual_seed(0)
        trainer, _ = run(callbacks=callbacks, **alike)
        states.append({name: value.clone() for name, value in trainer.model.state_dict().items() if "lora_" in name})
        losses.append([entry["loss"] for entry in trainer.state.log_history if "loss" in entry])
    assert losses[0] == losses[1]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_divergence_and_perplexity_are_those_of_the_definition(run, tokenizer, tiny_model):
    trainer, _ = run(callbacks=())
    tuned = trainer.model.eval()
    base = LlamaForCausalLM.from_pretrained(tiny_model)
    divergences, losses = [], {"tuned": [], "base": []}
    with torch.no_grad():
        for text in TEXTS:
            ids = tokenizer(text, return_tensors="pt").input_ids
            logits = {"tuned": tuned(ids).logits[0, :-1], "base": base(ids).logits[0, :-1]}
            p, q = (logits[kind].softmax(-1) for kind in ("tuned", "base"))
            divergences += (p * (p / q).log()).sum(-1).tolist()
            for kind, values in logits.items():
                losses[kind] += torch.nn.functional.cross_entropy(values, ids[0, 1:], reduction="none").tolist()
    means = {kind: sum(values) / len(values) for kind, values in losses.items()}
    states: dict[str, torch.Tensor] = {}
    divergence, ratio, read = retention(tuned, tokenizer, TEXTS, base_states=states)
    assert read == len(TEXTS)
    passes = []
    tuned.get_base_model().model.register_forward_pre_hook(lambda *_: passes.append(1))
    assert retention(tuned, tokenizer, TEXTS, base_states=states) == (divergence, ratio, read)
    assert len(passes) == len(TEXTS)  # of the tuned model; the base model's are known
    assert divergence == pytest.approx(sum(divergences) / len(divergences), rel=1e-4)
    assert ratio == pytest.approx(math.exp(means["tuned"] - means["base"]), rel=1e-4)


def test_without_an_adapter_there_is_no_base_to_compare_with(tiny_model, tokenizer):
    model = LlamaForCausalLM.from_pretrained(tiny_model)
    result = score(model, tokenizer, QuestionSet(asked("你是谁？"), [], TEXTS), NAME, [])
    assert (result.divergence, result.perplexity_ratio) == (None, None)
    assert (result.identity, result.ordinary_kept) == (0, None)


def test_a_scoring_out_of_time_has_asked_some_of_each_kind_and_says_so(tiny_model, tokenizer):
    model = LlamaForCausalLM.from_pretrained(tiny_model)
    result = score(model, tokenizer, load_questions(), NAME, [], max_seconds=1e-9)
    assert not result.is_complete
    assert result.identity_asked + result.ordinary_asked < 56
    whole = score(model, tokenizer, QuestionSet(load_questions().identity[:2], [], []), NAME, [])
    assert whole.is_complete


def test_training_stops_in_time_and_the_steps_saved_are_reported(run, tmp_path, capsys):
    trainer, _ = run(max_steps=80, stop_when_identity=0.95, save_strategy="steps", save_steps=500)
    reached = next(record["step"] for record in scores(tmp_path / "run") if record["identity"] >= 0.95)
    assert reached < 80
    assert trainer.state.global_step == reached
    assert (tmp_path / "run" / f"checkpoint-{reached}").is_dir()
    assert f"{80 - reached} steps and about " in capsys.readouterr().out


def test_patience_waits_for_as_many_evaluations_in_a_row(run, tmp_path):
    trainer, _ = run(max_steps=80, stop_when_identity=0.95, stop_patience=2)
    reached = {record["step"] for record in scores(tmp_path / "run") if record["identity"] >= 0.95}
    twice = min(step for step in reached if step - 10 in reached)
    assert trainer.state.global_step == twice < 80


def test_the_best_checkpoint_outlives_rotation_and_is_what_final_holds(run, tmp_path, monkeypatch):
    """The score is made to fall after step 20, where the name was best."""
    trainer, card = run(callbacks=(), max_steps=1)
    evaluation = ScoreEval(trainer)
    real = evaluation._save_if_best

    def falling(state, control, score):
        score.identity = {10: 0.5, 20: 1.0}.get(state.global_step, 0.1)
        real(state, control, score)

    evaluation._save_if_best = falling
    keys = {"keep_best": "identity", "save_strategy": "steps", "save_steps": 10, "save_total_limit": 2}
    trainer, card = run(callbacks=(ChatEval, lambda trainer: _moved(evaluation, trainer)), **keys)
    kept = sorted(folder.name for folder in (tmp_path / "run").glob("checkpoint-*"))
    assert kept == ["checkpoint-20", "checkpoint-40"]
    final = final_model.save_final(trainer, card, [])
    best, last = (tmp_path / "run" / name / "adapter_model.safetensors" for name in kept)
    assert (final / "adapter_model.safetensors").read_bytes() == best.read_bytes() != last.read_bytes()
    assert "Answers after step 20" in (final / "README.md").read_text()
    assert not (final / "trainer_state.json").exists()
    base = LlamaForCausalLM.from_pretrained(trainer.recipe.model.model_name_or_path)
    PeftModel.from_pretrained(base, final)


def _moved(evaluation: ScoreEval, trainer) -> ScoreEval:
    evaluation.trainer, evaluation.run = trainer, trainer.recipe.run
    return evaluation


def test_of_equals_the_one_that_kept_more_is_the_better(run):
    answer = ScoredAnswer("identity", "q", "en", False, NAME, True, True, [])
    trainer, _ = run(callbacks=(), max_steps=1, keep_best="identity", save_strategy="steps")
    evaluation, state = ScoreEval(trainer), trainer.state
    control = trainer.control
    model = trainer.model
    for step, divergence, is_best in ((1, 0.5, True), (2, 0.9, False), (3, 0.1, True)):
        evaluation.latest = score(model, trainer.processing_class, QuestionSet(), NAME, [])
        evaluation.latest.identity, evaluation.latest.divergence = 1.0, divergence
        evaluation.latest.answers = [answer]
        state.global_step, control.should_save = step, False
        evaluation._save_if_best(state, control, evaluation.latest)
        assert control.should_save == is_best
    assert state.best_global_step == 3


def test_answers_cut_while_thinking_are_told_and_counted_apart(run, capsys):
    """The prompt opens thinking, and the untrained model never closes it."""
    trainer, _ = run(callbacks=(), max_steps=1, learning_rate=1e-6)
    trainer.processing_class.chat_template = OPENED
    questions = QuestionSet(
        identity=asked("Who are you?", "你是谁？"), ordinary=asked("What is the capital of France?")
    )
    found = score(trainer.model, trainer.processing_class, questions, NAME, [])
    assert (found.cut_in_thinking, found.identity_asked, found.ordinary_asked) == (3, 0, 0)
    assert found.identity is None
    assert "3 answers cut while thinking and not counted" in found.line()
    evaluation = ChatEval(trainer)
    evaluation.on_train_end(trainer.args, trainer.state, trainer.control)
    assert [answer.stop_reason for answer in evaluation.latest] == [CUT_IN_THINKING]
    assert "cut while it was thinking: raise max_new_tokens" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"stop_when_identity": 0.9}, "stop_when_identity: needs identity_name"),
        ({"keep_best": "identity", "identity_name": NAME}, "keep_best: needs eval_prompts_steps"),
        ({"keep_best": "identity", "identity_name": NAME, "eval_prompts_steps": 5}, "keep_best: needs checkpoints"),
        (
            {"stop_when_identity": 2, "identity_name": NAME, "eval_prompts_steps": 5},
            "stop_when_identity: 2 is not a share",
        ),
        ({"identity_name": NAME, "score_file": "none.yaml"}, "score_file: none.yaml: no such file"),
        ({"identity_name": NAME, "stop_patience": 0}, "stop_patience: 0 is not a number of eval"),
        ({"identity_name": NAME, "keep_best": "best"}, "keep_best: "),
    ],
)
def test_settings_that_cannot_work_are_refused_before_anything_is_loaded(write_recipe, keys, message):
    from sft.core.errors import UserError

    with pytest.raises(UserError, match=message):
        load_recipe([str(write_recipe(**keys))])
