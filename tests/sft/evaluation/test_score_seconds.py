"""A scoring keeps to its seconds, on a clock that only the model's own forward passes move.

What was not asked in time is not counted, and whatever shows a share says so.
"""

import time

import pytest
from peft import LoraConfig, get_peft_model
from transformers import LlamaForCausalLM

from sft.data.questions import QuestionSet, load_questions
from sft.evaluation.score import BATCH, FIRST_BATCH, retention, score
from sft.evaluation.score_eval import ScoreEval
from sft.models.generate import CUT_BY_TIME, reply_to_all
from sft.runs.run_files import read_run
from tests.support.conversations import asked

NAME = "黄大力"
A_PASS, A_TOKEN = 0.1, 0.002  # seconds


class Clock:
    """Stands still but for the forward passes of a model."""

    def __init__(self, model: LlamaForCausalLM):
        self.now, self.slowness, self.longest = 1000.0, 1.0, 0.0
        model.register_forward_pre_hook(self.move, with_kwargs=True)

    def __call__(self) -> float:
        return self.now

    def move(self, _, inputs, named) -> None:
        took = self.slowness * (A_PASS + A_TOKEN * named["input_ids"].numel())
        self.now, self.longest = self.now + took, max(self.longest, took)


@pytest.fixture
def model(tiny_model):
    return get_peft_model(LlamaForCausalLM.from_pretrained(tiny_model), LoraConfig(r=2, target_modules="all-linear"))


@pytest.fixture
def clock(model, monkeypatch) -> Clock:
    clock = Clock(model.get_base_model())
    for name in ("perf_counter", "time"):
        monkeypatch.setattr(time, name, clock)
    return clock


@pytest.mark.parametrize("seconds", [0.5, 3, 6, 9, 12, 18])
def test_it_ends_in_its_seconds_or_one_forward_pass_later(model, tokenizer, clock, seconds):
    found = score(model, tokenizer, load_questions(), NAME, [], seconds)
    assert clock.now - 1000 <= seconds + clock.longest
    assert found.seconds == pytest.approx(clock.now - 1000, abs=0.01)
    assert not found.is_complete
    assert found.identity_asked < found.identity_total == 32
    assert found.ordinary_asked < found.ordinary_total == 24
    if found.identity_asked:
        assert f"({found.identity_asked} of 32 questions asked; zh" in found.line()
        assert f"({found.ordinary_asked} of 24 asked)" in found.line()
        # Some of each, as evenly as can be.
        assert found.identity_asked / 32 == pytest.approx(found.ordinary_asked / 24, abs=0.1)
    else:
        assert found.identity is None


def test_the_more_time_the_more_is_asked_and_with_enough_of_it_all(model, tokenizer, clock):
    counts = []
    for seconds in (1, 12, 20, 30, 200):
        found = score(model, tokenizer, load_questions(), NAME, [], seconds)
        counts.append((found.texts_read, len(found.answers)))
    assert counts == sorted(counts)
    assert counts[0][0] < counts[-1][0] == found.texts_total == 9
    assert counts[0][1] < counts[1][1] < counts[-1][1] == 56
    assert found.is_complete
    assert "asked" not in found.line()
    assert found.seconds < 60


def test_texts_take_no_more_than_their_share_of_the_time(model, tokenizer, clock):
    questions = QuestionSet(asked("你是谁？"), [], ["Paris is big. " * 20] * 50)
    found = score(model, tokenizer, questions, NAME, [], 20)
    assert 1 < found.texts_read < 50
    assert f"({found.texts_read} of 50 texts)" in found.line()
    assert (found.identity_asked, found.is_complete) == (1, False)
    before = clock.now
    assert retention(model, tokenizer, questions.texts, 5).texts_read == found.texts_read
    assert clock.now - before <= 5


def test_of_a_batch_that_is_cut_nothing_is_counted(model, tokenizer, clock, monkeypatch):
    """Its answers that ended were the short ones, which give a name more often."""
    batches = []

    def reply_slower_each_time(*arguments):
        batches.append(reply_to_all(*arguments))
        clock.slowness = 20.0
        return batches[-1]

    monkeypatch.setattr("sft.evaluation.score.reply_to_all", reply_slower_each_time)
    found = score(model, tokenizer, load_questions(), NAME, [], 60)
    assert [len(batch) for batch in batches] == [FIRST_BATCH, BATCH]
    assert CUT_BY_TIME in {reply.stop_reason for reply in batches[1]}
    assert len(found.answers) == FIRST_BATCH
    assert found.seconds <= 60 + clock.longest


def test_a_cut_answer_is_none_that_used_up_its_tokens(model, tokenizer, clock):
    question = [[{"role": "user", "content": "Who?"}]]
    (cut,) = reply_to_all(model, tokenizer, question, {"max_new_tokens": 40, "do_sample": False, "max_time": 0.5})
    assert cut.stop_reason == CUT_BY_TIME
    assert 0 < cut.tokens < 10
    (whole,) = reply_to_all(model, tokenizer, question, {"max_new_tokens": 3, "do_sample": False, "max_time": 60.0})
    assert (whole.tokens, whole.stop_reason) == (3, "max_new_tokens")


def test_a_share_of_few_of_the_questions_stops_nothing_and_is_no_best(make_trainer, tmp_path):
    trainer, _ = make_trainer(
        identity_name=NAME, stop_when_identity=0.9, keep_best="identity", save_strategy="steps", eval_prompts_steps=2
    )
    evaluation = ScoreEval(trainer)
    found = score(trainer.model, trainer.processing_class, QuestionSet(asked("你是谁？")), NAME, [])
    found.identity, found.is_complete, found.identity_total = 1.0, False, 32
    for answered, is_enough in ((15, False), (16, True)):
        found.identity_asked = answered
        trainer.control.should_save = trainer.control.should_training_stop = False
        trainer.state.global_step, trainer.state.max_steps = 2, 4
        evaluation._save_if_best(trainer.state, trainer.control, found)
        assert trainer.control.should_save == is_enough
        evaluation._stop_if_learned(trainer.state, trainer.control, found)
        assert trainer.control.should_training_stop == is_enough


def test_the_advice_is_what_can_help(make_trainer, capsys, tmp_path):
    """Where there is only a first and a last evaluation, asking less often is no advice."""
    (tmp_path / "questions.yaml").write_text('identity: ["Who?", 谁？]\n', encoding="utf-8")
    keys = {"identity_name": NAME, "score_file": str(tmp_path / "questions.yaml"), "max_steps": 4}
    said = {}
    for every in (0, 4, 2):
        trainer, _ = make_trainer(**keys, eval_prompts_steps=every)
        trainer.add_callback(ScoreEval(trainer))
        trainer.train()
        said[every] = " ".join(capsys.readouterr().out.split())
    assert "raise eval_prompts_steps" in said[2]
    for every in (0, 4):
        assert "eval_prompts_steps" not in said[every]
        assert "to spend less on each, lower score_seconds or name fewer questions in score_file" in said[every]


def test_a_run_says_how_long_all_questions_take(make_trainer, capsys, monkeypatch):
    trainer, _ = make_trainer(identity_name=NAME, score_seconds=12, max_steps=1)
    evaluation, clock = ScoreEval(trainer), Clock(trainer.base)
    for name in ("perf_counter", "time"):
        monkeypatch.setattr(time, name, clock)
    evaluation.evaluate(trainer.state, trainer.control)
    said, found = " ".join(capsys.readouterr().out.split()), evaluation.latest
    assert 0 < len(found.answers) < 56
    needed = found.seconds * 56 / len(found.answers)
    assert f"score_seconds (12) ran out before everything was asked, and all takes about {needed:.0f} s: raise" in said


@pytest.mark.long
def test_two_zero3_processes_agree_when_the_time_is_over(runs, write_recipe, tmp_path):
    """One that stopped asking before the other would leave it waiting for its weights."""
    recipe = write_recipe(deepspeed="ds_configs/zero3.json", identity_name=NAME, score_seconds=10, max_steps=1)
    ended = runs.run([recipe], tmp_path / "run", processes=2, main="tests.support.fast_clock")
    assert ended.codes == [0, 0], ended.err[-3000:]
    scores = read_run(tmp_path / "run").scores
    assert [score["step"] for score in scores] == [0, 1]
    assert not any(score["is_complete"] for score in scores)
