"""What the stack raises in the middle of a run is told in one line with its key; a bug of ours keeps its traceback."""

import json
from pathlib import Path

import pytest
import torch

from sft.config.load import load_recipe
from sft.core.errors import RunFailed, UserError
from sft.training import stack_errors


def test_a_key_that_the_stack_names_is_told_with_its_place(make_trainer, write_recipe, tmp_path):
    recipe = load_recipe([str(write_recipe(router_aux_loss_coef=0.1))])
    with pytest.raises(RunFailed) as failed, stack_errors.explain(recipe, tmp_path):
        make_trainer(router_aux_loss_coef=0.1)
    line, _, path = str(failed.value).rpartition("; see ")
    place = recipe.places["router_aux_loss_coef"]
    assert line.startswith(f"{place}: router_aux_loss_coef: `router_aux_loss_coef` is set to 0.1 but PeftModel")
    assert line.endswith("(ValueError): change it, or leave it out")
    assert "\n" not in line
    assert Path(path) == tmp_path / "traceback-0.txt"
    assert Path(path).read_text().startswith("Traceback")


def test_a_key_that_only_the_line_names_where_it_happened_is_found_there(make_trainer, train_file):
    trainer, _ = make_trainer(eval_file=str(train_file), eval_strategy="epoch", eval_accumulation_steps=1)
    trainer.args.eval_accumulation_steps = 0
    with pytest.raises(RunFailed) as failed, stack_errors.explain(trainer.recipe):
        trainer.evaluate()
    place = trainer.recipe.places["eval_accumulation_steps"]
    assert str(failed.value).startswith(f"{place}: eval_accumulation_steps: integer modulo by zero (ZeroDivisionError)")


def test_what_names_no_key_is_told_as_such(write_recipe):
    recipe = load_recipe([str(write_recipe())])
    with pytest.raises(RunFailed) as failed, stack_errors.explain(recipe):
        json.loads("x")
    assert str(failed.value).startswith("JSONDecodeError: Expecting value")
    assert ": no key of the recipe is named in it; see /" in str(failed.value)


def test_a_word_that_is_a_key_as_well_is_not_blamed(write_recipe):
    recipe = load_recipe([str(write_recipe(optim="sgd"))])
    with pytest.raises(RunFailed, match="no key of the recipe is named in it"), stack_errors.explain(recipe):
        torch.optim.SGD([])


def test_a_full_disk_is_told_in_one_line_wherever_it_is_met(write_recipe):
    recipe = load_recipe([str(write_recipe())])
    with pytest.raises(RunFailed) as failed, stack_errors.explain(recipe, Path("/proc/none")):
        Path("/dev/full").write_text("x")
    assert str(failed.value).startswith("OSError: [Errno 28] No space left on device")


def test_a_bug_of_ours_stays_what_it_is(write_recipe):
    recipe = load_recipe([str(write_recipe())])
    with pytest.raises(KeyError), stack_errors.explain(recipe):
        {}["of ours"]


@pytest.mark.parametrize(
    ("said", "has_place"), [("packing: leaks", True), ("run_name: x", False), ("a/b: gone", False)]
)
def test_a_mistake_that_begins_with_a_key_is_told_with_its_place(write_recipe, said, has_place):
    recipe = load_recipe([str(write_recipe())])
    with pytest.raises(UserError) as error, stack_errors.explain(recipe):
        raise UserError(said)
    assert str(error.value) == (f"{recipe.places['packing']}: {said}" if has_place else said)
