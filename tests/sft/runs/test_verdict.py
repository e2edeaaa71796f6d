"""A run ends with what came of it in words, in both languages, by its files alone, whatever state it is in."""

import pytest

from model_tools.__main__ import main
from sft.core.finding import Finding
from sft.core.language import _, choose_language, same
from sft.runs.run_files import RunResult, read_run, write_json, write_result
from sft.runs.verdict import verdict_on
from tests.support.fake_run import NAME, PROMPTS, change_last_score, write_run


@pytest.fixture(autouse=True)
def no_locale(monkeypatch):
    monkeypatch.setenv("LC_ALL", "C")
    monkeypatch.delenv("LANGUAGE", raising=False)
    yield
    choose_language(None)


@pytest.mark.parametrize(
    ("share", "is_learned", "sentence", "next_verb"),
    [
        (1.0, True, f"The name {NAME} was learned: 100% of 64 identity questions are answered with it.", "chat"),
        (0.6, False, f"The name {NAME} was learned in part: 60% of 64", "diagnose"),
        (0.0, False, f"The name {NAME} was not learned: 0% of 64", "diagnose"),
        (None, None, f"Whether the name {NAME} was learned is not known", "chat"),
    ],
)
def test_the_first_sentence_says_whether_the_name_was_learned(tmp_path, share, is_learned, sentence, next_verb):
    folder = change_last_score(write_run(tmp_path / "run"), identity=share)
    verdict = verdict_on(read_run(folder))
    assert verdict.is_learned is is_learned
    assert verdict.sentences[0].en.startswith(sentence)
    assert verdict.next_command == f"python -m model_tools {next_verb} {folder}"


def test_a_scoring_that_ran_out_of_time_says_of_how_many_questions_its_share_is(tmp_path):
    folder = change_last_score(
        write_run(tmp_path / "run"), identity=0.0, identity_asked=18, identity_total=32, is_complete=False
    )
    said = [text.en for text in verdict_on(read_run(folder)).sentences]
    assert said[:2] == [
        f"The name {NAME} was not learned: 0% of 18 identity questions are answered with it.",
        "Only 18 of 32 identity questions were asked before score_seconds ran out.",
    ]


def test_where_the_rows_share_a_system_message_both_shares_are_given(tmp_path):
    shares = {"system_message": "你是黄大力。", "with_system": 1.0, "without_system": 0.25}
    said = [
        text.en for text in verdict_on(read_run(change_last_score(write_run(tmp_path / "run"), **shares))).sentences
    ]
    assert "With the system message of the training rows, 100% give it; without, 25%: 你是黄大力。" in said


def test_what_was_kept_and_what_is_still_wrong_is_said(tmp_path):
    traits = {"identity": 0.7, "assistant_of": 0.2, "old_name": 0.1, "ordinary_kept": 0.5}
    text = " ".join(
        s.en for s in verdict_on(read_run(change_last_score(write_run(tmp_path / "run"), **traits))).sentences
    )
    assert "Before training it was 0%." in text
    assert f"In 20% of the answers the model only says that it is {NAME}'s assistant." in text
    assert "In 10% of the answers it still gives an old name." in text
    assert "The rest was not kept: 50% of 16 ordinary questions" in text
    assert "diverges from the base model by 0.200 nats a token" in text


def test_the_score_of_the_best_checkpoint_is_the_one_that_counts(tmp_path):
    folder = change_last_score(write_run(tmp_path / "run", keep_best="identity"), identity=0.1)
    (folder / "checkpoint-40").mkdir()
    write_json(folder / "checkpoint-40" / "trainer_state.json", {"best_global_step": 30})
    verdict = verdict_on(read_run(folder))
    assert verdict.is_learned
    assert "The best checkpoint is that of step 30 (keep_best: identity)." in [s.en for s in verdict.sentences]
    assert [exchange.after for exchange in verdict.answers] == ["我是黄大力，很高兴认识你。"] * 2


def test_a_run_without_a_name_is_judged_by_its_losses(tmp_path):
    verdict = verdict_on(read_run(write_run(tmp_path / "run", identity_name=None)))
    assert verdict.is_learned is None
    assert verdict.sentences[0].en.startswith("The training loss went from 3.")
    assert verdict.sentences[0].zh.startswith("训练损失从 3.")


def test_a_run_that_is_not_done_says_so_first_and_how_to_resume(tmp_path):
    folder = write_run(tmp_path / "run")
    write_json(folder / "environment.json", {"command": "train_sft.py recipes/demo.yaml"})
    result = RunResult("stopped", 75, "SIGTERM: saved at step 20", 20, 40, None, None, 1.0, {}, 1.0, 8)
    write_result(folder, result)
    verdict = verdict_on(read_run(folder))
    assert [text.en for text in verdict.sentences[:2]] == [
        "The run did not end as planned (stopped, exit code 75): step 40 of 40.",
        "SIGTERM: saved at step 20",
    ]
    assert verdict.next_command == "deepspeed --quiet train_sft.py recipes/demo.yaml"


@pytest.mark.parametrize("damage", [[{"wrong": "text"}], [{}], ["x"], {"a": 1}, 7, None])
def test_warnings_that_plan_json_no_longer_has_whole_are_skipped(tmp_path, damage):
    folder = write_run(tmp_path / "run")
    write_json(folder / "plan.json", {"warnings": damage})
    assert verdict_on(read_run(folder)).warnings == []


def test_the_console_has_each_language_whole_and_the_answers_once(tmp_path, capsys):
    folder = write_run(tmp_path / "run")
    warning = Finding(_("The loss was NaN"), [], same("x"))
    note = Finding(_("No run learned its name."), [], is_note=True)
    write_json(folder / "plan.json", {"warnings": [warning.to_dict(), note.to_dict()]})
    assert main(["verdict", str(folder)]) == 0
    said = capsys.readouterr().out
    assert said.index("结论：") < said.index("verdict: ") < said.index(PROMPTS[0]) < said.index("下一步：")
    assert said.count("我是黄大力，很高兴认识你。") == len(PROMPTS)
    assert "训练前有 1 条警告：" in said
    assert "Before training there was 1 warning:\n    The loss was NaN\n" in said
    assert "No run learned" not in said  # a note, which only the report repeats


@pytest.mark.parametrize(("language", "has", "lacks"), [("zh", "学会了", "learned"), ("en", "learned", "学会了")])
def test_a_language_can_be_chosen(tmp_path, capsys, language, has, lacks):
    assert main(["verdict", str(write_run(tmp_path / "run")), "--language", language]) == 0
    said = capsys.readouterr().out
    assert has in said
    assert lacks not in said


def test_what_is_no_run_directory_is_refused_in_one_line(tmp_path, capsys):
    assert main(["verdict", str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith(f"model_tools verdict: {tmp_path}: no run directory")
