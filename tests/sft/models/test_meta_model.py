"""A model without weights counts as the real one does: its parameters, its bytes, what its forward pass keeps."""

import json

import bitsandbytes
import pytest
import torch
from trl import ModelConfig

from sft.core.errors import UserError
from sft.models.fused_lora import unfuse_lora
from sft.models.loading import load_model
from sft.models.meta_model import MetaModel, Weight

SETTINGS = [
    {},
    {"lora_r": 4, "lora_target_modules": ["q_proj", "v_proj"], "lora_modules_to_save": ["lm_head"]},
    {"use_dora": True},
    {"use_peft": False},
    {"load_in_4bit": True},
]


@pytest.mark.parametrize("keys", SETTINGS)
def test_it_counts_the_parameters_that_the_trainer_trains(make_trainer, keys):
    trainer, _ = make_trainer(**keys)
    model = MetaModel(trainer.recipe.model)
    assert model.trainable == sum(weight.numel() for weight in trainer.model.parameters() if weight.requires_grad)
    real = sum(
        getattr(weight, "quant_state", None).shape.numel()
        if isinstance(weight, bitsandbytes.nn.Params4bit)
        else weight.numel()
        for weight in trainer.model.parameters()
    )
    assert model.parameters == real


@pytest.mark.parametrize("nested", [False, True])
def test_a_quantised_weight_is_as_large_as_bitsandbytes_makes_it(tiny_model, nested):
    settings = ModelConfig(str(tiny_model), dtype="float32", load_in_4bit=True, use_bnb_nested_quant=nested)
    packed, state = bitsandbytes.functional.quantize_4bit(torch.randn(1024, 512), compress_statistics=nested)
    real = packed.nbytes + state.absmax.nbytes + (state.state2.absmax.nbytes if nested else 0)
    assert MetaModel(settings).bytes_held(Weight(1024 * 512, 1024, True), torch.float32) == real


@pytest.mark.parametrize("bits", [4, 8])
def test_the_layers_that_transformers_quantises_count_as_quantised(tiny_model, bits):
    settings = ModelConfig(str(tiny_model), dtype="float32", **{f"load_in_{bits}bit": True})
    model, real = MetaModel(settings), load_model(settings)
    kinds = (bitsandbytes.nn.Params4bit, bitsandbytes.nn.Int8Params)
    assert [weight.is_quantised for weight in model.weights] == [
        isinstance(weight, kinds) for weight in real.parameters()
    ]
    if bits == 8:
        scales = sum(weight.SCB.nbytes for weight in real.parameters() if isinstance(weight, kinds))
        held = sum(model.bytes_held(weight, torch.float32) for weight in model.weights)
        assert held == sum(weight.nbytes for weight in real.parameters()) + scales


@pytest.mark.parametrize(
    ("keys", "is_masked"),
    [
        ({}, True),
        ({}, False),
        ({"load_in_4bit": True}, True),
        ({"use_peft": False}, True),
        ({"lora_dropout": 0.1}, True),
        ({"lora_dropout": 0.1, "is_fused": False}, False),
        ({"attn_implementation": "eager"}, True),
    ],
)
def test_it_keeps_for_the_backward_pass_what_the_real_model_keeps(make_trainer, monkeypatch, keys, is_masked):
    """Counted on the real model, whose adapter is in float32 as the trainer leaves it."""
    # As on a GPU, where a pack is attended over as a whole; sample by sample there is no mask to keep.
    monkeypatch.setattr("sft.training.trainer.use_packed_attention", lambda model: None)
    is_fused = keys.get("is_fused", True)
    trainer, _ = make_trainer(**{key: value for key, value in keys.items() if key != "is_fused"})
    if not is_fused:
        unfuse_lora(trainer.model)
    model, kept = trainer.model.train(), {}
    own = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())}

    def keep(tensor):
        storage = tensor.untyped_storage()
        # 4-bit weights are kept by the layers themselves.
        if storage.data_ptr() not in own and tensor.dtype != torch.uint8:
            kept[storage.data_ptr()] = storage
        return tensor

    tokens = torch.arange(96)[None]
    positions = torch.arange(48).repeat(2)[None] if is_masked else tokens
    backbone = (model.get_base_model() if trainer.recipe.model.use_peft else model).base_model
    if trainer.recipe.model.use_peft:
        model.enable_input_require_grads()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        backbone(input_ids=tokens, position_ids=positions, use_cache=False)
    real = sum(storage.nbytes() for storage in kept.values())
    hollow = MetaModel(trainer.recipe.model).kept_for_backward(
        (1, 96), torch.float32, torch.float32, is_masked=is_masked, is_fused=is_fused
    )
    assert hollow == pytest.approx(real, rel=0.001)


def test_a_head_that_is_the_embedding_counts_once(tiny_model, tmp_path):
    config, models = json.loads((tiny_model / "config.json").read_text()), []
    for is_tied in (True, False):
        (tmp_path / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": is_tied}))
        models.append(MetaModel(ModelConfig(str(tmp_path))))
    assert [model.has_tied_head for model in models] == [True, False]
    assert models[1].parameters - models[0].parameters == config["vocab_size"] * config["hidden_size"]


@pytest.mark.parametrize("scaling", [{"type": "dynamic", "factor": 2.0}, {"type": "linear", "factor": 2.0}])
def test_rope_that_follows_the_length_keeps_what_any_rope_keeps(tiny_model, tmp_path, scaling):
    """InternLM2.5's is dynamic: it asks for the positions' values, which are not there."""
    config, kept = json.loads((tiny_model / "config.json").read_text()), []
    config |= {"model_type": "internlm2", "architectures": ["InternLM2ForCausalLM"], "bias": False}
    config.pop("rope_parameters", None)
    for more in ({}, {"rope_scaling": scaling, "rope_theta": 1000000}):
        (tmp_path / "config.json").write_text(json.dumps(config | more))
        model = MetaModel(ModelConfig(str(tmp_path), use_peft=True, lora_target_modules="all-linear"))
        kept.append(model.kept_for_backward((1, 96), torch.float16, torch.float16, is_masked=False))
    assert kept[0] == kept[1] > 0


def test_what_cannot_be_built_is_told(tiny_model, tmp_path):
    with pytest.raises(UserError, match="its configuration cannot be read"):
        MetaModel(ModelConfig(str(tmp_path)))
    wrong = ModelConfig(str(tiny_model), use_peft=True, lora_target_modules=["query"])
    with pytest.raises(UserError, match=r"takes no such adapter \(.*query"):
        MetaModel(wrong)
