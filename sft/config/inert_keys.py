"""Keys that would do nothing here, or fight with what is done, and what there is in their place.

In: the keys that a person set. Out: nothing, or a refusal. Every other field of the stack is left to the stack; a test
holds both lists against the installed versions.
"""

from typing import Any

from sft.config.settings_check import Refusal

ANSWERS = "loss falls on the assistant's words of every turn and nowhere else"
LOSS_ALONE = "of the held-out rows the loss alone is computed"
INERT = {
    "assistant_only_loss": ANSWERS,
    "completion_only_loss": ANSWERS,
    "eos_token": "what ends a turn is the chat template's; name another with chat_template_path",
    "dataset_text_field": "rows are conversations; see python -m data_tools convert",
    "dataset_kwargs": "rows are tokenised here, not by TRL",
    "truncation_mode": "what happens to long samples is truncation: error, drop or keep_start",
    "eval_packing": "held-out rows are packed as the training rows are: packing",
    "label_names": "labels are made here",
    "length_column_name": "there is no such column; train_sampling_strategy: group_by_length measures by itself",
    "prediction_loss_only": LOSS_ALONE,
    "batch_eval_metrics": LOSS_ALONE,
    "include_for_metrics": LOSS_ALONE,
    "eval_do_concat_batches": LOSS_ALONE,
    "do_train": "a run always trains; --dry_run does not",
    "do_eval": "name the rows with eval_file, and when with eval_strategy",
    "do_predict": "ask the model afterwards: python -m model_tools ask",
    "bf16_full_eval": "held-out rows are computed in what is trained in",
    "fp16_full_eval": "held-out rows are computed in what is trained in",
    "skip_memory_metrics": "the peak memory stands in the line of every step",
    "auto_find_batch_size": "out of memory is told with what to change; the plan says before what fits",
    "enable_jit_checkpoint": "SIGTERM saves the step here in any case",
}
# What some of them may ask for, since it is done in any case.
DONE_ANYWAY = {"assistant_only_loss": True, "skip_memory_metrics": True}
# Keys that only do something beside another: that one, or one of two, as a recipe would have it.
IDLE_WITHOUT = {
    "load_in_4bit: true": ("bnb_4bit_quant_type", "bnb_4bit_quant_storage", "use_bnb_nested_quant"),
    "packing: true": ("packing_strategy",),
    "dataloader_num_workers: 1": (
        "dataloader_multiprocessing_context",
        "dataloader_persistent_workers",
        "dataloader_prefetch_factor",
    ),
    "eval_file: data/eval.jsonl": (
        "eval_steps",
        "eval_delay",
        "eval_on_start",
        "eval_accumulation_steps",
        "eval_use_gather_object",
        "per_device_eval_batch_size",
        "metric_for_best_model",  # the best by name is `keep_best`
        "load_best_model_at_end",
    ),
    "metric_for_best_model: loss or load_best_model_at_end: true": ("greater_is_better",),
    "eval_prompts or identity_name": ("eval_prompts_steps", "eval_prompts_system"),
    'eval_prompts: ["Who are you?"]': ("eval_prompts_generation",),
    "identity_name: 黄大力": ("score_seconds",),
    "stop_when_identity: 0.95": ("stop_patience",),
    "fsdp: true": ("fsdp_config",),
    "use_liger_kernel: true": ("liger_kernel_config",),
    "push_to_hub: true": (
        "hub_model_id",
        "hub_strategy",
        "hub_token",
        "hub_private_repo",
        "hub_always_push",
        "hub_revision",
    ),
    "report_to: trackio": ("trackio_space_id", "trackio_bucket_id", "trackio_static_space_id", "project"),
    "report_to: wandb": ("run_name",),
}


def refuse_inert_keys(chosen: dict[str, Any], refuse: Refusal) -> None:
    """Call `refuse(key, problem)`, which raises, for a key that would change nothing and asks for something else.

    One whose companion is set to what switches it off, such as load_in_4bit: false, waits to be switched on again.
    """
    for key, instead in INERT.items():
        if chosen.get(key) is not None and chosen[key] != DONE_ANYWAY.get(key):
            refuse(key, f"would change nothing: {instead}; leave it out")
    for companion, idle in IDLE_WITHOUT.items():
        is_there = chosen.keys() & {name.partition(":")[0] for name in companion.split(" or ")}
        if not is_there and (key := next(filter(chosen.get, idle), None)):
            refuse(key, f"would change nothing by itself; add {companion}, or leave it out")
