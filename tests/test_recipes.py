"""Every recipe in recipes/ loads, and the mirror recipe says exactly what XTuner's config says."""

import json

import pytest
import yaml

from sft.config.load import load_recipe
from sft.core.paths import REPOSITORY

RECIPES = sorted((REPOSITORY / "recipes").glob("*.yaml"))
# Where a recipe wants a GPU, the same recipe in a precision that this machine has.
ON_CPU = ["--fp16", "false", "--bf16", "true", "--dtype", "bfloat16", "--deepspeed", ""]


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.name)
def test_every_recipe_loads(path, train_file):
    recipe = load_recipe([str(path), "--train_file", str(train_file), *ON_CPU])
    assert recipe.training.output_dir == f"work_dirs/{path.stem}"


@pytest.mark.parametrize("path", sorted((REPOSITORY / "ds_configs").glob("*.json")), ids=lambda path: path.name)
def test_every_deepspeed_config_leaves_to_the_recipe_what_the_recipe_decides(path):
    config = json.loads(path.read_text())
    for key in (
        "train_batch_size",
        "train_micro_batch_size_per_gpu",
        "gradient_accumulation_steps",
        "gradient_clipping",
    ):
        assert config[key] == "auto"
    assert config["fp16"]["enabled"] == config["bf16"]["enabled"] == "auto"
    assert "optimizer" not in config
    assert "scheduler" not in config
    assert config["zero_optimization"]["stage"] == int(path.stem[4])
    assert ("offload_optimizer" in config["zero_optimization"]) == path.stem.endswith("_offload")


def test_huangdali_mirrors_xtuners_qlora_config(train_file):
    recipe = load_recipe(["recipes/huangdali.yaml", "--train_file", str(train_file), *ON_CPU])
    chosen, training, model, run = recipe.chosen, recipe.training, recipe.model, recipe.run
    assert model.model_name_or_path == "internlm/internlm2_5-7b-chat"
    assert (training.max_length, training.packing) == (2048, True)
    assert (training.per_device_train_batch_size, training.gradient_accumulation_steps) == (1, 1)
    assert (training.num_train_epochs, training.learning_rate, training.weight_decay) == (3, 2e-4, 0)
    assert (training.adam_beta1, training.adam_beta2, training.max_grad_norm) == (0.9, 0.999, 1)
    assert (training.warmup_steps, training.lr_scheduler_type) == (0.03, "cosine")
    assert training.optim.startswith("adamw_torch")
    assert (model.load_in_4bit, model.bnb_4bit_quant_type, model.use_bnb_nested_quant) == (True, "nf4", True)
    assert (model.use_peft, model.lora_r, model.lora_alpha, model.lora_dropout) == (True, 64, 16, 0.1)
    assert model.lora_target_modules == "all-linear"
    assert (training.save_steps, training.save_total_limit, training.logging_steps) == (500, 2, 10)
    assert (run.eval_prompts, run.eval_prompts_steps) == (["请介绍一下你自己", "Please introduce yourself"], 500)
    # What this machine cannot do, and the command line therefore replaced above.
    written = yaml.safe_load((REPOSITORY / "recipes/huangdali.yaml").read_text(encoding="utf-8"))
    assert (written["fp16"], written["dtype"]) == (True, "float16")
    assert (written["deepspeed"], written["train_file"]) == ("ds_configs/zero2.json", "data/huangdali.jsonl")
    assert chosen["output_dir"] == "work_dirs/huangdali"


def test_the_smaller_internlm2_has_the_same_settings_as_the_larger(train_file):
    larger, smaller = (
        load_recipe([f"recipes/{name}.yaml", "--train_file", str(train_file), *ON_CPU]).chosen
        for name in ("huangdali", "internlm2_chat_1_8b")
    )
    assert smaller["model_name_or_path"] == "internlm/internlm2-chat-1_8b"
    assert {key for key in larger if larger[key] != smaller.get(key)} == {"model_name_or_path", "output_dir"}
    assert larger.keys() == smaller.keys()
