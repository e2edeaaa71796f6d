"""A recipe that names no precision gets the one that this CPU is fast in; one that names any gets just that."""

import pytest
import torch

from sft.config.load import load_recipe

PRECISION = ("dtype", "bf16")


@pytest.fixture
def load(write_recipe, monkeypatch):
    """Load a recipe without the named precision of the tests', on a CPU that has or lacks an instruction."""

    def load(capabilities: dict[str, bool], **keys):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
        path = write_recipe(**keys)
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
        named = tuple(f"{key}:" for key in PRECISION if key not in keys)
        path.write_text("".join(line for line in lines if not line.startswith(named)), encoding="utf-8")
        return load_recipe([str(path)])

    return load


@pytest.mark.parametrize("instruction", ["avx512_bf16", "amx_bf16"])
def test_a_cpu_with_bfloat16_products_computes_in_it(load, instruction):
    recipe = load({instruction: True})
    assert (recipe.model.dtype, recipe.training.bf16) == ("bfloat16", True)
    assert {"dtype": "bfloat16", "bf16": True}.items() <= recipe.chosen.items(), "another machine must compute the same"


@pytest.mark.parametrize("capabilities", [{}, {"avx2": True, "avx512_bf16": False}])
def test_any_other_cpu_computes_in_float32(load, capabilities):
    recipe = load(capabilities)
    assert (recipe.model.dtype, recipe.training.bf16) == ("float32", False)


def test_weights_that_are_trained_themselves_stay_in_float32(load):
    recipe = load({"avx512_bf16": True}, use_peft=False)
    assert (recipe.model.dtype, recipe.training.bf16) == ("float32", True)


def test_a_named_precision_is_left_alone(load):
    assert load({"avx512_bf16": True}, bf16=False).model.dtype == "float32"
    assert load({}, dtype="bfloat16").training.bf16 is True  # TRL's default
