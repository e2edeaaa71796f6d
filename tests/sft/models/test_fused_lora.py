"""A fused LoRA layer computes what PEFT's does, and only where it is plain LoRA."""

import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from sft.models.fused_lora import fuse_lora

NF4 = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True)
IDS = torch.arange(40)[None] * 7 % 300


@pytest.fixture
def adapted(tiny_model):
    """Make the tiny model with an adapter that does something."""

    def make(quantisation=None, dtype=torch.float32, **keys):
        model = AutoModelForCausalLM.from_pretrained(tiny_model, quantization_config=quantisation, dtype=dtype)
        keys = {"r": 4, "lora_alpha": 8, "target_modules": "all-linear", "lora_dropout": 0.0} | keys
        model = get_peft_model(model, LoraConfig(**keys))
        torch.manual_seed(1)
        for name, weight in model.named_parameters():
            if "lora" in name:
                nn.init.normal_(weight, std=0.1)
        model.enable_input_require_grads()
        return model.train()

    return make


def loss_and_gradients(model) -> list[torch.Tensor]:
    loss = model(input_ids=IDS, labels=IDS).loss
    return [loss, *torch.autograd.grad(loss, [weight for weight in model.parameters() if weight.requires_grad])]


@pytest.mark.parametrize("quantisation", [None, NF4])
@pytest.mark.parametrize("keys", [{}, {"use_rslora": True}, {"bias": "all"}])
def test_loss_and_gradients_are_pefts(adapted, quantisation, keys):
    model = adapted(quantisation, **keys)
    expected = loss_and_gradients(model)
    assert fuse_lora(model) == 14
    for found, right in zip(loss_and_gradients(model), expected, strict=True):
        torch.testing.assert_close(found, right, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("autocasts", [False, True])
def test_in_half_precision_it_is_as_near_to_float32_as_peft(adapted, autocasts):
    exact = loss_and_gradients(adapted())
    model = adapted(dtype=torch.bfloat16)
    if not autocasts:
        model = model.bfloat16()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocasts):
        by_peft = loss_and_gradients(model)
        fuse_lora(model)
        found = loss_and_gradients(model)
    assert [tensor.dtype for tensor in found] == [tensor.dtype for tensor in by_peft]
    ours, theirs = (
        sum(((given.float() - right).norm() / right.norm()).item() for given, right in zip(tensors, exact, strict=True))
        for tensors in (found, by_peft)
    )
    assert ours < 1.1 * theirs


def test_dropout_drops_its_share_and_lets_the_same_through_backwards(adapted):
    model = adapted(lora_dropout=0.25)
    fuse_lora(model)
    layer = next(module for module in model.modules() if hasattr(module, "lora_A"))
    layer.base_layer.weight.data.zero_()
    # The adapter hands its input on, so that what was dropped can be seen.
    size = layer.in_features
    layer.lora_A["default"].weight = nn.Parameter(torch.eye(size))
    layer.lora_B["default"].weight = nn.Parameter(torch.eye(size))
    x = torch.rand(1, 4000, size).add_(0.5).requires_grad_()
    y = layer(x) / layer.scaling["default"]
    kept = y != 0
    assert kept.float().mean().item() == pytest.approx(0.75, abs=0.01)
    torch.testing.assert_close(y[kept], x[kept] / 0.75)
    (gradient,) = torch.autograd.grad(y.sum(), x)
    torch.testing.assert_close(gradient, kept / 0.75)


def test_recomputed_activations_draw_the_same_masks(adapted):
    gradients = []
    for recomputes in (False, True):
        model = adapted(lora_dropout=0.5)
        fuse_lora(model)
        if recomputes:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        torch.manual_seed(3)
        gradients.append(loss_and_gradients(model))
    for found, right in zip(*gradients, strict=True):
        torch.testing.assert_close(found, right, atol=0, rtol=0)


def test_answers_and_a_model_without_its_adapter_are_left_to_peft(adapted):
    model = adapted(lora_dropout=0.5)
    plain = copy.deepcopy(model)
    assert fuse_lora(model)
    answer, expected = (each.eval()(input_ids=IDS).logits for each in (model, plain))
    assert torch.equal(answer, expected)
    with model.train().disable_adapter(), plain.train().disable_adapter():
        assert torch.equal(model(input_ids=IDS).logits, plain(input_ids=IDS).logits)


@pytest.mark.parametrize("keys", [{"use_dora": True}, {"lora_bias": True}])
def test_what_is_not_plain_lora_is_left_to_peft(adapted, keys):
    assert fuse_lora(adapted(**keys)) == 0


def test_a_second_adapter_is_left_to_peft(adapted):
    model = adapted()
    model.add_adapter("second", LoraConfig(r=2, target_modules="all-linear"))
    model.base_model.set_adapter(["default", "second"])
    assert fuse_lora(model) == 0
