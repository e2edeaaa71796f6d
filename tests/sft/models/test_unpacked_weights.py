"""Weights that are taken out of 4 bits once give what weights taken out at every pass give, and are put away again."""

import bitsandbytes
import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from sft.models import unpacked_weights
from sft.models.fused_lora import fuse_lora
from sft.models.unpacked_weights import weights_unpacked


@pytest.fixture(params=["bfloat16", "float32"])
def model(tiny_model, request):
    """The tiny model in 4 bits, nested, computing in this type."""
    dtype = getattr(torch, request.param)
    quantised = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype
    )
    return AutoModelForCausalLM.from_pretrained(tiny_model, quantization_config=quantised, dtype=dtype).eval()


@pytest.fixture
def taken_out(monkeypatch):
    """The shapes of what was taken out of 4 bits."""
    shapes, dequantise = [], unpacked_weights.dequantize_4bit

    def look(packed, state):
        shapes.append(tuple(state.shape))
        return dequantise(packed, state)

    monkeypatch.setattr(unpacked_weights, "dequantize_4bit", look)
    return shapes


def logits_of(model) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=torch.arange(24).view(2, 12)).logits


def test_the_results_are_the_same_bit_for_bit(model, taken_out):
    expected = logits_of(model)
    layers = [module for module in model.modules() if type(module) is bitsandbytes.nn.Linear4bit]
    with weights_unpacked(model):
        assert torch.equal(logits_of(model), expected)
        with weights_unpacked(model):
            assert torch.equal(logits_of(model), expected)
        assert torch.equal(logits_of(model), expected)
    assert len(taken_out) == len(layers)
    assert not any({"forward", "unpacked"} & vars(layer).keys() for layer in layers)
    assert torch.equal(logits_of(model), expected)


def test_what_is_too_large_to_hold_is_left_in_4_bits(model, taken_out, monkeypatch):
    monkeypatch.setattr(unpacked_weights, "HELD_AT_MOST", 1000)
    with weights_unpacked(model):
        logits_of(model)
    assert taken_out == []


def test_they_are_put_away_after_an_error_too(model):
    with pytest.raises(KeyboardInterrupt), weights_unpacked(model):
        raise KeyboardInterrupt
    assert not any("unpacked" in vars(module) for module in model.modules())


@pytest.fixture
def adapted(model):
    """The model with an adapter that changes what it says."""
    keys = {"r": 4, "lora_alpha": 16, "target_modules": ["q_proj", "down_proj"]}
    adapted = get_peft_model(model, LoraConfig(**keys), autocast_adapter_dtype=False).eval()
    with torch.no_grad():
        for name, weight in adapted.named_parameters():
            if "lora_B" in name:
                weight.normal_(std=0.05)
    return adapted


def test_an_adapter_is_added_in_float32_alone_and_taken_away_again(adapted, taken_out):
    fuse_lora(adapted)
    forwards = {name: vars(module).get("forward") for name, module in adapted.named_modules()}
    expected = logits_of(adapted)
    with adapted.disable_adapter():
        of_the_base = logits_of(adapted)
    is_float32 = adapted.dtype == torch.float32
    products = [
        module for name, module in adapted.named_modules() if "lora_" in name and type(module) is torch.nn.Linear
    ]
    calls = []
    hooks = [module.register_forward_hook(lambda *_: calls.append(1)) for module in products]
    with weights_unpacked(adapted, with_adapter=True):
        with_adapter = logits_of(adapted)
    assert len(calls) == (0 if is_float32 else len(products))
    for hook in hooks:
        hook.remove()
    assert torch.equal(with_adapter, expected) != is_float32
    torch.testing.assert_close(with_adapter, expected, rtol=1e-4, atol=1e-5)
    assert (of_the_base - expected).abs().max() > 1e-3
    assert {name: vars(module).get("forward") for name, module in adapted.named_modules()} == forwards
    assert torch.equal(logits_of(adapted), expected)


def test_without_its_adapter_the_base_is_asked(adapted):
    with adapted.disable_adapter():
        expected = logits_of(adapted)
        with weights_unpacked(adapted, with_adapter=True):
            assert torch.equal(logits_of(adapted), expected)
