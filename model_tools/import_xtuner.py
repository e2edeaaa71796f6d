"""Write the recipe that an XTuner config comes to, and say what of it has no counterpart.

In: an XTuner config for text SFT (QLoRA, LoRA or full). Out: a recipe in YAML. The config is read, never run.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path

import yaml

from model_tools.checkpoints.xtuner_config import Symbol, read_config
from sft.config.aliases import RENAMED, XTUNER
from sft.core import files
from sft.core.errors import UserError
from sft.core.text import one_line
from sft.core.verbs import add_output

LOADS = "PyTorch and Transformers"

# XTuner's top-level names whose value is the same here: under a name that the recipe's parser explains, under an old
# name of Transformers', and under the same name.
SAME_VALUE = {
    **{
        name: XTUNER[name]
        for name in (
            "pretrained_model_name_or_path", "pack_to_max_length", "batch_size", "accumulative_counts", "max_epochs",
            "lr", "max_norm", "evaluation_freq", "evaluation_inputs", "SYSTEM", "work_dir",
        )
    },
    **dict.fromkeys(("warmup_ratio", "warm_up_ratio"), RENAMED["warmup_ratio"]),
    **{
        name: name
        for name in ("max_length", "dataloader_num_workers", "weight_decay", "save_steps", "save_total_limit")
    },
}  # fmt: skip
OPTIMIZERS = {
    "AdamW": "adamw_torch",
    "PagedAdamW32bit": "paged_adamw_32bit",
    "PagedAdamW8bit": "paged_adamw_8bit",
    "AdamW8bit": "adamw_8bit",
    "Lion": "lion_32bit",
    "SGD": "sgd",
}
# Names that hold no setting, or whose setting is read where it is used.
PARTS = {
    "model", "tokenizer", "train_dataset", "train_dataloader", "optim_wrapper", "param_scheduler", "train_cfg",
    "custom_hooks", "default_hooks", "env_cfg", "visualizer", "log_level", "load_from", "randomness",
    "log_processor", "launcher", "optim_type", "betas", "sampler", "sequence_parallel_size",
}  # fmt: skip
WITHOUT_COUNTERPART = {
    "prompt_template": "the model's own chat template is used; chat_template_path names another",
    "use_varlen_attn": "packed samples never see each other here",
    "resume": "an interrupted run resumes by itself (resume: auto)",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the verb's arguments to its parser."""
    parser.add_argument("config", type=Path, help="XTuner config, such as internlm2_5_chat_7b_qlora_alpaca_e3_copy.py")
    add_output(parser, "out", help="recipe to write, such as recipes/mine.yaml")


def run(arguments: argparse.Namespace) -> int:
    """Run the verb; returns its exit code."""
    config = read_config(arguments.config)
    _refuse_what_is_no_text_sft(arguments.config, config)
    settings, notes = recipe_of(config)
    text = f"# From {arguments.config.name}, an XTuner config.\n"
    text += "".join(f"# {note}\n" for note in notes)
    text += yaml.safe_dump(settings, allow_unicode=True, sort_keys=False, width=110)
    with files.atomic_write(arguments.out, arguments.config) as file:
        file.write(text.encode("utf-8"))
    print(f"{arguments.out}: {len(settings)} settings from {arguments.config}")
    for note in notes:
        print(f"  {note}")
    return 0


def _refuse_what_is_no_text_sft(path: Path, config: dict[str, object]) -> None:
    model = config.get("model")
    kind = _dict(model).get("type")
    if isinstance(kind, Symbol) and kind.name != "SupervisedFinetune":
        raise UserError(f"{path}: trains a {kind.name}: only text SFT (SupervisedFinetune) has a counterpart here")
    if not isinstance(config.get("pretrained_model_name_or_path"), str):
        raise UserError(f"{path}: assigns no pretrained_model_name_or_path: is it a whole XTuner config for text?")


def recipe_of(config: dict[str, object]) -> tuple[dict[str, object], list[str]]:
    """The recipe's keys, and a note on each thing of the config that has none."""
    settings: dict[str, object] = {}
    notes: list[str] = []
    for name, value in config.items():
        if name in WITHOUT_COUNTERPART:
            notes += [f"{name} = {_shown(value)}: {WITHOUT_COUNTERPART[name]}"] if value else []
        elif name in SAME_VALUE and not _has_symbol(value):
            settings |= {SAME_VALUE[name]: value} if value not in (None, "") else {}
        elif name in SAME_VALUE:
            notes.append(f"{name} = {_shown(value)}: known only by running the config; set {SAME_VALUE[name]} yourself")
        elif name not in PARTS and not _is_data(value):
            notes.append(f"{name} = {_shown(value)}: no counterpart here")
    settings |= dict(_model(config.get("model")))
    settings |= dict(_optimizer(config, notes))
    settings |= dict(_data(config, notes))
    return settings, notes


def _model(model: object) -> Iterator[tuple[str, object]]:
    """Precision of the weights, quantisation and adapter, from the nested `model`."""
    model = _dict(model)
    llm = _dict(model.get("llm"))
    quantised = _dict(llm.get("quantization_config"))
    dtype = quantised.get("bnb_4bit_compute_dtype") or llm.get("torch_dtype")
    if isinstance(dtype, Symbol):
        yield "dtype", dtype.name
    for bits in ("load_in_4bit", "load_in_8bit"):
        if quantised.get(bits):
            yield bits, True
    if quantised.get("load_in_4bit"):
        yield "bnb_4bit_quant_type", quantised.get("bnb_4bit_quant_type", "fp4")
        yield "use_bnb_nested_quant", bool(quantised.get("bnb_4bit_use_double_quant"))
    yield "attn_implementation", "sdpa"
    if isinstance(lora := model.get("lora"), dict):
        yield "use_peft", True
        for name, ours in (("r", "lora_r"), ("lora_alpha", "lora_alpha"), ("lora_dropout", "lora_dropout")):
            if name in lora:
                yield ours, lora[name]
        # XTuner finds all linear layers but the head where a config names none.
        yield "lora_target_modules", lora.get("target_modules") or "all-linear"


def _optimizer(config: dict[str, object], notes: list[str]) -> Iterator[tuple[str, object]]:
    optimizer = config.get("optim_type")
    if isinstance(optimizer, Symbol) and optimizer.name in OPTIMIZERS:
        yield "optim", OPTIMIZERS[optimizer.name]
    elif optimizer is not None:
        notes.append(f"optim_type = {_shown(optimizer)}: no counterpart known; set optim yourself")
    betas = config.get("betas")
    if isinstance(betas, list) and len(betas) == 2 and not _has_symbol(betas):
        yield from zip(("adam_beta1", "adam_beta2"), betas, strict=True)
    precision = _dict(config.get("optim_wrapper")).get("dtype")
    yield "fp16", precision == "float16"
    yield "bf16", precision == "bfloat16"
    yield "activation_checkpointing", True
    if _has_word(config.get("param_scheduler"), "CosineAnnealingLR"):
        yield "lr_scheduler_type", "cosine"
    else:
        notes.append("param_scheduler: no cosine; set lr_scheduler_type yourself")
    if isinstance(steps := _dict(config.get("train_cfg")).get("max_iters"), int):
        yield "max_steps", steps
    if isinstance(seed := _dict(config.get("randomness")).get("seed"), int):
        yield "seed", seed
    yield "deepspeed", "ds_configs/zero2.json"
    notes.append("deepspeed: XTuner takes it on the command line; here it is a key, set to ZeRO-2")


def _data(config: dict[str, object], notes: list[str]) -> Iterator[tuple[str, object]]:
    dataset = _dict(config.get("train_dataset"))
    files_named = _dict(dataset.get("dataset")).get("data_files")
    files_named = files_named.get("train") if isinstance(files_named, dict) else files_named
    if isinstance(files_named, str):
        yield "train_file", files_named
    elif isinstance(files_named, list) and all(isinstance(path, str) for path in files_named):
        yield "train_file", [{"path": path} for path in files_named]
    else:
        notes.append("train_dataset: names no file of yours; set train_file yourself")
    if dataset.get("dataset_map_fn"):
        mapping = _shown(dataset["dataset_map_fn"])
        notes.append(f"dataset_map_fn = {mapping}: known formats need none; python -m data_tools convert reads others")
    yield "shuffle_dataset", True
    yield "logging_steps", 10
    yield "report_to", "tensorboard"


def _dict(value: object) -> dict:
    """The value where it is a dict, else an empty one."""
    return value if isinstance(value, dict) else {}


def _is_data(value: object) -> bool:
    """Whether a name only says where data lies: it is read in `train_dataset`, where it is used."""
    return isinstance(value, str) and value.endswith((".json", ".jsonl"))


def _has_symbol(value: object) -> bool:
    return isinstance(value, Symbol) or (isinstance(value, list) and any(map(_has_symbol, value)))


def _has_word(value: object, word: str) -> bool:
    if isinstance(value, Symbol):
        return value.name == word
    children = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return any(_has_word(child, word) for child in children)


def _shown(value: object) -> str:
    return one_line(value.text if isinstance(value, Symbol) else repr(value), 60)
