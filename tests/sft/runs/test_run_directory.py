"""The run directory: it tells how a run was made, keeps earlier runs, and holds an adapter that loads."""

import json
from datetime import date

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from sft.config.load import load_recipe
from sft.core.errors import UserError
from sft.data.dataset import load_dataset
from sft.runs import run_directory
from sft.runs.inputs import DATE
from sft.runs.run_files import Answer
from sft.training import final_model
from sft.training.plan import make_plan
from tests.support.conversations import SMOLLM2_TEMPLATE
from tests.support.recipes import ADAPTER_FOLDER


@pytest.fixture
def opened(write_recipe, tokenizer):
    def run(**keys):
        recipe = load_recipe([str(write_recipe(**keys))])
        _, card = load_dataset(recipe, tokenizer)
        run_directory.open_run(recipe, card, run_directory.find_start(recipe), make_plan(recipe, card).to_dict())
        return recipe

    return run


def test_it_holds_the_recipe_the_card_the_environment_and_the_plan_and_no_secret(opened, tmp_path, monkeypatch):
    monkeypatch.setenv("SOME_TOKEN", "s3cret")
    opened()
    folder = tmp_path / "run"
    assert json.loads((folder / "dataset_card.json").read_text())["rows"] == 40
    environment = json.loads((folder / "environment.json").read_text())
    assert environment["packages"]["trl"] == "1.16.0"
    assert environment["cores"] > 0
    assert environment["command"]
    assert json.loads((folder / "plan.json").read_text())["total_steps"] == 4
    assert not any("s3cret" in file.read_text() for file in folder.iterdir())


def test_an_earlier_run_is_moved_aside_and_nothing_of_it_is_lost(opened, tmp_path, capsys):
    for _ in range(3):
        opened()
        (tmp_path / "run" / "mark").write_text("kept")
    assert (tmp_path / "run.1" / "mark").read_text() == "kept"
    assert (tmp_path / "run.2" / "mark").read_text() == "kept"
    assert "held an earlier run; it is now" in capsys.readouterr().out


def test_the_result_of_an_earlier_run_is_not_taken_for_this_ones(opened, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "result.json").write_text("{}")
    opened()
    assert not (tmp_path / "run" / "result.json").exists()


def test_what_is_there_and_of_no_run_stays_where_it_is(opened, tmp_path, capsys):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "train.log").write_text("a shell writes this")
    opened()
    assert (tmp_path / "run" / "train.log").read_text() == "a shell writes this"
    assert not (tmp_path / "run.1").exists()
    assert "earlier run" not in capsys.readouterr().out


def test_a_run_directory_that_holds_what_the_run_reads_is_refused(opened, train_file, tiny_model):
    for path in (train_file, tiny_model):
        with pytest.raises(UserError, match=f"output_dir: {path.parent}: holds {path}, which a later run would move"):
            opened(output_dir=str(path.parent))


def test_a_folder_that_cannot_be_written_is_refused(opened, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"output_dir: .*Not a directory: name another folder"):
        opened(output_dir=str(tmp_path / "file" / "run"))


def test_the_final_adapter_loads_on_its_base_with_the_stock_template(make_trainer, tmp_path, tiny_model):
    trainer, card = make_trainer(max_steps=2)
    trainer.train()
    answers = [Answer(2, "Who | are you?", "<script>alert(1)</script>\n| x", 0.1, 3, "end of turn")]
    final = final_model.save_final(trainer, card, answers)
    assert sorted(file.name for file in final.iterdir()) == ADAPTER_FOLDER
    assert AutoTokenizer.from_pretrained(final).chat_template == SMOLLM2_TEMPLATE
    reloaded = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_model), final)
    trained = {name: value for name, value in trainer.model.named_parameters() if "lora_" in name}
    assert trained
    assert all(torch.equal(value, reloaded.get_parameter(name)) for name, value in trained.items())
    text = (final / "README.md").read_text()
    assert "<script>" not in text
    assert "Who &#124; are you?" in text
    assert "lora_r: 8" in text


def test_a_path_without_a_checkpoint_is_refused(write_recipe):
    recipe = load_recipe([str(write_recipe(resume="nowhere"))])
    with pytest.raises(UserError, match="nowhere: no such checkpoint; beside it there is none"):
        run_directory.find_start(recipe)


def test_an_empty_run_directory_is_begun_anew(write_recipe):
    assert run_directory.find_start(load_recipe([str(write_recipe())])).checkpoint is None


@pytest.mark.parametrize("written", [{}, {"resume": "true"}, {"resume_from_checkpoint": True}])
def test_an_unfinished_run_resumes_from_its_newest_checkpoint(make_trainer, tmp_path, write_recipe, written):
    keys = {"save_strategy": "steps", "save_steps": 2, "max_steps": 4}
    recipe = load_recipe([str(write_recipe(**keys))])
    trainer, card = make_trainer(**keys)
    trainer._inputs = run_directory.find_start(recipe).inputs
    trainer.train()
    recipe = load_recipe([str(write_recipe(**keys, **written))])
    start = run_directory.find_start(recipe)
    assert start.checkpoint.folder == tmp_path / "run" / "checkpoint-4"
    final_model.save_final(trainer, card, [])
    assert run_directory.find_start(recipe).checkpoint is None  # it is finished


def test_a_run_that_is_resumed_another_day_tells_its_template_the_day_it_began(make_trainer, write_recipe):
    keys = {"save_strategy": "steps", "save_steps": 2, "max_steps": 4}
    recipe = load_recipe([str(write_recipe(**keys))])
    trainer, _ = make_trainer(**keys)
    began = run_directory.find_start(recipe).inputs
    assert began[DATE] == date.today().isoformat()
    trainer._inputs = began | {DATE: "2024-07-26"}
    trainer.train()
    start = run_directory.find_start(recipe)
    assert start.checkpoint.step == 4
    assert start.inputs == began | {DATE: "2024-07-26"}
