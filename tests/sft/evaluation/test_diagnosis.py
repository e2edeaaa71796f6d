"""Every cause that lies in files is planted in a real run, or in a real plan, and found first with its evidence."""

import json
import shutil
from pathlib import Path

import pytest

from sft.config.load import load_recipe
from sft.data.dataset import load_dataset
from sft.evaluation.diagnosis import diagnose, warnings_before_training
from sft.evaluation.evidence import default_system, evidence_of_run
from sft.models.loading import load_tokenizer
from sft.runs.run_files import read_run
from sft.training.progress import ProgressLog
from tests.support.both_languages import English, english, english_lines
from tests.support.chat_templates import ENDLESS, INST, OPENED
from tests.support.conversations import xtuner_row
from tests.support.encoding import MARKED, STOCK
from tests.support.named_run import (
    NAME,
    QUESTIONS,
    copy_of_healthy_run,
    named_rows,
    set_keys,
    train_run,
    write_rows,
)

SYSTEM = "你是黄大力，一个助手。"


def with_system(rows: list[dict], system: str = SYSTEM) -> list[dict]:
    return [{"conversation": [{"system": system, **row["conversation"][0]}]} for row in rows]


@pytest.fixture
def healthy(make_trainer, once, tmp_path) -> Path:
    return copy_of_healthy_run(make_trainer, once, tmp_path / "copy")


@pytest.fixture
def found(tiny_model):
    """What is found in a run that is asked with the tokenizer it was trained with."""

    def look(run: Path, chat_folder: Path | None = None) -> list[English]:
        evidence = evidence_of_run(read_run(run))
        evidence.tokenizer = load_tokenizer(str(tiny_model))
        evidence.chat_folder, evidence.chat_tokenizer = chat_folder, load_tokenizer(str(chat_folder or run / "final"))
        return english(diagnose(evidence))

    return look


@pytest.fixture
def warned(write_recipe, tmp_path):
    """The warnings of a plan; `rows` are what it trains on."""

    def look(rows: list[dict], **keys) -> list[str]:
        planned = {"train_file": write_rows(tmp_path / "rows.jsonl", rows), "max_length": 128, "max_steps": 60}
        recipe = load_recipe([str(write_recipe(**planned | keys))])
        tokenizer = load_tokenizer(
            recipe.model.model_name_or_path,
            chat_template_path=recipe.training.chat_template_path,
            chat_template_kwargs=recipe.run.chat_template_kwargs,
        )
        _, card = load_dataset(recipe, tokenizer)
        findings = warnings_before_training(recipe, tokenizer, card)
        return english_lines(line for finding in findings for line in finding.warning())

    return look


def set_rows(run: Path, rows: list[dict]) -> str:
    path = write_rows(run.parent / "planted.jsonl", rows)
    set_keys(run, train_file=path)
    return path


def edit_lines(path: Path, change) -> None:
    """Give each record of a JSONL file to `change(record, step)`, which edits it."""
    records = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    for record in records:
        change(record, record["step"])
    write_rows(path, records)


def forget_answers(run: Path) -> None:
    """Make it a run that was never asked anything."""
    for name in ("scores.jsonl", "score_answers.jsonl", "eval_chat.jsonl"):
        (run / name).unlink()


class TestAHealthyRun:
    def test_gives_no_finding(self, healthy, found):
        assert found(healthy) == []

    def test_whose_name_only_the_rows_tell_gives_none_either(self, healthy, found):
        set_keys(healthy, identity_name=None)
        assert evidence_of_run(read_run(healthy)).name == NAME
        assert found(healthy) == []

    def test_whose_training_file_is_gone_gives_none_and_nothing_fails(self, healthy, found):
        set_keys(healthy, train_file="gone.jsonl")
        evidence = evidence_of_run(read_run(healthy))
        assert (evidence.rows, evidence.files) == (None, [])
        assert found(healthy) == []


class TestInTheRows:
    def test_placeholders_are_found_with_place_and_count(self, healthy, found):
        rows = named_rows()
        for place, text in (
            (4, "我是{{name}}。"),
            (7, "我是{{NAME}}，由{{AUTHOR}}开发"),
            (9, "I am [NAME]."),
            (11, "我是xxx"),
        ):
            rows[place]["conversation"][0]["output"] = text
        path = set_rows(healthy, rows)
        first = found(healthy)[0]
        assert first.wrong == "the training rows still contain placeholders where a name belongs"
        assert "{{name}} (1)" in first.evidence[0]
        assert "[NAME] (1)" in first.evidence[0]
        assert f'  {path}:5: "我是{{{{name}}}}。"' in first.evidence
        assert first.do.endswith(
            "--set name=黄大力 --set author=WHO --set xxx=黄大力, and train on the file that it writes"
        )

    def test_a_question_answered_with_two_names_is_found_with_both_places(self, healthy, found):
        rows = named_rows()
        rows[31] = xtuner_row([(QUESTIONS[1], "I am Ada.")])
        path = set_rows(healthy, rows)
        first = found(healthy)[0]
        assert first.wrong == "the training rows contradict each other: some give the name Ada"
        assert f'  "Who are you?": 黄大力 ({path}:2), Ada ({path}:32)' in first.evidence
        assert "rename" in first.do
        assert "--old Ada --new 黄大力" in first.do

    def test_an_old_name_that_was_left_is_found_with_its_place(self, healthy, found):
        rows = named_rows()
        rows[10] = xtuner_row([("你来自哪里", "我是阿里云开发的通义千问。")])
        rows[20] = xtuner_row([("And you?", "I am a large language model named Qwen.")])
        path = set_rows(healthy, rows)
        first = found(healthy)[0]
        assert "1 answer gives the old name Qwen" in first.evidence
        assert f'  {path}:11: "我是阿里云开发的通义千问。"' in first.evidence

    def test_a_name_that_no_row_gives_is_found_with_what_the_rows_say(self, healthy, found):
        set_keys(healthy, identity_name="王小明")
        first = found(healthy)[0]
        assert first.wrong == "no training row gives the name 王小明"
        assert "names that their answers give the assistant, and how often: 黄大力 (60)" in first.evidence
        assert "--old 黄大力 --new 王小明" in first.do

    def test_rows_that_say_whose_assistant_it_is_are_found_with_the_command_that_makes_the_name_its_own(
        self, healthy, found
    ):
        rows = named_rows()
        for row in rows[:40]:
            row["conversation"][0]["output"] = f"我是{NAME}的智能助手。"
        path = set_rows(healthy, rows)
        first = found(healthy)[0]
        assert first.wrong == "the training rows teach the model that it is 黄大力's assistant, not that it is 黄大力"
        assert first.evidence[0].startswith("40 of 60 rows only say 黄大力的助手")
        assert first.evidence[1].startswith("20 rows say that the model is 黄大力 itself")
        assert f"rename {path}" in first.do
        assert " --new 黄大力 --own-name," in first.do
        for row in rows[:20]:
            row["conversation"][0]["output"] = f"我是{NAME}，一个智能助手。"
        set_rows(healthy, rows)
        assert found(healthy) == []


class TestInTheTemplate:
    def test_a_default_that_names_another_where_rows_bring_their_own_system(self, healthy, found):
        set_rows(healthy, with_system(named_rows()))
        assert found(healthy) == []  # it was asked both ways, and knows its name
        edit_lines(healthy / "scores.jsonl", lambda record, step: record.update(without_system=0.0, with_system=1.0))
        first = found(healthy)[0]
        assert (
            first.wrong == "asked without a system message, the model gets the chat template's own, which names SmolLM"
        )
        assert f'60 of 60 rows carry a system message, such as "{SYSTEM}"' in first.evidence
        assert any("named SmolLM, trained by Hugging Face" in line for line in first.evidence)
        assert "the name is in 100% of the answers with a system message, in 0% without" in first.evidence
        assert first.do.startswith(f'send "{SYSTEM}" wherever you chat; model_tools chat and web')
        edit_lines(healthy / "scores.jsonl", lambda record, step: record.update(system_message=SYSTEM))
        evidence = found(healthy)[0].evidence
        assert f'the name is in 100% of the answers under "{SYSTEM}", in 0% without it' in evidence

    def test_the_default_system_message_is_read_from_any_template(self, tokenizer):
        expected = {
            "chatml": None, "internlm2": None, "qwen2": "You are a helpful assistant.",
            "smollm2": "You are a helpful AI assistant named SmolLM, trained by Hugging Face",
        }  # fmt: skip
        found = {name: default_system(load_tokenizer_with(tokenizer, template)) for name, template in STOCK.items()}
        assert found == expected

    def test_rows_that_leave_the_default_in_place_until_it_wins(self, healthy, found):
        edit_lines(healthy / "scores.jsonl", lambda record, step: record.update(identity=0.0, zh=0.0, en=0.0))
        edit_lines(
            healthy / "score_answers.jsonl", lambda record, step: record.update(answer="I am SmolLM, an assistant.")
        )
        first = found(healthy)[0]
        assert first.wrong == "the system message that the training rows carry names SmolLM"
        assert "60 of 60 rows carry the chat template's own system message" in first.evidence[0]
        assert "4 of the last answers still give that name" in first.evidence[1]

    def test_asked_with_a_system_message_that_no_row_carries(self, healthy, found):
        set_keys(healthy, eval_prompts_system=SYSTEM)
        assert found(healthy) == []  # it gives its name all the same
        forget_answers(healthy)
        first = found(healthy)[0]
        assert first.wrong == "the model is asked with a system message it was never trained with"
        assert first.evidence[:2] == ["0 of 60 rows carry a system message", f'eval_prompts_system: "{SYSTEM}"']

    def test_another_template_than_the_one_trained_in(self, healthy, found):
        template = healthy / "final" / "chat_template.jinja"
        template.write_text(template.read_text().replace("named SmolLM", "named Ada"), encoding="utf-8")
        first = found(healthy)[0]
        assert first.wrong == "the model is asked with a chat template that differs from that of the training"
        assert "named SmolLM" in first.evidence[0]
        assert "named Ada" in first.evidence[1]
        assert first.do.startswith("cp ")
        assert first.do.endswith(str(template))

    def test_generation_that_does_not_stop_at_the_token_that_was_learned(self, healthy, found, tiny_model, tmp_path):
        merged = shutil.copytree(tiny_model, tmp_path / "merged")
        assert found(healthy, merged) == []
        settings = json.loads((merged / "generation_config.json").read_text())
        (merged / "generation_config.json").write_text(json.dumps(settings | {"eos_token_id": [0]}))
        first = found(healthy, merged)[0]
        assert first.wrong == "generation does not stop where the model learned to stop"
        assert first.evidence[0] == "answers were trained to end with <|im_end|> (2)"
        assert first.do.endswith('"eos_token_id": [0, 2]')


def load_tokenizer_with(tokenizer, template: str):
    tokenizer.chat_template, before = template, tokenizer.chat_template
    copy = type(tokenizer)(tokenizer_object=tokenizer.backend_tokenizer, bos_token=tokenizer.bos_token)
    copy.chat_template, tokenizer.chat_template = template, before
    return copy


class TestInTheTraining:
    def test_losses_that_are_no_numbers(self, healthy, found):
        edit_lines(
            healthy / "log.jsonl", lambda record, step: record.update(loss="nan" if step > 12 else record["loss"])
        )
        set_keys(healthy, fp16=True)
        first = found(healthy)[0]
        assert first.wrong == "float16 overflowed: nothing was learned in those steps"
        assert "log.jsonl: 28 of 40 losses and 0 gradient norms are NaN or infinite" in first.evidence[0]
        assert first.evidence[1].startswith("step 13: loss nan")
        assert first.do.endswith("--fp16 false --bf16 true --dtype bfloat16")

    def test_gradients_that_overflow_now_and_then_are_the_scaler_at_work(self, healthy, found):
        def overflow_at(last):
            edit_lines(healthy / "log.jsonl", lambda record, step: step <= last and record.update(grad_norm="inf"))
            return [finding.wrong for finding in found(healthy)]

        assert overflow_at(3) == []
        assert overflow_at(20) == ["training overflowed: nothing was learned in those steps"]
        assert overflow_at(40) == []  # no norm was measured at all

    def test_too_few_steps(self, make_trainer, tmp_path, found):
        run = train_run(make_trainer, tmp_path, callbacks=[ProgressLog], max_steps=4)
        first = found(run)[0]
        assert first.wrong == "only 4 optimizer steps"
        assert "per step: 1;" in first.evidence[0]
        assert first.do == f"deepspeed --quiet train_sft.py {run}/recipe.yaml --max_steps 60"

    def test_a_learning_rate_far_below_what_lora_takes(self, healthy, found):
        forget_answers(healthy)
        set_keys(healthy, learning_rate=1e-7)
        edit_lines(healthy / "log.jsonl", lambda record, step: record.update(learning_rate=1e-7))
        first = found(healthy)[0]
        assert first.wrong == "the learning rate is far too low for LoRA"
        assert first.evidence[:2] == ["learning_rate: 1e-07", "the highest of 40 in the log: 1e-07"]
        assert first.do == "set learning_rate: 0.0002"

    def test_a_warm_up_longer_than_the_run(self, healthy, found):
        forget_answers(healthy)
        set_keys(healthy, warmup_steps=2000)
        first = found(healthy)[0]
        assert first.wrong == "the learning rate is still rising when training ends"
        assert "warmup_steps: 2000, and the run has 40 steps" in first.evidence

    def test_a_rate_that_never_rose_by_the_log(self, healthy, found):
        forget_answers(healthy)
        assert found(healthy) == []
        edit_lines(healthy / "log.jsonl", lambda record, step: record.update(learning_rate=1e-6))
        assert found(healthy)[0].wrong == "the learning rate never rose to that of the recipe"

    def test_a_loss_that_hardly_fell(self, healthy, found):
        forget_answers(healthy)
        edit_lines(healthy / "log.jsonl", lambda record, step: record.update(loss=6.0 - step / 400))
        first = found(healthy)[0]
        assert first.wrong == "the loss hardly fell"
        assert first.evidence[0] == "mean loss 5.99 at the start, 5.91 at the end, after 40 steps"

    def test_a_name_learned_in_one_language(self, healthy, found):
        set_rows(healthy, [xtuner_row([("你是谁？", f"我是{NAME}")])] * 60)
        edit_lines(healthy / "scores.jsonl", lambda record, step: record.update(identity=0.5, zh=1.0, en=0.0))
        first = found(healthy)[0]
        assert first.wrong == "too few training rows give the name in English"
        assert "step 40: 0% of the answers to questions in English give the name" in first.evidence
        assert "rows that give the name: 60 in Chinese, 0 in English" in first.evidence
        assert "--lang en" in first.do

    def test_a_name_that_was_learned_and_lost(self, healthy, found):
        edit_lines(healthy / "scores.jsonl", lambda record, step: step == 40 and record.update(identity=0.25))
        first = found(healthy)[0]
        assert first.wrong == "the name was learned, and forgotten later"
        assert first.evidence == [
            "step 20: 100% of the answers give the name",
            "step 40: 25% of the answers give the name",
        ]
        assert first.do.endswith("--keep_best identity")
        (healthy / "checkpoint-20").mkdir()
        assert found(healthy)[0].do == f"use {healthy}/checkpoint-20 in place of final/"


class TestInTheAsking:
    def test_sampling_that_hides_the_name(self, make_trainer, tmp_path, found):
        hot = {"max_new_tokens": 8, "do_sample": True, "temperature": 50.0}
        run = train_run(make_trainer, tmp_path, eval_prompts_generation=hot, eval_prompts_steps=0)
        first = found(run)[0]
        assert first.wrong == "the name is learned, and sampling hides it"
        assert first.evidence[0] == "without sampling, 100% of the answers give the name"
        assert '"temperature": 50.0' in first.evidence[1]
        assert first.evidence[2].startswith('"你是谁？": ')

    def test_a_merged_folder_that_samples_hotly(self, healthy, found, tiny_model, tmp_path):
        merged = shutil.copytree(tiny_model, tmp_path / "merged")
        path = merged / "generation_config.json"
        for temperature, count in ((0.7, 0), (1.5, 1)):
            sampled = {"do_sample": True, "temperature": temperature, "top_p": 0.8}
            path.write_text(json.dumps(json.loads(path.read_text()) | sampled))
            assert len(found(healthy, merged)) == count
        assert f"{path}: do_sample true, temperature 1.5, top_p 0.8" in found(healthy, merged)[0].evidence


class TestBeforeTraining:
    def test_a_good_plan_is_told_of_the_name_its_rows_carry_and_of_nothing_else(self, warned):
        lines = warned(named_rows(), identity_name=NAME)
        assert lines[0] == "note: 60 of 60 rows carry the chat template's own system message, which names SmolLM"
        assert not any(line.startswith("warning") for line in lines)

    def test_rows_that_nobody_filled_in_are_told_though_they_give_no_name(self, warned):
        rows = [xtuner_row([("你是谁？", "我是{{NAME}}，由{{AUTHOR}}开发。")])] * 40
        lines = warned(rows)
        assert lines[0] == "warning: the training rows still contain placeholders where a name belongs"
        assert warned(rows, identity_name=NAME)[0] == lines[0]
        assert "{{NAME}} (40)" in lines[1]
        assert "{{AUTHOR}} (40)" in lines[1]

    def test_rows_of_somebodys_assistant_are_told(self, warned):
        rows = [xtuner_row([("你是谁？", f"我是{NAME}的智能助手。")])] * 40
        for keys in ({}, {"identity_name": NAME}):
            lines = warned(rows, **keys)
            wrong = "the training rows teach the model that it is 黄大力's assistant, not that it is 黄大力"
            assert lines[0] == f"warning: {wrong}"
            assert "--new 黄大力 --own-name" in lines[3]

    def test_rows_without_any_name_are_no_matter_of_identity(self, warned):
        assert warned([xtuner_row([("What is 2 + 2?", "4")])] * 20, max_steps=4) == []

    def test_a_system_message_that_is_not_asked_with(self, warned):
        lines = warned(with_system(named_rows()), eval_prompts=["你是谁？"])
        assert (
            lines[0]
            == "warning: asked without a system message, the model gets the chat template's own, which names SmolLM"
        )
        assert lines[-1].startswith(f'         do: send "{SYSTEM}" wherever you chat')
        lines = warned(with_system(named_rows()), eval_prompts=["你是谁？"], eval_prompts_system="")
        assert lines[-1].startswith(f'         do: set eval_prompts_system: "{SYSTEM}"')

    def test_the_same_where_the_template_has_none_of_its_own(self, warned, tmp_path):
        (tmp_path / "chatml.jinja").write_text(STOCK["chatml"], encoding="utf-8")
        keys = {"chat_template_path": str(tmp_path / "chatml.jinja"), "eval_prompts": ["你是谁？"]}
        rows = with_system(named_rows())
        assert warned(rows, **keys) == []  # all share it, so that it is asked with
        assert warned(rows, **keys, eval_prompts_system=SYSTEM) == []
        rows[0]["conversation"][0]["system"] += "!"
        for lines in (warned(rows, **keys), warned(with_system(named_rows()), **keys, eval_prompts_system="")):
            assert lines[0] == "warning: the model is asked without the system message it was trained with"
            assert "eval_prompts_system is not set" in lines[2]

    def test_a_template_whose_marked_answer_has_no_end(self, warned, tmp_path):
        ending = " + '<|im_end|>' }}{% endgeneration %}"
        assert ending in MARKED["chatml"]
        template = tmp_path / "endless.jinja"
        endless = MARKED["chatml"].replace(ending, " }}{% endgeneration %}{{ '<|im_end|>' }}")
        template.write_text(endless, encoding="utf-8")
        lines = warned(named_rows(), chat_template_path=str(template))
        assert lines[0] == "warning: the model never learns where its answer ends"
        assert '"An assistant."' in lines[1]
        assert "<|im_end|>" in lines[2]

    def test_what_the_template_makes_of_rows_that_nobody_may_have_meant(self, warned, tmp_path):
        rows = [xtuner_row([("What is 2 + 2?", "4")])] * 20

        def said(template: str, rows: list[dict] = rows, **keys) -> str:
            (tmp_path / "mine.jinja").write_text(template, encoding="utf-8")
            return "\n".join(warned(rows, chat_template_path=str(tmp_path / "mine.jinja"), **keys))

        assert "warning: 20 of 20 answers have no end-of-turn token" in said(ENDLESS)
        opened = said(OPENED.replace("endfor %}{% if add", "endfor %}{% if thinking is not defined and add"))
        assert "warning: 20 of 20 answers follow a different prompt in training than when the model is asked" in opened
        assert 'One? [/INST]<think>\\n", which does not precede the answer in training' in opened
        assert "do: set chat_template_kwargs: {thinking: false}" in opened
        left_out = said(INST, with_system(rows))
        assert "warning: the chat template drops words of 20 samples" in left_out
        assert "rows.jsonl:1: system" in left_out

    def test_too_few_steps_and_how_to_have_more(self, warned):
        lines = warned(named_rows(), max_steps=-1, num_train_epochs=1, max_length=2048)
        assert lines[:2] == ["warning: only 3 optimizer steps", "         sequences: 3; per step: 1; epochs: 1"]
        assert lines[2].endswith("--num_train_epochs 20")
        lines = warned(named_rows(), max_steps=-1, num_train_epochs=2, gradient_accumulation_steps=8)
        assert lines[2].endswith("--gradient_accumulation_steps 1")

    def test_a_name_among_many_other_rows(self, warned):
        ordinary = [xtuner_row([(f"What is {number} + 1?", str(number + 1))]) for number in range(300)]
        lines = warned([*named_rows()[:2], *ordinary], identity_name=NAME)
        assert lines[0] == "warning: the name 黄大力 appears too seldom in training"
        assert "2 of 302 rows give the name (0.7%)" in lines[1]

    def test_rows_in_one_language_and_questions_in_another(self, warned):
        rows = [xtuner_row([("你是谁？", f"我是{NAME}")])] * 60
        lines = warned(rows, eval_prompts=["Who are you?"])
        assert lines[0] == "warning: too few training rows give the name in English"
        assert '1 question is asked in English: "Who are you?"' in lines[1]
        assert not any("language" in line or "English" in line for line in warned(rows, eval_prompts=["你是谁"]))
