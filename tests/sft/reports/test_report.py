"""The report of a run: whole for every kind of run, safe with every kind of text, small, and made from files alone."""

import json
import math
import re
import sys
from html.parser import HTMLParser

import pytest
import torch

from sft.core.clock import ACTIVITIES, clock
from sft.core.errors import UserError
from sft.core.language import choose_language
from sft.evaluation.chat_eval import ChatEval
from sft.evaluation.score_eval import ScoreEval
from sft.reports import comparison, report
from sft.reports.report_writer import ReportWriter, write_report
from sft.runs import run_directory
from sft.runs.run_files import RunResult, read_run, write_result
from sft.training import final_model
from sft.training.progress import ProgressLog
from tests.support.conversations import xtuner_row
from tests.support.fake_run import NAME, PROMPTS, QUESTIONS, change_last_score, write_lines, write_run
from tests.support.launching import SCRIPT, launch

HOSTILE = (
    f'</pre></td><script src="https://evil.example/x.js">x</script><img src=x onerror=y>\u202e{NAME}&amp;\u2028\x00"'
)
OWN = 'identity: ["你是谁？", "Who are you?"]\nordinary: ["What is the capital of France?"]\ntexts: [Paris is big.]\n'
TAGS = {
    *("html", "head", "meta", "title", "style", "body", "h1", "h2", "h3", "p", "br", "strong", "span", "code", "pre"),
    *("mark", "div", "dl", "dt", "dd", "table", "thead", "tbody", "tr", "th", "td", "details", "summary"),
    *("figure", "figcaption", "svg", "line", "text", "path", "circle", "g", "rect"),
    *("section", "ul", "li", "button", "script"),
}


@pytest.fixture(autouse=True)
def in_english():
    choose_language("en")
    yield
    choose_language(None)


class Tags(HTMLParser):
    """Every tag of a page, and every attribute; text is what a reader sees."""

    def __init__(self, html: str):
        super().__init__()
        self.tags, self.attributes, self.text = set(), set(), ""
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attributes}
        self.text += " " * (tag in ("td", "th", "br", "span", "dd"))

    def handle_data(self, data):
        self.text += data


def seen(html: str) -> str:
    """The text of a page, each gap one space."""
    return " ".join(Tags(html).text.split())


@pytest.fixture
def real_run(make_trainer, tmp_path):
    """Train the tiny model to say its name as train_sft.py does; returns the trainer and the run directory."""
    rows = [xtuner_row([(question, f"我是{NAME}")]) for question in ("你是谁？", "Who are you?", "What is this?")] * 20
    write_lines(tmp_path / "named.jsonl", rows)
    (tmp_path / "questions.yaml").write_text(OWN, encoding="utf-8")

    def train(callbacks=(ChatEval, ScoreEval, ReportWriter), **keys):
        settings = {
            "train_file": str(tmp_path / "named.jsonl"), "max_steps": 40, "learning_rate": 1e-2, "lora_r": 32,
            "lora_alpha": 64, "identity_name": NAME, "score_file": str(tmp_path / "questions.yaml"),
            "eval_prompts": ["你是谁？"], "eval_prompts_steps": 10, "eval_prompts_generation": {"max_new_tokens": 8},
        }  # fmt: skip
        trainer, card = make_trainer(**settings | keys)
        start = run_directory.find_start(trainer.recipe)
        run_directory.open_run(trainer.recipe, card, start, plan={})
        trainer._inputs = start.inputs
        trainer.add_callback(ProgressLog(trainer))
        for callback in callbacks:
            trainer.add_callback(callback(trainer))
        trainer.train(resume_from_checkpoint=start.checkpoint and str(start.checkpoint.folder))
        final_model.save_final(trainer, card, [])
        return trainer, tmp_path / "run"

    return train


def test_a_real_run_tells_what_it_learned_and_its_page_can_be_made_again_from_its_files(real_run, capsys):
    trainer, folder = real_run()
    write_report(trainer)
    html = (folder / "report.html").read_text(encoding="utf-8")
    text = seen(html)
    assert f"The name {NAME} was learned: 100% of 2 identity questions are answered with it." in text
    for heading in ("loss", "learning rate", "identity", "divergence from the base model", "perplexity ratio"):
        assert f"<figcaption>{heading} " in html
    answers = re.findall(r'<td class="number step">(\d+)</td><td class="said" dir="auto">(.*?)</td>', html)
    assert [int(step) for step, _ in answers] == [0, 10, 20, 30, 40]
    assert f"<mark>{NAME}</mark>" not in answers[0][1]
    assert f"<mark>{NAME}</mark>" in answers[-1][1]
    assert "learning_rate 0.01 2e-05" in text  # the stack's own stands beside it
    assert "evaluation: asking and scoring" in text
    assert f"python -m model_tools chat {folder}" in text
    assert f"report: {folder / 'report.html'}" in capsys.readouterr().out.replace("\n", "")
    assert report.report_page(read_run(folder)) == html


def test_the_packed_sample_shows_the_supervised_tokens_of_the_first_pack(real_run):
    trainer, folder = real_run(max_steps=1, eval_prompts_steps=0)
    sample = json.loads((folder / "sample.json").read_text(encoding="utf-8"))
    pack = trainer.train_dataset[0]
    assert len(sample["samples"]) == len(pack["seq_lengths"])
    pieces = [piece for part in sample["samples"] for piece in part["pieces"]]
    assert "".join(piece["text"] for piece in pieces) == trainer.processing_class.decode(pack["input_ids"])
    supervised = [token for token, label in zip(pack["input_ids"], pack["labels"], strict=True) if label != -100]
    said = "".join(piece["text"] for piece in pieces if piece["supervised"])
    assert said == trainer.processing_class.decode(supervised)
    html = report.report_page(read_run(folder))
    assert html.count(f"<mark>我是{NAME}</mark>") == len(pack["seq_lengths"])


def test_a_long_pack_is_shown_in_part_and_says_so(real_run, monkeypatch):
    monkeypatch.setattr("sft.reports.report_writer.SAMPLE_TOKENS", 50)
    _, folder = real_run(max_steps=1, eval_prompts_steps=0)
    sample = json.loads((folder / "sample.json").read_text(encoding="utf-8"))
    assert sample["title"]["en"].startswith("The first of ")
    assert "50 of its" in report.report_page(read_run(folder))
    assert len(sample["samples"]) == 1


def test_train_sft_measures_where_its_time_goes_and_ends_with_the_report(write_recipe, tmp_path):
    recipe = write_recipe(
        eval_prompts=["你是谁？"], eval_prompts_generation={"max_new_tokens": 3}, save_strategy="steps", save_steps=2
    )
    result = launch(sys.executable, SCRIPT, recipe)
    assert result.returncode == 0, result.stderr[-3000:]
    assert f"report: {tmp_path / 'run' / 'report.html'}" in result.stdout
    spent = json.loads((tmp_path / "run" / "time.json").read_text())
    assert all(spent[activity] > 0 for activity in ACTIVITIES)
    assert spent["total"] == pytest.approx(sum(spent[activity] for activity in ACTIVITIES), abs=1e-6)
    text = seen((tmp_path / "run" / "report.html").read_text(encoding="utf-8"))
    assert "This run has no evaluation prompts" not in text
    assert "Identity and retention" not in text  # it has no name to learn
    assert "Trained for 4 steps." in text


def test_train_sft_ends_with_the_verdict_and_result_json_holds_the_same(write_recipe, tmp_path):
    recipe = write_recipe(
        eval_prompts=["你是谁？"], eval_prompts_generation={"max_new_tokens": 3}, identity_name=NAME, language="en"
    )
    result = launch(sys.executable, SCRIPT, recipe)
    assert result.returncode == 0, result.stderr[-3000:]
    said = result.stdout[result.stdout.index("verdict: ") :].splitlines()
    verdict = json.loads((tmp_path / "run" / "result.json").read_text(encoding="utf-8"))["verdict"]
    assert verdict["is_learned"] is False
    assert said[0].startswith(f"verdict: The name {NAME} was not learned: 0% of ")
    assert said[: len(verdict["sentences"])] == [f"verdict: {verdict['sentences'][0]}"] + [
        f"  {sentence}" for sentence in verdict["sentences"][1:]
    ]
    assert [exchange["prompt"] for exchange in verdict["answers"]] == ["你是谁？"]
    assert said[-2:] == ["Next: find out why, and what to change.", f"  {verdict['next']}"]
    assert verdict["next"] == f"python -m model_tools diagnose {tmp_path / 'run'}"


def test_a_report_leaves_training_bit_for_bit_as_without(real_run):
    states, losses = [], []
    for callbacks in ((), (ChatEval, ScoreEval, ReportWriter)):
        torch.manual_seed(0)
        keys = {"max_steps": 8, "lora_dropout": 0.1, "eval_prompts_steps": 3, "save_strategy": "steps", "save_steps": 4}
        trainer, _ = real_run(callbacks=callbacks, **keys)
        states.append({name: value.clone() for name, value in trainer.model.state_dict().items() if "lora_" in name})
        losses.append([entry["loss"] for entry in trainer.state.log_history if "loss" in entry])
    assert losses[0] == losses[1]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_a_run_that_is_resumed_counts_the_time_before_and_shows_each_step_once(real_run):
    keys = {"save_strategy": "steps", "save_steps": 4, "eval_prompts_steps": 2}
    saved = clock.seconds()["saving"]
    _, folder = real_run(max_steps=6, **keys)
    before = json.loads((folder / "time.json").read_text())
    assert before["saving"] > saved  # checkpoints count: final/ was saved after this was written
    log = (folder / "log.jsonl").read_text()
    begun = clock.seconds()
    real_run(max_steps=8, resume=str(folder / "checkpoint-4"), resume_anyway=True, **keys)
    after = json.loads((folder / "time.json").read_text())
    assert all(after[activity] >= begun[activity] + before[activity] for activity in ACTIVITIES)
    assert (folder / "log.jsonl").read_text().startswith("".join(log.splitlines(keepends=True)[:4]))
    run = read_run(folder)
    assert [record["step"] for record in run.log] == list(range(1, 9))
    assert [record["max_steps"] for record in run.log] == [6] * 4 + [8] * 4
    assert [record["step"] for record in run.answers] == [0, 2, 4, 6, 8]
    assert run.evaluated_steps == [0, 2, 4, 6, 8]


def test_a_run_that_stopped_in_time_or_kept_its_best_says_so(real_run):
    _, folder = real_run(
        max_steps=80, stop_when_identity=0.95, keep_best="balance", save_strategy="steps", save_steps=500
    )
    run = read_run(folder)
    assert 0 < run.last_step < 80
    text = seen(report.report_page(run))
    assert f"Training stopped early, at step {run.last_step} of 80:" in text
    assert "100% of the identity questions are answered with the name, and stop_when_identity asks for 95%." in text
    assert f"The best checkpoint is that of step {run.best_step} (keep_best: balance)." in text
    assert run.best_step in run.evaluated_steps
    assert f"best checkpoint {run.best_step}" in text  # on the charts


def test_a_page_that_cannot_be_written_stops_no_training(real_run, tmp_path, capsys):
    (tmp_path / "run").mkdir()

    class Obstacle(ReportWriter):
        def on_train_begin(self, args, state, control, **kwargs):
            (self.folder / "report.html").mkdir()
            super().on_train_begin(args, state, control, **kwargs)

    trainer, _ = real_run(callbacks=(Obstacle,), max_steps=2)
    assert trainer.state.global_step == 2
    assert "report.html was not written" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"report\.html: is a directory"):
        write_report(trainer)


def test_a_run_just_begun_has_a_report(real_run, tmp_path):
    class End(Exception):
        pass

    class Begun(ReportWriter):
        def on_step_begin(self, *_, **__):
            raise End

    with pytest.raises(End):
        real_run(callbacks=(Begun,))
    text = seen((tmp_path / "run" / "report.html").read_text(encoding="utf-8"))
    assert "Step 0 of 40: the run has no final/ yet; it is running, or was killed." in text
    assert "Nothing was logged yet." in text
    assert "Nothing was scored yet." in text
    assert "No evaluation prompt was asked yet." in text
    assert "A packed sample" in text
    assert "merge" not in text


@pytest.mark.parametrize(
    ("keys", "gone"), [({"identity_name": None}, "Identity and retention"), ({"prompts": ()}, "很高兴")]
)
def test_a_run_without_a_name_or_without_prompts_has_a_report(tmp_path, keys, gone):
    text = seen(report.report_page(read_run(write_run(tmp_path / "run", **keys))))
    assert "Trained for 40 steps." in text
    assert ("This run has no evaluation prompts." in text) == ("prompts" in keys)
    if "identity_name" in keys:
        assert gone not in text


@pytest.mark.parametrize(
    "make", [lambda run: report.report_page(run), lambda run: comparison.comparison_page([run, run])]
)
def test_hostile_text_is_shown_as_text_and_asks_nobody_for_anything(tmp_path, make):
    folder = write_run(
        tmp_path / "<b>run",
        prompts=(HOSTILE, "你是谁？"),
        answer=HOSTILE,
        model_name_or_path=HOSTILE,
        learning_rate=HOSTILE,
    )
    card = {"files": [{"path": HOSTILE, "sha256": "0", "rows": 1, "weight": 1, "taken": 1}], "truncation": HOSTILE}
    pieces = [{"text": HOSTILE, "supervised": True, "special": False}]
    sample = {"title": HOSTILE, "samples": [{"heading": HOSTILE, "pieces": pieces}]}
    environment = {"command": HOSTILE, "packages": {HOSTILE: HOSTILE}}
    for name, content in {"dataset_card": card, "sample": sample, "environment": environment}.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    html = make(read_run(folder))
    found = Tags(html)
    assert found.tags <= TAGS
    assert not any(name.startswith("on") or name in ("src", "href", "srcset", "action") for name in found.attributes)
    assert "default-src 'none'" in html
    assert not re.search(r"url\(|@import|<link|<base", html)
    assert '<script src="https://evil.example/x.js">x</script>' in found.text
    assert f"<mark>{NAME}</mark>&amp;amp;" in html  # the name is marked even there


def test_text_that_utf8_cannot_hold_does_not_stop_the_page(tmp_path):
    folder = write_run(tmp_path / "run")
    with open(folder / "eval_chat.jsonl", "a") as file:
        file.write(json.dumps({"step": 40, "prompt": "?", "answer": "half \ud83d a pair"}) + "\n")
    assert "half ? a pair" in report.write_report(folder).read_text(encoding="utf-8")


def test_the_page_of_a_long_run_is_small_and_its_curves_are_thinned(tmp_path):
    html = report.report_page(read_run(write_run(tmp_path / "run", steps=2000, evaluations=40)))
    assert len(html.encode()) < 300_000
    assert html.count('<td class="number step">') == 41 * len(PROMPTS)
    assert max(path.count("L") for path in re.findall(r' d="([^"]*)"', html)) < 310


def test_the_page_stays_under_two_megabytes_whatever_the_model_says(tmp_path):
    prompts = [f"提示 {number}" for number in range(30)]
    folder = write_run(tmp_path / "run", steps=2000, evaluations=40, prompts=prompts, answer="我是黄大力，" * 1000)
    assert "(195 of 6,000 characters)" in report.report_page(read_run(folder))
    choose_language(None)  # both
    assert len(report.report_page(read_run(folder)).encode()) < 2_000_000


@pytest.mark.parametrize("name", ["log.jsonl", "eval_chat.jsonl", "scores.jsonl", "score_answers.jsonl"])
@pytest.mark.parametrize("cut", [1, 2, 20])
def test_a_last_line_that_was_cut_short_is_left_out_and_told(tmp_path, name, cut):
    folder = write_run(tmp_path / "run", answer="我是黄大力")
    lines = (folder / name).read_bytes()[:-1].split(b"\n")
    place = lines[-1].rindex("力".encode()) + 1 if cut == 1 and "力".encode() in lines[-1] else -cut - 1
    lines[-1] = lines[-1][:place]  # in the midst of a character, where there is one
    (folder / name).write_bytes(b"\n".join(lines))
    run = read_run(folder)
    assert [problem.en for problem in run.problems] == [f"{name}: line {len(lines)} is damaged and was skipped"]
    text = seen(report.report_page(run))
    assert run.problems[0].en in text
    assert "Loss and speed" in text
    assert run.last_step == 40


@pytest.mark.parametrize("name", ["dataset_card.json", "environment.json", "time.json", "sample.json"])
def test_a_file_that_was_cut_short_is_left_out_and_told(tmp_path, name):
    folder = write_run(tmp_path / "run")
    (folder / name).write_text('{"title": "The fi')
    assert f"{name} is damaged and was skipped" in seen(report.report_page(read_run(folder)))


def test_an_answer_may_hold_every_character_that_ends_a_line_elsewhere(tmp_path):
    answer = "one\u2028two\x85three\x0bfour\nfive"
    run = read_run(write_run(tmp_path / "run", answer=answer))
    assert not run.problems
    assert {record["answer"] for record in run.answers} == {answer}


def test_a_loss_that_is_no_number_breaks_the_curve_and_is_told(tmp_path):
    folder = write_run(tmp_path / "run")
    log = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    log[19]["loss"], log[29]["loss"], log[39]["loss"] = "nan", "inf", "nan"
    write_lines(folder / "log.jsonl", log)
    html = report.report_page(read_run(folder))
    assert "The loss was NaN or infinite at 3 logged steps, first at step 20." in html
    loss = html.partition("<figcaption>loss")[2]
    assert re.search(r'<path class="curve c0" d="([^"]*)"', loss)[1].count("M") == 3


def test_a_score_that_is_no_number_is_no_point_of_its_curve(tmp_path):
    folder = write_run(tmp_path / "run")
    scores = [json.loads(line) for line in (folder / "scores.jsonl").read_text().splitlines()]
    scores[1]["divergence"], scores[2]["divergence"], scores[4]["divergence"] = math.nan, math.inf, None
    write_lines(folder / "scores.jsonl", scores)
    html = report.report_page(read_run(folder))
    chart = html.partition("<figcaption>divergence")[2].partition("</figure>")[0]
    assert re.findall(r">step (\d+)</text>", chart) == ["0", "30"]


def test_what_a_resumed_run_did_again_counts_once_and_what_it_left_behind_not_at_all(tmp_path):
    folder = write_run(tmp_path / "run")
    write_lines(folder / "log.jsonl", [{"step": step, "loss": loss} for step, loss in [(1, 9), (2, 8), (3, 7), (2, 6)]])
    run = read_run(folder)
    assert [(record["step"], record["loss"]) for record in run.log] == [(1, 9), (2, 6)]


def test_settings_that_differ_from_the_stacks_stand_first_and_the_rest_is_folded(tmp_path):
    folder = write_run(tmp_path / "run", adam_beta1=0.9, logging_steps=10.0)
    (folder / "stack_defaults.json").write_text(
        json.dumps({"learning_rate": 2e-5, "adam_beta1": 0.9, "logging_steps": 10})
    )
    differing, alike = report.split_settings(read_run(folder))
    assert ("learning_rate", "0.0002", "2e-05") in differing
    assert alike == [("adam_beta1", "0.9"), ("logging_steps", "10.0"), ("seed", "42")]


def test_the_stacks_own_values_are_those_of_its_dataclasses(write_recipe):
    from sft.config.load import load_recipe

    recipe = load_recipe([str(write_recipe(lr_scheduler_type="cosine", seed=7))])
    own = run_directory.stack_defaults(recipe)
    assert own.keys() == recipe.chosen.keys()
    assert json.loads(json.dumps(own))
    expected = {"lr_scheduler_type": "linear", "seed": 42, "learning_rate": 2e-5, "lora_r": 16, "packing": False}
    assert {key: own[key] for key in expected} == expected


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"no run directory: it holds no recipe\.yaml"):
        read_run(tmp_path)
    (tmp_path / "recipe.yaml").write_text("- a\n")
    with pytest.raises(UserError, match="a recipe is a list"):
        read_run(tmp_path)
    (tmp_path / "recipe.yaml").write_text("a: [\n")
    with pytest.raises(UserError, match="cannot be read"):
        read_run(tmp_path)


def test_several_runs_are_compared_where_they_differ(tmp_path):
    runs = [
        read_run(write_run(tmp_path / "a", lora_r=8)),
        read_run(write_run(tmp_path / "b", lora_r=64, steps=80, answer="我是黄大力。")),
        read_run(write_run(tmp_path / "c", lora_r=64, identity_name=None)),
    ]
    runs[0].others["new_in_a_later_release"] = 1
    html = comparison.comparison_page(runs)
    text = seen(html)
    assert "lora_r 8 64 64" in text
    assert f"identity_name {NAME} {NAME}" in text
    for alike in ("model_name_or_path", "output_dir", "use_peft", "new_in_a_later_release"):
        assert alike not in text
    assert "step 40 / 40 80 / 80 40 / 40" in text
    assert "loss a 3." in text
    assert text.index("The name was learned best in a, b: 100% of the identity questions") < text.index(
        "lora_r 8 64 64"
    )
    assert html.count("curve c2") == 3  # the third has loss, learning rate and speed, and no score
    assert f"{PROMPTS[0]} 我是{NAME}，很高兴认识你。 我是{NAME}。 我是{NAME}，很高兴认识你。" in text


def test_runs_of_one_name_are_told_apart_by_their_paths(tmp_path):
    runs = [read_run(write_run(tmp_path / place / "demo")) for place in ("one", "two")]
    assert comparison.run_labels(runs) == [str(tmp_path / "one" / "demo"), str(tmp_path / "two" / "demo")]
    assert "None: all runs have the same settings." in comparison.comparison_page(runs)


def test_the_answers_of_the_last_scoring_begin_with_what_was_missed(tmp_path):
    folder = write_run(tmp_path / "run")
    records = [json.loads(line) for line in (folder / "score_answers.jsonl").read_text().splitlines()]
    records[-1]["gives_name"] = False
    write_lines(folder / "score_answers.jsonl", records)
    rows = report.scored_answers(read_run(folder))
    assert len(rows) == QUESTIONS
    assert [row["is_missed"] for row in rows] == [True] + [False] * (QUESTIONS - 1)
    assert f"Question {QUESTIONS - 1}:" in rows[0]["question"]


def test_a_share_of_fewer_questions_says_of_how_many(tmp_path):
    asked = {"identity_asked": 18, "identity_total": 32, "ordinary_asked": 13, "ordinary_total": 24}
    folder = change_last_score(write_run(tmp_path / "part", steps=8), is_complete=False, **asked)
    run, whole = read_run(folder), read_run(write_run(tmp_path / "whole"))
    figures = {label.en: value for label, value in report.key_figures(run).items()}
    assert figures["identity"] == "100% (18/32)"
    assert figures["an old name"] == "0% (18/32)"
    assert figures["ordinary answers kept"] == "95% (13/24)"
    assert "at these steps: 8 (18/32)." in report.report_page(run)
    assert "Not every question was asked in part: those shares are" in comparison.comparison_page([run, whole])
    assert "Not every question" not in comparison.comparison_page([whole, whole])


def test_of_a_run_that_kept_its_best_figures_and_answers_are_of_that(tmp_path):
    folder = write_run(tmp_path / "run", steps=8, keep_best="identity")
    (folder / "checkpoint-8").mkdir()
    (folder / "checkpoint-8" / "trainer_state.json").write_text('{"best_global_step": 4}')
    run, whole = read_run(folder), read_run(write_run(tmp_path / "whole"))
    figures = {label.en: value for label, value in report.key_figures(run).items()}
    assert (figures["step"], figures["identity"]) == ("8 / 8", "50%")
    assert all(row["is_missed"] for row in report.scored_answers(run))
    assert "Answers scored at step 4:" in report.report_page(run)
    assert "learned best in whole:" in comparison.comparison_page([run, whole])


def test_answers_that_only_say_whose_assistant_it_is_are_shown_where_there_are_any(tmp_path):
    plain, owned = write_run(tmp_path / "plain"), write_run(tmp_path / "owned")
    for name, keys in (("scores.jsonl", {"assistant_of": 0.25}), ("score_answers.jsonl", {"is_assistant_of": True})):
        records = [json.loads(line) | keys for line in (owned / name).read_text().splitlines()]
        write_lines(owned / name, records)
    for folder, is_owned in ((plain, False), (owned, True)):
        html = report.report_page(read_run(folder))
        assert ("says only whose assistant it is" in html) == is_owned  # a curve
        figures = {label.en: value for label, value in report.key_figures(read_run(folder)).items()}
        assert figures.get("only its assistant") == ("25%" if is_owned else None)


def test_a_secret_on_the_command_line_is_in_no_file(monkeypatch):
    for given in (["--hub_token", "s3cret"], ["--hub_token=s3cret"], ["--hub-token", "s3cret"]):
        monkeypatch.setattr("sys.argv", ["train_sft.py", "recipes/demo.yaml", *given, "--lora_r", "8"])
        command = run_directory.environment()["command"]
        assert "s3cret" not in command
        assert command.endswith("--lora_r 8")


def test_a_run_that_failed_says_how_it_ended_and_why(tmp_path):
    folder = write_run(tmp_path / "run", steps=40)
    write_result(folder, RunResult("failed", 3, "step 41: <b>NaN", 40, 80, None, None, 9.0, {}, 1.5, 8192))
    text = seen(report.report_page(read_run(folder)))
    assert "The run did not end as planned (failed, exit code 3): step 40 of 40. step 41: <b>NaN" in text
