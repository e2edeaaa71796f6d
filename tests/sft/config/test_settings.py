"""Settings are read once, before the stack is there; what only the stack can decide is reported when it is."""

import re

import pytest
import yaml

from sft.config import load, machine_check
from sft.config.load import load_recipe, read_recipe
from sft.config.settings import read_settings
from sft.config.viewed_recipe import view_recipe
from sft.core.errors import UserError
from sft.core.paths import PATH_KEYS


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("parallelism_config: {sp_size: two}", "parallelism_config: sp_size: two: not a number of processes"),
        (
            "parallelism_config: {sp_size: 2, sp_handler: x}",
            "parallelism_config: sp_handler: x: a mapping of its fields",
        ),
        ("parallelism_config: {sp_size: 0}", "parallelism_config: sp_size must be at least 1, but got 0"),
        ("parallelism_config: {cp_size: 2, sp_size: 2}", "parallelism_config: Context Parallelism (CP) and Sequence"),
        (
            "parallelism_config: {sp_size: 2, sp_handler: {sp_seq_len: 8}}",
            "parallelism_config: sp_handler: sp_seq_len: no such field; did you mean sp_seq_length?",
        ),
    ],
)
def test_a_value_that_only_the_stack_knows_is_refused_by_it(write_recipe, line, said):
    path = write_recipe()
    path.write_text(f"{path.read_text()}{line}\n")
    settings = read_settings([str(path)])
    with pytest.raises(UserError) as error:
        read_recipe(settings)
    assert str(error.value).startswith(f"{path}:{len(path.read_text().splitlines())}: {said}")


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("log_level: loud", "log_level: 'loud' is not one of detail"),
        ("optim:", "optim: no value; leave the line out for the default, adamw_torch"),
        ("include_for_metrics:", "include_for_metrics: no value; leave the line out for the default, []"),
        ("deepspeed: broken.json", "deepspeed: broken.json: not JSON: Expecting property name"),
    ],
)
def test_a_value_that_does_not_fit_is_refused_before_the_stack_is_there(
    write_recipe, tmp_path, monkeypatch, line, said
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "broken.json").write_text("{")
    path = write_recipe()
    path.write_text(f"{path.read_text()}{line}\n")
    with pytest.raises(UserError) as error:
        read_settings([str(path)])
    assert str(error.value).startswith(f"{path}:{len(path.read_text().splitlines())}: {said}")


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("x", "x: not JSON"),
        (["x"], "a list does not fit here"),
        ({"sp_sise": 2}, "sp_sise: no such field; did you mean sp_size?"),
    ],
)
def test_a_key_of_several_fields_is_checked_before_the_stack_is_there(write_recipe, value, said):
    with pytest.raises(UserError, match=f"tiny.yaml:.* parallelism_config: {re.escape(said)}"):
        read_settings([str(write_recipe(parallelism_config=value))])


@pytest.mark.parametrize(
    ("value", "said"), [("{", "not JSON"), ('{"sp_sise": 2}', "did you mean sp_size?"), ("2", "JSON, but no object")]
)
def test_so_is_one_on_the_command_line(write_recipe, value, said):
    with pytest.raises(UserError, match=f"command line: parallelism_config: .*{re.escape(said)}"):
        read_settings([str(write_recipe()), "--parallelism_config", value])


def test_fields_of_a_key_reach_the_stack_from_a_recipe_and_from_the_command_line(write_recipe, monkeypatch):
    monkeypatch.setattr(load, "refuse_what_cannot_share", lambda *_: None)  # of one process
    asked = ["--parallelism_config", '{"sp_size": 2}', "--attn_implementation", "sdpa"]
    for recipe in (
        load_recipe([str(write_recipe(parallelism_config={"sp_size": 2}, attn_implementation="sdpa"))]),
        load_recipe([str(write_recipe()), *asked]),
    ):
        config = recipe.training.parallelism_config
        assert (config.sp_size, config.cp_size) == (2, 1)
        assert config.sp_handler.sp_attn_implementation == "sdpa"
        assert yaml.safe_load(recipe.to_yaml())["parallelism_config"] == {"sp_size": 2}


@pytest.mark.parametrize(("value", "expected"), [(True, True), ("full_shard", True), (False, None), (None, None)])
def test_fsdp_is_turned_on_by_true_as_by_its_older_word(write_recipe, monkeypatch, value, expected):
    monkeypatch.setattr(machine_check, "refuse_fsdp", lambda *_: None)  # there is no GPU to divide for
    assert load_recipe([str(write_recipe(fsdp=value))]).training.fsdp is expected
    if isinstance(value, bool):
        flag = ["--fsdp", str(value).lower()]
        assert load_recipe([str(write_recipe()), *flag]).training.fsdp is expected


def test_a_mistake_comes_after_the_notes_on_old_spellings(write_recipe, capsys):
    path = write_recipe(no_cuda=True, lora_rr=3)
    with pytest.raises(UserError, match="lora_rr: no such setting"):
        read_settings([str(path)])
    assert capsys.readouterr().out.count("no_cuda is now use_cpu; read as that") == 1


def test_settings_of_the_hardware_are_left_aside_where_nothing_is_trained(write_recipe):
    path = write_recipe(deepspeed="ds_configs/zero9.json", fp16=True, bf16=False)
    with pytest.raises(UserError, match="no such file; there are ds_configs/"):
        read_settings([str(path)])
    recipe = view_recipe([str(path)], PATH_KEYS)
    assert (recipe.training.deepspeed, recipe.training.fp16, recipe.training.bf16) == (None, False, False)
