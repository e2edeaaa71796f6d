"""A DeepSpeed configuration that would end a run after its model is loaded is refused before, with file and key."""

import json

import pytest
from transformers import AutoConfig

from sft.config.deepspeed import check_deepspeed, check_deepspeed_fits, read_config
from sft.config.load import load_recipe
from sft.core.errors import UserError
from sft.core.paths import REPOSITORY

CONFIGS = sorted((REPOSITORY / "ds_configs").glob("*.json"))
ZERO2 = json.loads((REPOSITORY / "ds_configs" / "zero2.json").read_text())


@pytest.fixture
def file(tmp_path):
    def write(config) -> str:
        path = tmp_path / "mine.json"
        path.write_text(config if isinstance(config, str) else json.dumps(config))
        return str(path)

    return write


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_configuration_here_passes(path, write_recipe, tiny_model):
    config = json.loads(path.read_text())
    assert read_config(str(path)) == (config, str(path))
    assert read_config(config) == read_config(path.read_text()) == (config, "deepspeed")
    training = load_recipe([str(write_recipe(deepspeed=str(path)))]).training
    assert training.deepspeed == config
    check_deepspeed_fits(training, str(path), AutoConfig.from_pretrained(tiny_model), 4)
    assert training.hf_deepspeed_config.is_auto("zero_optimization.reduce_bucket_size") == (
        config["zero_optimization"].get("reduce_bucket_size") == "auto"
    )  # a copy was filled in, and not the run's own


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"zero_optimisation": {}}, "zero_optimisation: DeepSpeed knows no such key; did you mean zero_optimization?"),
        ({"zero_optimization": {"stge": 2}}, "zero_optimization.stge: .*did you mean stage?"),
        (
            {"zero_optimization": {"stage3_gather_16bit_weight_on_model_save": True}},
            "mean stage3_gather_16bit_weights_",
        ),
        ({"zero_optimization": {"stage": 4}}, "zero_optimization.stage: 4: ZeRO has the stages 0, 1, 2 and 3"),
        ({"zero_optimization": {"stage": "two"}}, "zero_optimization.stage: 'two'"),
        ({"zero_optimization": 2}, "zero_optimization: must be an object"),
        (
            {"zero_optimization": {"offload_optimizer": {"device": "gpu"}}},
            r"zero_optimization\.offload_optimizer\.device: 'gpu': .*'none', 'cpu' or 'nvme'",
        ),
        ({"zero_optimization": {"offload_param": {"devic": "cpu"}}}, r"offload_param\.devic: .*did you mean device?"),
        ({"zero_optimization": {"reduce_bucket_size": "many"}}, "zero_optimization.reduce_bucket_size: 'many'"),
        ({"fp16": {"enable": True}}, "fp16.enable: .*did you mean enabled?"),
        ({"fp16": {"enabled": True}, "bf16": {"enabled": True}}, "cannot be simultaneously enabled"),
        ({"amp": {"enabled": True}}, "AMP integration has been removed"),
        ("{", "not JSON"),
        ("[1]", "no object"),
        ("2", "no object"),
    ],
)
def test_a_mistake_is_told_in_one_line_with_file_and_key(file, config, said):
    path = file(config)
    with pytest.raises(UserError, match=f"{path}: .*{said}") as error:
        check_deepspeed(*read_config(path))
    assert "\n" not in str(error.value)
    if isinstance(config, dict):
        with pytest.raises(UserError, match=f"^deepspeed: .*{said}"):
            check_deepspeed(*read_config(config))


def test_text_that_is_too_long_for_a_path_is_read_or_refused():
    long = json.dumps(ZERO2 | {"tensorboard": {"enabled": False, "output_path": "x" * 5000}})
    config, source = read_config(f"\n {long}")
    check_deepspeed(config, source)
    assert config["zero_optimization"]["stage"] == 2
    with pytest.raises(UserError, match="no such file"):
        read_config("x" * 5000)


def test_what_is_read_is_not_what_was_given():
    config = {"zero_optimization": {"stage": 2}}
    read, where = read_config(config)
    read["zero_optimization"]["stage"] = 3
    assert (config["zero_optimization"]["stage"], where) == (2, "deepspeed")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"prescale_gradients": "auto"}, "prescale_gradients: Transformers does not fill in 'auto'"),
        (
            {"zero_optimization": {"stage": 2, "allgather_bucket_size": "auto"}},
            "zero_optimization.allgather_bucket_size",
        ),
        # Without stage 3, Transformers leaves it as it is.
        ({"zero_optimization": {"stage": 2, "stage3_prefetch_bucket_size": "auto"}}, "stage3_prefetch_bucket_size"),
        ({"gradient_clipping": 0.5}, "gradient_clipping=0.5, but the recipe has max_grad_norm=1.0: write 'auto'"),
        ({"train_micro_batch_size_per_gpu": 8}, "has per_device_train_batch_size=1"),
        ({"bf16": {"enabled": True}}, "bf16.enabled=True, but the recipe has"),
    ],
)
def test_what_nobody_fills_in_or_the_recipe_contradicts_is_refused(write_recipe, tiny_model, file, change, said):
    path = file(ZERO2 | change)
    check_deepspeed(*read_config(path))
    training = load_recipe([str(write_recipe(deepspeed=path))]).training
    with pytest.raises(UserError, match=f"{path}: .*{said}"):
        check_deepspeed_fits(training, path, AutoConfig.from_pretrained(tiny_model), 4)


def test_optimizer_and_schedule_may_follow_the_recipe(write_recipe, tiny_model, file):
    adam = {"type": "AdamW", "params": {"lr": "auto", "betas": "auto", "eps": "auto", "weight_decay": "auto"}}
    warmup = {"warmup_min_lr": "auto", "warmup_max_lr": "auto", "warmup_num_steps": "auto", "total_num_steps": "auto"}
    path = file(ZERO2 | {"optimizer": adam, "scheduler": {"type": "WarmupDecayLR", "params": warmup}})
    check_deepspeed(*read_config(path))
    training = load_recipe([str(write_recipe(deepspeed=path))]).training
    check_deepspeed_fits(training, path, AutoConfig.from_pretrained(tiny_model), 4)


def test_a_recipe_without_deepspeed_has_nothing_to_fit(write_recipe, tiny_model):
    check_deepspeed_fits(load_recipe([str(write_recipe())]).training, None, AutoConfig.from_pretrained(tiny_model), 4)
