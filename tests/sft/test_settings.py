"""What only the stack can decide about a recipe is left open at first, and told as well in the end."""

import pytest

from data_tools.errors import UserError
from sft.recipe import make_recipe
from sft.settings import read_settings


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("log_level: loud", "log_level: invalid choice: 'loud'"),
        ("optim:", "optim: no value; leave the line out for the default, adamw_torch"),
        ("parallelism_config: x", "parallelism_config: invalid ParallelismConfig value: 'x'"),
    ],
)
def test_a_value_that_the_source_leaves_open_is_refused_by_the_stack(write_recipe, line, said):
    path = write_recipe()
    path.write_text(f"{path.read_text()}{line}\n")
    settings = read_settings([str(path)])
    with pytest.raises(UserError) as error:
        make_recipe(settings)
    assert str(error.value).startswith(f"{path}:{len(path.read_text().splitlines())}: {said}")


def test_a_mistake_comes_after_the_notes_on_old_spellings(write_recipe, capsys):
    path = write_recipe(no_cuda=True, lora_rr=3)
    with pytest.raises(UserError, match="lora_rr: no such setting"):
        read_settings([str(path)])
    assert capsys.readouterr().out.count("no_cuda is now use_cpu; read as that") == 1


def test_settings_of_the_hardware_are_left_aside_where_nothing_is_trained(write_recipe):
    path = write_recipe(deepspeed="ds_configs/zero9.json", fp16=True, bf16=False)
    with pytest.raises(UserError, match="no such file; there are ds_configs/"):
        read_settings([str(path)])
    recipe = make_recipe(read_settings([str(path)], for_training=False))
    assert (recipe.training.deepspeed, recipe.training.fp16, recipe.training.bf16) == (None, False, False)
