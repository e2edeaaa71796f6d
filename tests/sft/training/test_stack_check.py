"""What the stack would refuse once the model is loaded is refused by the plan, in one line, with its key."""

import pytest

from sft.config.load import load_recipe
from sft.core.errors import UserError
from sft.data.dataset import load_dataset
from sft.training.plan import make_plan


@pytest.fixture
def plan(write_recipe, tokenizer):
    def plan(**keys):
        recipe = load_recipe([str(write_recipe(**keys))])
        return make_plan(recipe, load_dataset(recipe, tokenizer)[1])

    return plan


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"lr_scheduler_type": "cosine_with_min_lr"}, "lr_scheduler_type: One of min_lr or min_lr_rate should be set"),
        ({"lr_scheduler_type": "cosine", "lr_scheduler_kwargs": {"cycles": 2}}, "lr_scheduler_kwargs: .*cycles"),
        ({"lr_scheduler_kwargs": {"num_cycles": "x"}}, "lr_scheduler_kwargs: could not convert string to float: 'x'"),
        ({"lora_target_modules": ["q_proj", "lm_head"]}, "lora_target_modules: an adapter on the output head"),
        (
            {"lora_target_modules": ["q_proj", "w_qkv"]},
            "lora_target_modules: w_qkv: is not in this model; there are .*q_p",
        ),
        ({"lora_target_modules": "["}, "lora_target_modules: the model takes no such adapter .unterminated"),
        ({"lora_modules_to_save": ["score"]}, "lora_modules_to_save: score: is not in this model"),
        ({"lora_target_modules": ["all-linear", "embed_tokens"]}, "lora_target_modules: all-linear: is not in this"),
        ({"torch_compile_backend": "ofi"}, "torch_compile_backend: Invalid backend: 'ofi'"),
        ({"lora_target_parameters": ["experts.up"]}, "lora_target_parameters: experts.up: is not in this model"),
        ({"load_in_4bit": True, "bnb_4bit_quant_storage": "int3"}, "bnb_4bit_quant_storage: .*must be a valid string"),
        (
            {"model_init_kwargs": {"atn": 1}},
            "model_init_kwargs: atn: neither the model's configuration nor its loading",
        ),
        (
            {"model_init_kwargs": {"rope_scaling": {"type": "x"}}},
            "model_init_kwargs: no model can be built by this con",
        ),
        (
            {"activation_checkpointing": True, "activation_checkpointing_kwargs": {"reentrant": True}},
            "activation_checkpointing_kwargs: Unexpected keyword arguments: reentrant",
        ),
        (
            {"activation_checkpointing": True, "activation_checkpointing_kwargs": {"offload": True}},
            "activation_checkpointing_kwargs: offload moves what a GPU keeps to RAM, and this machine has no GPU",
        ),
        (
            {"dataloader_num_workers": 0, "dataloader_persistent_workers": True},
            "dataloader_num_workers: persistent_workers option needs num_workers > 0",
        ),
        ({"torch_compile_backend": "inducto"}, "torch_compile_backend: 'INDUCTO' is not a valid DynamoBackend"),
        ({"torch_compile_mode": "fast"}, "torch_compile_mode: Unrecognized mode=fast"),
        ({"router_aux_loss_coef": 0.1}, "router_aux_loss_coef: the model is no mixture of experts"),
        ({"optim": "adamw_anyprecision"}, "optim: Please install https://github.com/pytorch/torchdistx"),
        ({"optim_args": "betas"}, "optim_args: not enough values to unpack"),
        ({"optim_args": "betas=1"}, "optim_args: would change nothing of adamw_torch_fused"),
        (
            {"optim_target_modules": ["q_proj"]},
            "optim_target_modules: adamw_torch_fused is an optimizer of all weights",
        ),
        ({"padding_free": True, "packing": False}, "padding_free: without packing TRL holds nothing to max_length"),
        ({"push_to_hub": True, "hub_token": "hf_none"}, "push_to_hub: .*offline mode is enabled"),
        ({"optim": "lomo"}, "optim: .*lomo"),
    ],
)
def test_what_the_stack_refuses_is_refused_before_the_model_is_loaded(plan, monkeypatch, keys, said):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match=said) as refused:
        plan(**keys)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "keys",
    [
        {"lr_scheduler_type": "cosine_with_min_lr", "lr_scheduler_kwargs": {"min_lr": 1e-5}},
        {"report_to": ["tensorboard"]},
        {"optim": "adamw_8bit"},
        {"optim": "rmsprop", "optim_args": "alpha=0.9"},
        {"activation_checkpointing": True, "activation_checkpointing_kwargs": {"use_reentrant": False}},
        {"model_init_kwargs": {"low_cpu_mem_usage": True, "num_hidden_layers": 1}},
        {"activation_checkpointing": True, "activation_checkpointing_kwargs": {"every_n_layers": 2}},
        {"lora_target_modules": ["q_proj"]},
        {"lora_target_modules": ["self_attn.q_proj"]},
        {"lora_modules_to_save": ["layernorm", "head"]},
        {"lora_target_modules": "all-linear", "lora_modules_to_save": ["embed_tokens"]},
        {"padding_free": True, "packing": False, "max_length": None},
    ],
)
def test_what_it_takes_passes(plan, keys):
    assert plan(**keys).total_steps == 4
