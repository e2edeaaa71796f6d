"""Old and foreign spellings of settings: what Transformers 4, TRL and XTuner called them.

In: a key as a person wrote it. Out: today's key, or advice. Knows nothing about values.
"""

import difflib
from collections.abc import Iterable

# Same meaning, same values: accepted, with a note.
RENAMED = {
    "gradient_checkpointing": "activation_checkpointing",
    "gradient_checkpointing_kwargs": "activation_checkpointing_kwargs",
    "warmup_ratio": "warmup_steps",
    "evaluation_strategy": "eval_strategy",
    "per_gpu_train_batch_size": "per_device_train_batch_size",
    "per_gpu_eval_batch_size": "per_device_eval_batch_size",
    "no_cuda": "use_cpu",
    "max_seq_length": "max_length",
    "torch_dtype": "dtype",
    "push_to_hub_model_id": "hub_model_id",
    "push_to_hub_token": "hub_token",
    "bnb_4bit_use_double_quant": "use_bnb_nested_quant",
    "resume_from_checkpoint": "resume",
}

# Gone or changed in Transformers 5 / TRL 1: the old value would not carry over by itself.
MOVED = {
    "logging_dir": "gone in Transformers 5; TensorBoard events are written to <output_dir>/runs",
    "overwrite_output_dir": "gone in Transformers 5; an earlier run is moved aside, never overwritten",
    "save_safetensors": "gone in Transformers 5; weights are always safetensors; leave the line out",
    "group_by_length": "now train_sampling_strategy: group_by_length",
    "adafactor": "now optim: adafactor",
    "dispatch_batches": "gone in Transformers 5; every process reads its own rows; leave the line out",
    "split_batches": "gone in Transformers 5; per_device_train_batch_size is what one process trains on",
    "include_tokens_per_second": "gone in Transformers 5; tokens/s is always logged",
    "include_inputs_for_metrics": "of the held-out rows the loss alone is computed; leave the line out",
    "half_precision_backend": "gone in Transformers 5; use fp16 or bf16 alone",
    "fp16_backend": "gone in Transformers 5; use fp16 or bf16 alone",
    "fp16_opt_level": "gone in Transformers 5; use fp16 or bf16 alone",
    "torchdynamo": "now torch_compile: true",
    "dataset_batch_size": "gone in TRL 1; leave the line out",
    "num_of_sequences": "gone in TRL 1; leave the line out",
    "bnb_4bit_compute_dtype": "the compute type follows dtype: set dtype: bfloat16 or float16",
}

# What other trainers and people in a hurry call it, and what it is here.
CALLED = {
    "num_train_epochs": "epoch epochs n_epochs num_epoch num_epochs",
    "max_steps": "steps num_steps max_iters iters",
    "learning_rate": "learning_rates",
    "lr_scheduler_type": "learning_rate_scheduler lr_scheduler scheduler",
    "warmup_steps": "warmup num_warmup_steps",
    "per_device_train_batch_size": "bs bsz micro_batch_size train_batch_size per_device_batch_size",
    "gradient_accumulation_steps": "grad_accum grad_accum_steps gradient_accumulation accumulation_steps accum",
    "max_length": "max_len max_seq_len seq_len seq_length sequence_len sequence_length cutoff_len context_length "
    "model_max_length",
    "max_grad_norm": "grad_clip clip_grad clip_grad_norm gradient_clipping",
    "weight_decay": "wd",
    "optim": "optimizer",
    "use_peft: true": "lora use_lora peft",
    "lora_r": "rank lora_rank",
    "lora_alpha": "alpha",
    "lora_dropout": "dropout",
    "lora_target_modules": "lora_target targets",
    "load_in_4bit: true": "load_4bit qlora bits quantization quantization_bit",
    "attn_implementation: flash_attention_2": "flash_attn flash_attention use_flash_attn",
    "bf16: true, or fp16: true": "precision mixed_precision half",
    "model_name_or_path": "model model_name model_path base_model model_id",
    "train_file": "data dataset datasets dataset_name dataset_path train_data train_dataset training_data",
    "eval_file": "eval_data eval_dataset eval_data_path val_data val_file val_dataset validation_file",
    "output_dir": "output out out_dir output_path save_dir work_dirs",
    "identity_name, the name to learn; or run_name, what trackers call the run": "name",
    "eval_prompts": "prompts eval_questions",
    "eval_prompts_system": "system system_prompt system_message",
    "chat_template_path": "chat_template template",
    "save_steps": "save_every save_freq save_interval",
    "logging_steps": "log_steps log_every log_interval log_freq",
    "eval_steps": "eval_every eval_interval",
    "deepspeed": "ds_config deepspeed_config zero",
    "report_to: wandb": "wandb use_wandb",
    "report_to: tensorboard": "tensorboard",
    "seed": "random_seed",
    "resume": "resume_from",
}
ALIASES = {alias: key for key, aliases in CALLED.items() for alias in aliases.split()}
LAUNCHER = "says to the launcher how many processes: deepspeed --quiet --num_accelerators 2 train_sft.py RECIPE"
LAUNCHERS_OWN = ("gpus", "num_gpus", "n_gpus", "num_accelerators", "nproc_per_node", "num_processes", "ngpus")

# What XTuner calls it, and what it is here.
XTUNER = {
    "pretrained_model_name_or_path": "model_name_or_path",
    "data_path": "train_file",
    "data_files": "train_file",
    "pack_to_max_length": "packing",
    "batch_size": "per_device_train_batch_size",
    "accumulative_counts": "gradient_accumulation_steps",
    "max_epochs": "num_train_epochs",
    "lr": "learning_rate",
    "betas": "adam_beta1 and adam_beta2",
    "max_norm": "max_grad_norm",
    "optim_type": "optim",
    "evaluation_freq": "eval_prompts_steps",
    "evaluation_inputs": "eval_prompts",
    "SYSTEM": "eval_prompts_system",
    "work_dir": "output_dir",
    "r": "lora_r",
    "target_modules": "lora_target_modules",
    "quantization_config": "load_in_4bit and bnb_4bit_quant_type",
    "prompt_template": "the model's own chat template, or chat_template_path",
}


def modern_name(key: str) -> tuple[str, str | None]:
    """Today's name of a key and a note to print, or the key itself and None."""
    new = RENAMED.get(key)
    return (new, f"{key} is now {new}; read as that") if new else (key, None)


def replacement_advice(key: str) -> str | None:
    """What to write instead of a key that other versions or XTuner have and this stack lacks."""
    if key in MOVED:
        return MOVED[key]
    if key in XTUNER:
        return f"XTuner's name; here it is {XTUNER[key]}"
    if key in LAUNCHERS_OWN:
        return f"no setting; it {LAUNCHER}"
    return f"no such setting; here it is {ALIASES[key]}" if key in ALIASES else None


def refuse_unknown_fields(names: Iterable[object], known: list[str]) -> None:
    """Raise `ValueError` for the first name that is no field, with the one that is nearest."""
    for name in names:
        if name not in known:
            raise ValueError(f"{name}: no such field{did_you_mean(str(name), known)}")


def did_you_mean(key: str, known: Iterable[str]) -> str:
    """The known name that is nearest to a key, as the end of a sentence; empty where none is near."""
    close = difflib.get_close_matches(key.lower(), sorted(known), n=1, cutoff=0.6)
    return f"; did you mean {close[0]}?" if close else ""
