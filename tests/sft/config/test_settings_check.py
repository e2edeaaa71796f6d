"""Every field of the stack is known: refused where it would do nothing, or left to the stack; a new one fails."""

import dataclasses
import re

import pytest
import yaml
from trl import ModelConfig, SFTConfig

from sft.config.aliases import RENAMED
from sft.config.settings import read_settings
from sft.config.settings_check import DONE_ANYWAY, IDLE_WITHOUT, INERT
from sft.core.errors import UserError

LEFT_TO_THE_STACK = """
accelerator_config activation_checkpointing activation_checkpointing_kwargs activation_offloading adam_beta1
adam_beta2 adam_epsilon attn_implementation average_tokens_across_devices bf16
bnb_4bit_quant_storage bnb_4bit_quant_type chat_template_path data_seed dataloader_drop_last
dataloader_in_order dataloader_multiprocessing_context dataloader_num_workers dataloader_persistent_workers
dataloader_pin_memory dataloader_prefetch_factor dataset_num_proc ddp_backend ddp_broadcast_buffers
ddp_bucket_cap_mb ddp_find_unused_parameters ddp_static_graph ddp_timeout debug deepspeed disable_tqdm dtype
eval_accumulation_steps eval_delay eval_on_start eval_steps eval_strategy eval_use_gather_object fp16
fsdp fsdp_config full_determinism gradient_accumulation_steps greater_is_better hub_always_push
hub_model_id hub_private_repo hub_revision hub_strategy hub_token ignore_data_skip
include_num_input_tokens_seen label_smoothing_factor learning_rate liger_kernel_config load_best_model_at_end
load_in_4bit load_in_8bit local_rank log_level log_level_replica log_on_each_node logging_first_step
logging_nan_inf_filter logging_steps logging_strategy lora_alpha lora_dropout lora_modules_to_save lora_r
lora_target_modules lora_target_parameters lora_task_type loss_type lr_scheduler_kwargs lr_scheduler_type
max_grad_norm max_length max_steps metric_for_best_model model_init_kwargs model_name_or_path model_revision
neftune_noise_alpha num_train_epochs optim optim_args optim_target_modules output_dir packing packing_strategy
pad_to_multiple_of pad_token padding_free parallelism_config per_device_eval_batch_size
per_device_train_batch_size project push_to_hub remove_unused_columns report_to
restore_callback_states_from_checkpoint router_aux_loss_coef run_name save_on_each_node save_only_model
save_steps save_strategy save_total_limit seed shuffle_dataset tf32 torch_compile
torch_compile_backend torch_compile_mode torch_empty_cache_steps trackio_bucket_id trackio_space_id
trackio_static_space_id train_sampling_strategy trust_remote_code use_bnb_nested_quant use_cache use_cpu
use_dora use_liger_kernel use_peft use_rslora warmup_steps weight_decay
"""


def test_every_field_of_the_installed_stack_is_in_one_list():
    fields = {field.name for group in (SFTConfig, ModelConfig) for field in dataclasses.fields(group)} - RENAMED.keys()
    listed = [*LEFT_TO_THE_STACK.split(), *INERT]
    assert len(listed) == len(set(listed))
    assert fields == set(listed)


VALUES = {
    "dataset_kwargs": {"a": 1},
    "truncation_mode": "keep_end",
    "label_names": ["x"],
    "include_for_metrics": ["loss"],
}

BESIDE = {
    "lora_dropout": 0.1,
    "lora_target_modules": ["q_proj"],
    "lora_target_parameters": ["q_proj.weight"],
    "lora_modules_to_save": ["lm_head"],
    "lora_task_type": "CAUSAL_LM",
    "bnb_4bit_quant_type": "nf4",
    "bnb_4bit_quant_storage": "uint8",
    "packing_strategy": "bfd",
    "dataloader_multiprocessing_context": "spawn",
    "metric_for_best_model": "loss",
    "eval_prompts_generation": {"max_new_tokens": 3},
    "fsdp_config": {"fsdp_version": 2},
    "liger_kernel_config": {"rope": True},
    "hub_strategy": "end",
}


@pytest.mark.parametrize("key", INERT)
def test_a_key_that_would_do_nothing_is_refused_with_what_to_use(write_recipe, key):
    value = VALUES.get(key, "x" if key in ("eos_token", "dataset_text_field", "length_column_name") else False)
    with pytest.raises(UserError, match=rf"tiny\.yaml:\d+: {key}: would change nothing: .*; leave it out") as refused:
        read_settings([str(write_recipe(**{key: value}))])
    assert "\n" not in str(refused.value)


def test_what_asks_for_what_is_done_anyway_is_accepted(write_recipe):
    read_settings([str(write_recipe(**DONE_ANYWAY))])


@pytest.mark.parametrize(("companion", "key"), [(name, key) for name, keys in IDLE_WITHOUT.items() for key in keys])
def test_a_key_that_does_nothing_without_another_is_refused_with_that(write_recipe, companion, key):
    path = write_recipe()
    settings = yaml.safe_load(path.read_text())
    switches = ("report_to", "packing", "use_peft", "lora_r", "lora_target_modules")
    kept = {name: value for name, value in settings.items() if name not in switches}
    if companion != "use_peft: true":
        kept["use_peft"] = True
    path.write_text(yaml.safe_dump(kept | {key: BESIDE.get(key, 1)}))
    with pytest.raises(UserError, match=rf"{key}: would change nothing by itself; add {re.escape(companion)}"):
        read_settings([str(path)])


@pytest.mark.parametrize("keys", [{"load_in_4bit": False, "bnb_4bit_quant_type": "nf4"}, {"greater_is_better": False}])
def test_one_that_waits_to_be_switched_on_or_asks_for_nothing_is_accepted(write_recipe, keys):
    read_settings([str(write_recipe(**keys))])
