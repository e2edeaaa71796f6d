"""What is decided of a recipe is what its trainer does."""

import pytest
import torch
from peft.tuners.lora import LoraLayer
from trl import ModelConfig

from sft.training.packed_attention import NAME, attends_by_sample
from sft.training.strategy import fuses_lora, holds_adapter_in_float32, trained_dtype
from tests.support.shapes import INTERNLM2_5_7B

HALF = {"dtype": "bfloat16", "bf16": True}
NF4 = {"load_in_4bit": True}


@pytest.mark.parametrize("keys", [{}, HALF, HALF | NF4, {"use_peft": False}], ids=["float32", "half", "nf4", "full"])
@pytest.mark.parametrize("strategy", ["bfd", "wrapped"])
def test_the_trainer_does_what_is_decided(make_trainer, keys, strategy):
    trainer, _ = make_trainer(**keys, packing=True, packing_strategy=strategy, max_length=256)
    recipe = trainer.recipe
    held = getattr(torch, keys.get("dtype", "float32"))
    trained = {weight.dtype for weight in trainer.model.parameters() if weight.requires_grad}
    assert trained == {trained_dtype(recipe.model, recipe.training, held)}
    lora = [module for module in trainer.model.modules() if isinstance(module, LoraLayer)]
    is_fused = bool(lora) and all("forward" in vars(module) for module in lora)
    assert is_fused == fuses_lora(recipe.model, None, is_fsdp=False)
    assert (trainer.base.config._attn_implementation == NAME) == attends_by_sample(recipe.training)


@pytest.mark.parametrize(("stage", "is_fsdp", "fuses"), [(None, False, True), (2, False, True), (3, False, False),
                                                         (None, True, False)])  # fmt: skip
def test_layers_whose_parameters_are_divided_are_not_fused(stage, is_fsdp, fuses):
    assert fuses_lora(ModelConfig(use_peft=True), stage, is_fsdp=is_fsdp) == fuses
    assert not fuses_lora(ModelConfig(use_peft=False), stage, is_fsdp=is_fsdp)


def test_deepspeed_holds_masters_of_its_own(read):
    recipe = read("huangdali", INTERNLM2_5_7B, fp16=True, deepspeed="ds_configs/zero2.json")
    assert not holds_adapter_in_float32(recipe.model, recipe.training, 2)
    assert trained_dtype(recipe.model, recipe.training, torch.bfloat16) == torch.float16
    recipe.training.fp16 = False  # and in full precision there is nothing to cast to at every use
    assert holds_adapter_in_float32(recipe.model, recipe.training, 2)
    assert not holds_adapter_in_float32(recipe.model, recipe.training, 3)
    assert trained_dtype(recipe.model, recipe.training, torch.bfloat16) == torch.float32
    recipe.training.deepspeed = None
    assert trained_dtype(recipe.model, recipe.training, torch.bfloat16) == torch.float32
