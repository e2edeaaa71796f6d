"""What the stack would refuse once the model is loaded is refused by the plan, in one line, with its key."""

import pytest

from data_tools.errors import UserError
from sft.dataset import load_dataset
from sft.plan import make_plan
from sft.recipe import load_recipe


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
        ({"lr_scheduler_type": "cosine", "lr_scheduler_kwargs": {"cycles": 2}}, "lr_scheduler_type: .*cycles"),
        (
            {"lora_target_modules": ["q_proj", "lm_head"]},
            "lora_target_modules: an adapter on the output head",
        ),
        ({"padding_free": True, "packing": False}, "padding_free: without packing TRL holds nothing to max_length"),
        ({"report_to": "wandb"}, "report_to: WandbCallback requires wandb to be installed"),
        ({"report_to": ["tensorboard", "paper"]}, "report_to: paper is not supported, only"),
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
        {"padding_free": True, "packing": False, "max_length": None},
    ],
)
def test_what_it_takes_passes(plan, keys):
    assert plan(**keys).total_steps == 4
