"""Refuses settings that cannot work or would change nothing, as far as keys, values and the disk show.

In: the keys that a person set, with their values. Out: nothing, or one line that says what to do. Imports nothing
heavy. Every field of the stack that is not listed here is left to the stack; a test holds the lists against the
installed versions.
"""

import math
import os
import re
from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from typing import Any, NoReturn

from sft.config.aliases import did_you_mean
from sft.config.own_keys import train_files
from sft.core.paths import PATH_KEYS, REPOSITORY, is_data

Refusal = Callable[[str, str], NoReturn]

GLUED = re.compile(r"[\w.]+([,，]\s*[\w.]+)+")
# Arguments of `from_pretrained` that have a key of their own, which the plan and the report go by.
INIT_KEYS = {
    "dtype": "dtype",
    "torch_dtype": "dtype",
    "attn_implementation": "attn_implementation",
    "revision": "model_revision",
    "trust_remote_code": "trust_remote_code",
    "quantization_config": "load_in_4bit",
    "use_cache": "use_cache",
}
# Fields of accelerate's configuration that change which rows a step trains on, behind the plan's back.
PLANNED = {
    "split_batches": "per_device_train_batch_size is what one process trains on",
    "dispatch_batches": "every process reads its own rows",
    "even_batches": "processes with fewer batches would let the others wait for ever",
    "use_configured_state": "the process group is opened here",
}
LEFT_TO_ACCELERATE = ("non_blocking", "use_seedable_sampler", "gradient_accumulation_kwargs")
BEST = "the held-out loss alone is measured: write loss; the best by the name learned is kept by keep_best: identity"
ASSISTANT_LOSS = "where loss falls is loss_on: answers, last_answer or everything"
LOSS_ALONE = "of the held-out rows the loss alone is computed"
INERT = {
    "assistant_only_loss": ASSISTANT_LOSS,
    "completion_only_loss": ASSISTANT_LOSS,
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
    "auto_find_batch_size": "the plan says beforehand what fits, and an out-of-memory error what to change",
    "enable_jit_checkpoint": "SIGTERM saves the step here in any case",
}
# What some of them may ask for, since it is done in any case.
DONE_ANYWAY = {"assistant_only_loss": True, "skip_memory_metrics": True}
# Keys that only do something beside another: that one, or one of two, as a recipe would have it.
IDLE_WITHOUT = {
    "use_peft: true": (
        "lora_r",
        "lora_alpha",
        "lora_dropout",
        "lora_target_modules",
        "lora_target_parameters",
        "lora_modules_to_save",
        "lora_task_type",
        "use_rslora",
        "use_dora",
    ),
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
        "early_stopping_patience",
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
# Keys that need another, and what that is.
NEEDS = {
    "identity_name": (
        "the name the model is to learn",
        ("identity_old_names", "score_file", "stop_when_identity", "keep_best"),
    ),
    "eval_prompts_steps": ("every how many steps the model is scored", ("stop_when_identity", "keep_best")),
}


def _is_positive(value: float) -> bool:
    return value > 0


def _is_at_least_0(value: float) -> bool:
    return value >= 0


def _is_at_least_1(value: float) -> bool:
    return value >= 1


# What a number may be, as words and as a test; what the stack would do with another ranges from nothing at all to a
# traceback after the model is in.
COUNT = ("a whole number of at least 1", _is_at_least_1)
SEED = ("a whole number from 0 to 4294967295", lambda value: 0 <= value < 2**32)
ABOVE_0 = ("a number above 0", _is_positive)
AT_LEAST_0 = ("a number of at least 0", _is_at_least_0)
SHARE = ("a share from 0 to below 1, such as 0.1", lambda value: 0 <= value < 1)
NUMBERS: dict[str, tuple[str, Callable[[float], bool]]] = {
    "per_device_train_batch_size": COUNT,
    "per_device_eval_batch_size": COUNT,
    "gradient_accumulation_steps": COUNT,
    "max_length": COUNT,
    "max_steps": (
        "a number of steps above 0; leave it out to train num_train_epochs",
        lambda value: value > 0 or value == -1,
    ),
    "num_train_epochs": ABOVE_0,
    "learning_rate": ABOVE_0,
    "label_smoothing_factor": SHARE,
    "neftune_noise_alpha": ("a number above 0; leave it out for no noise", _is_positive),
    "weight_decay": AT_LEAST_0,
    "adam_beta1": SHARE,
    "adam_beta2": SHARE,
    "adam_epsilon": ABOVE_0,
    "max_grad_norm": AT_LEAST_0,
    "warmup_steps": (
        "a whole number of steps, or a share of them from 0 to below 1",
        lambda value: 0 <= value < 1 or (value >= 1 and value == int(value)),
    ),
    "logging_steps": ABOVE_0,
    "save_steps": ABOVE_0,
    "save_total_limit": (
        "a whole number of at least 1; leave it out to keep all",
        lambda value: value >= 1 or value == -1,  # XTuner's word for all
    ),
    "eval_steps": ABOVE_0,
    "eval_delay": AT_LEAST_0,
    "eval_accumulation_steps": COUNT,
    "seed": SEED,
    "data_seed": SEED,
    "dataloader_num_workers": AT_LEAST_0,
    "dataloader_prefetch_factor": COUNT,
    "dataset_num_proc": COUNT,
    "pad_to_multiple_of": COUNT,
    "ddp_timeout": ("a number of seconds above 0", _is_positive),
    "ddp_bucket_cap_mb": COUNT,
    "torch_empty_cache_steps": COUNT,
    "router_aux_loss_coef": AT_LEAST_0,
    "lora_r": COUNT,
    "lora_alpha": ABOVE_0,
    "lora_dropout": SHARE,
    "eval_prompts_steps": ("a number of steps, or 0 for before and after only", _is_at_least_0),
    "save_every_minutes": ("a number of minutes", _is_at_least_0),
    "stop_when_identity": (
        "a share of the questions, above 0 and at most 1, such as 0.95",
        lambda value: 0 < value <= 1,
    ),
    "stop_patience": ("a number of evaluations, at least 1", _is_at_least_1),
    "early_stopping_patience": ("a number of evaluations, at least 1", _is_at_least_1),
    "score_seconds": ("a number of seconds above 0", _is_positive),
    "card": ("the GB of a GPU, above 0, such as 24", _is_positive),
}


def refuse_what_cannot_work(chosen: dict[str, Any], refuse: Refusal, reads: Collection[str] = PATH_KEYS) -> None:
    """Call `refuse(key, problem)`, which raises, for keys that are missing, contradict each other or name no file.

    Only the files of the keys in `reads` must be named and there.
    """
    train_file = chosen.get("train_file")
    for key in (*PATH_KEYS, "output_dir"):
        _refuse_shell(key, chosen.get(key), refuse)
    if "model_name_or_path" in reads and not chosen.get("model_name_or_path"):
        refuse("model_name_or_path", "missing: name a model folder or a hub id")
    if "train_file" in reads and not train_file:
        refuse("train_file", "missing: name the data file to train on")
    _refuse_bad_entries(train_file, refuse)
    files = train_files(train_file or [])
    if chosen.get("packing") and chosen.get("max_length", 1) is None:
        refuse("max_length", "packing needs a length to fill; give one, or packing: false")
    if chosen.get("card") is not None and not chosen.get("dry_run"):
        refuse("card", "is the GPU that a dry run plans for; add --dry_run")
    _refuse_missing_files(chosen, [file.path for file in files], refuse, reads)
    _refuse_bad_numbers(chosen, refuse)
    _refuse_bad_output(chosen, [file.path for file in files], refuse)
    _refuse_bad_evaluation(chosen, refuse)
    _refuse_bad_stopping(chosen, refuse)
    _refuse_bad_scoring(chosen, refuse)
    _refuse_bad_weights(chosen, refuse)
    _refuse_bad_parts(chosen, refuse)
    _refuse_inert_keys(chosen, refuse)


def _refuse_missing_files(
    chosen: dict[str, Any], train_paths: Iterable[str], refuse: Refusal, reads: Collection[str]
) -> None:
    """A file that will be read and is not there, with how to make one."""
    train_file = next((path for path in train_paths if not is_data(path)), None)
    if "train_file" in reads and train_file:
        make = f"python -m data_tools generate --name 黄大力 --rows 1500 {train_file}"
        refuse("train_file", f"{train_file}: no such file; make one with: {make}")
    eval_file, score_file, template = map(chosen.get, ("eval_file", "score_file", "chat_template_path"))
    if "eval_file" in reads and eval_file and not is_data(eval_file):
        split = "python -m data_tools split ALL.jsonl --train TRAIN.jsonl --eval EVAL.jsonl"
        refuse("eval_file", f"{eval_file}: no such file; hold one out with: {split}")
    if "score_file" in reads and score_file and not Path(score_file).is_file():
        refuse("score_file", f"{score_file}: no such file; copy data_tools/bank/score.yaml and edit it")
    is_template = template is None or (Path(template).is_file() and template.endswith((".jinja", ".j2")))
    if "chat_template_path" in reads and not is_template:
        refuse("chat_template_path", f"{template}: not a .jinja file; name one")


def _refuse_bad_entries(train_file: str | list | None, refuse: Refusal) -> None:
    """A list of training files whose entries are not all {path, weight}."""
    for entry in train_file if isinstance(train_file, list) else ():
        if not isinstance(entry, dict) or "path" not in entry:
            refuse("train_file", f"{entry}: write each file as {{path: data/a.jsonl, weight: 1.0}}")
        if unknown := entry.keys() - {"path", "weight", "columns"}:
            key = min(unknown, key=str)
            refuse("train_file", f"{key}: no key of a file{did_you_mean(str(key), ('path', 'weight', 'columns'))}")
        weight = entry.get("weight", 1.0)
        if isinstance(weight, bool) or not isinstance(weight, (int, float)) or not 0 < weight < float("inf"):
            refuse("train_file", f"{entry['path']}: weight {weight}: must be a number above 0, such as 0.3")


def _refuse_shell(key: str, path: object, refuse: Refusal) -> None:
    """What only a shell makes a path of, where there is no file of this name."""
    if not isinstance(path, str) or os.path.exists(path):
        return
    if path.startswith("~"):
        refuse(key, f"{path}: only a shell knows ~; write {os.path.expanduser(path)}")
    if re.search(r"\$\w|\$\{", path):
        refuse(
            key, f'{path}: only a shell fills in variables; write the path, or give it to the command: --{key} "{path}"'
        )


def _refuse_bad_output(chosen: dict[str, Any], train_paths: Iterable[str], refuse: Refusal) -> None:
    """A run directory is moved aside whole by the next run in it."""
    folder = Path(chosen["output_dir"])
    if folder.exists() and not folder.is_dir():
        refuse("output_dir", f"{folder}: is a file; name a folder")
    named = [chosen[key] for key in PATH_KEYS if isinstance(chosen.get(key), str)]
    for path in (*train_paths, *named, os.getcwd(), str(REPOSITORY)):
        if os.path.exists(path) and Path(path).resolve().is_relative_to(folder.resolve()):
            refuse("output_dir", f"{folder}: holds {path}, which a later run would move aside with it; name another")


def _refuse_bad_numbers(chosen: dict[str, Any], refuse: Refusal) -> None:
    for key, (words, fits) in NUMBERS.items():
        value = chosen.get(key)
        if isinstance(value, str) and re.fullmatch(r"-?\d+", value):
            value = int(value)  # of a key that takes a word as well
        if isinstance(value, (int, float)) and not (math.isfinite(value) and fits(value)):
            refuse(key, f"{value:g} is not {words}")


def _refuse_bad_weights(chosen: dict[str, Any], refuse: Refusal) -> None:
    """What is loaded and what of it is trained."""
    for name in chosen.get("lora_target_modules") or []:
        if GLUED.fullmatch(name):
            names = ", ".join(re.split("[,，] *", name))
            refuse("lora_target_modules", f"{name}: is one name to PEFT; write a list: [{names}]")
    if chosen.get("lora_task_type", "CAUSAL_LM") != "CAUSAL_LM":
        refuse("lora_task_type", "a chat model is of the type CAUSAL_LM; leave it out")
    if chosen.get("load_in_4bit") and chosen.get("load_in_8bit"):
        refuse("load_in_8bit", "weights are held in 4 bits or in 8; leave out load_in_4bit or load_in_8bit")
    for key in ("load_in_4bit", "load_in_8bit"):
        if chosen.get(key) and not chosen.get("use_peft"):
            refuse(key, "quantised weights cannot be trained themselves; add use_peft: true")
    if chosen.get("model_revision", "main") != "main" and os.path.isdir(chosen.get("model_name_or_path") or ""):
        refuse("model_revision", f"{chosen['model_name_or_path']} is a folder, which has no revisions; leave it out")


def _refuse_bad_parts(chosen: dict[str, Any], refuse: Refusal) -> None:
    """What a mapping may not say, since a key of the recipe says it or the run decides it."""
    for name in chosen.get("model_init_kwargs") or ():
        if name in INIT_KEYS:
            refuse("model_init_kwargs", f"{name}: has a key of its own; write {INIT_KEYS[name]}")
    accelerator = chosen.get("accelerator_config")
    if isinstance(accelerator, str):
        refuse("accelerator_config", f"{accelerator}: write it as a mapping, such as {{non_blocking: true}}")
    for name, value in (accelerator or {}).items():
        if name in PLANNED:
            refuse("accelerator_config", f"{name}: {PLANNED[name]}; leave it out")
        if name not in LEFT_TO_ACCELERATE:
            refuse("accelerator_config", f"{name}: no such field{did_you_mean(name, LEFT_TO_ACCELERATE)}")
        if name == "gradient_accumulation_kwargs" and "num_steps" in value:
            refuse("accelerator_config", "num_steps: has a key of its own; write gradient_accumulation_steps")


def _refuse_bad_evaluation(chosen: dict[str, Any], refuse: Refusal) -> None:
    eval_file, strategy = chosen.get("eval_file"), chosen.get("eval_strategy", "no")
    if strategy != "no" and not eval_file:
        refuse("eval_strategy", "there is no held-out file to evaluate on; name one with eval_file")
    if eval_file and chosen.get("per_device_eval_batch_size", 1) != 1:
        refuse("per_device_eval_batch_size", "must be 1, so that every held-out token weighs the same")
    if (metric := chosen.get("metric_for_best_model")) not in (None, "loss", "eval_loss"):
        refuse("metric_for_best_model", f"{metric}: {BEST}")
    if chosen.get("save_strategy") == "best" and not (metric or chosen.get("load_best_model_at_end")):
        refuse("save_strategy", f"best needs metric_for_best_model: {BEST}")


def _refuse_bad_stopping(chosen: dict[str, Any], refuse: Refusal) -> None:
    key = "early_stopping_patience"
    if not chosen.get(key) or not chosen.get("eval_file"):
        return
    if chosen.get("eval_strategy") == "no":
        refuse(key, "needs the held-out loss; leave out eval_strategy: no")
    if chosen.get("greater_is_better"):
        refuse(key, "of two losses the lower is the better; leave out greater_is_better")
    if chosen.get("keep_best"):
        refuse(key, "takes the best by the held-out loss, and keep_best by the name; leave one of them out")


def _refuse_bad_scoring(chosen: dict[str, Any], refuse: Refusal) -> None:
    for needed, (purpose, keys) in NEEDS.items():
        if not chosen.get(needed) and (key := next(filter(chosen.get, keys), None)):
            refuse(key, f"needs {needed}, {purpose}")
    if chosen.get("keep_best") and chosen.get("save_strategy", "steps") == "no":
        refuse("keep_best", "needs checkpoints; leave out save_strategy: no")


def _refuse_inert_keys(chosen: dict[str, Any], refuse: Refusal) -> None:
    """A key that would change nothing and asks for something else.

    One whose companion is set to what switches it off, such as load_in_4bit: false, waits to be switched on again.
    """
    for key, instead in INERT.items():
        if chosen.get(key) is not None and chosen[key] != DONE_ANYWAY.get(key):
            refuse(key, f"would change nothing: {instead}; leave it out")
    for companion, idle in IDLE_WITHOUT.items():
        is_there = chosen.keys() & {name.partition(":")[0] for name in companion.split(" or ")}
        if not is_there and (idle_key := next(filter(chosen.get, idle), None)):
            refuse(idle_key, f"would change nothing by itself; add {companion}, or leave it out")
