"""What XTuner's runner would take from a config, found by running it with stand-ins for the libraries it imports.

Knows nothing of how import-xtuner reads a config. Source of the defaults: Runner.from_cfg of mmengine, and the
constructors of torch, PEFT, mmengine and XTuner.
"""

import builtins
from pathlib import Path
from types import ModuleType
from typing import Any

REAL = ("os", "math", "copy", "pathlib", "collections")


class Library:
    """Anything imported from a library: its name, and that of its parts."""

    def __init__(self, name: str) -> None:
        self.__dict__["name"] = name

    def __getattr__(self, part: str) -> "Library":
        if part.startswith("__"):
            raise AttributeError(part)
        return Library(f"{self.name}.{part}")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Library) and self.name == other.name

    def __hash__(self) -> int:
        return hash(self.name)

    def __call__(self, **arguments: Any) -> "AttributeDict":
        return AttributeDict(type=self, **arguments)

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        pass


class AttributeDict(dict):
    """A dict whose items are attributes too, as mmengine's ConfigDict has them."""

    def __getattr__(self, name: str) -> Any:
        if name not in self:
            raise AttributeError(name)
        return self[name]

    __setattr__ = dict.__setitem__


def execute(file: Path) -> dict[str, Any]:
    """Run a config and return its names."""

    def imported(name, names=None, _locals=None, parts=(), level=0):
        if level:
            base = file.parent
            for _ in range(level - 1):
                base = base.parent
            module = ModuleType(name)
            module.__dict__.update(execute(base.joinpath(*name.split(".")).with_suffix(".py")))
            return module
        return __import__(name, names, None, parts) if name.partition(".")[0] in REAL else Library(name)

    names = {
        "__builtins__": vars(builtins) | {"__import__": imported, "dict": AttributeDict},
        "__name__": "config",
        "__file__": str(file),
    }
    exec(compile(file.read_text(encoding="utf-8"), str(file), "exec"), names)
    return {name: value for name, value in names.items() if not name.startswith("__")}


def last(value: Any) -> Any:
    """The last part of a class's name; any other value itself."""
    return (value.name if isinstance(value, Library) else str(value)).rpartition(".")[2]


def is_text(value: Any) -> bool:
    return isinstance(value, str) and not value.startswith("xtuner.")


def expected(names: dict[str, Any]) -> dict[str, tuple[Any, str]]:
    """For each key of a recipe, its value, and the word that a comment must have where the recipe has another."""
    model, loader, wrapper = names["model"], names["train_dataloader"], names["optim_wrapper"]
    if last(wrapper["type"]) == "DeepSpeedOptimWrapper":
        wrapper = as_wrapper(names["strategy"]) | wrapper
    counts = wrapper.get("accumulative_counts", 1)
    schedulers = names.get("param_scheduler") or []
    return {
        **_model(model),
        **_data(loader),
        **_optimizer(wrapper),
        **_schedule([schedulers] if isinstance(schedulers, dict) else schedulers, names["train_cfg"], counts),
        **_hooks(names, counts),
        "seed": (names.get("randomness", {}).get("seed"), "randomness.seed"),
        "full_determinism": (names.get("randomness", {}).get("deterministic") or None, "deterministic"),
        "output_dir": (names.get("work_dir"), "work_dir"),
        "resume_note": ("resume" if names.get("resume") else None, "resume = True"),
        "load_from_note": ("load_from" if names.get("load_from") else None, "load_from = "),
        "validation_note": ("validation" if names.get("val_dataloader") else None, "val_dataloader = "),
        "parallel_note": ("x" if names.get("sequence_parallel_size", 1) > 1 else None, "sequence_parallel_size = "),
    }


def as_wrapper(strategy: dict) -> dict[str, Any]:
    """What DeepSpeed is told, in the words of an AmpOptimWrapper: the strategy's own over those of its config."""
    said = strategy.get("config", {}) | {name: value for name, value in strategy.items() if value is not None}
    clip = said.get("gradient_clipping", 0)
    dtypes = [dtype for name, dtype in (("fp16", "float16"), ("bf16", "bfloat16")) if said.get(name, {}).get("enabled")]
    return {
        "accumulative_counts": said.get("gradient_accumulation_steps", 1),
        "clip_grad": {"max_norm": 0 if clip == "auto" else clip},
        "dtype": dtypes[0] if dtypes else "float32",
    }


def _model(model: dict) -> dict:
    llm, lora = model["llm"], model.get("lora")
    quantised = llm.get("quantization_config") or llm
    four = quantised.get("load_in_4bit") or None
    dtype = quantised.get("bnb_4bit_compute_dtype") if four else llm.get("torch_dtype")
    found = {
        "model_name_or_path": (llm["pretrained_model_name_or_path"], "pretrained_model_name_or_path"),
        "dtype": (last(dtype) if dtype else "float32", "torch_dtype"),
        "load_in_4bit": (four, "load_in_4bit"),
        "load_in_8bit": (quantised.get("load_in_8bit") or None, "load_in_8bit"),
        "bnb_4bit_quant_type": (quantised.get("bnb_4bit_quant_type", "fp4") if four else None, "bnb_4bit_quant_type"),
        "use_bnb_nested_quant": (quantised.get("bnb_4bit_use_double_quant", False) if four else None, "double_quant"),
        "activation_checkpointing": (model.get("use_activation_checkpointing", True), "use_activation_checkpointing"),
        "varlen_note": ("varlen" if model.get("use_varlen_attn") else None, "model.use_varlen_attn"),
        "remote_note": ("remote" if llm.get("trust_remote_code") else None, "trust_remote_code"),
        "use_peft": (True if lora else None, "model.lora"),
    }
    lora = lora or {}
    found["bias_note"] = (lora.get("bias") if lora.get("bias", "none") != "none" else None, "model.lora.bias")
    found["init_note"] = (lora.get("init_lora_weights"), "model.lora.init_lora_weights")
    if lora:
        found |= {
            "lora_r": (lora.get("r", 8), "model.lora.r"),
            "lora_alpha": (lora.get("lora_alpha", 8), "model.lora.lora_alpha"),
            "lora_dropout": (lora.get("lora_dropout", 0.0), "model.lora.lora_dropout"),
            "lora_target_modules": (lora.get("target_modules") or "all-linear", "target_modules"),
            "lora_modules_to_save": (lora.get("modules_to_save"), "modules_to_save"),
            "use_rslora": (lora.get("use_rslora"), "use_rslora"),
            "use_dora": (lora.get("use_dora"), "use_dora"),
        }
    return found


def _files(dataset: dict) -> list[str]:
    if last(dataset["type"]) == "ConcatDataset":
        return [file for part in _joined(dataset) for file in _files(part)]
    source = dataset["dataset"]
    named = source.get("data_files")
    named = named["train"] if isinstance(named, dict) else named
    if named is None:
        return [source["path"]]
    files = [named] if isinstance(named, str) else named
    return [f"{source['data_dir']}/{file}" if source.get("data_dir") else file for file in files]


def _joined(dataset: dict) -> list[dict]:
    """The data sets in one; the first releases have them by name."""
    return dataset.get("datasets") or list(dataset["datasets_cfg"].values())


def _data(loader: dict) -> dict:
    dataset, files = loader["dataset"], _files(loader["dataset"])
    one = _joined(dataset)[0] if last(dataset["type"]) == "ConcatDataset" else dataset
    function = one.get("dataset_map_fn")
    is_ordered = loader["sampler"].get("shuffle", True) is False
    return {
        "train_file": (files[0] if len(files) == 1 else [{"path": file} for file in files], "data_files"),
        "max_length": (one["max_length"], "dataset.max_length"),
        "packing": (one.get("pack_to_max_length", True), "pack_to_max_length"),
        "shuffle_dataset": (one.get("shuffle_before_pack", True), "shuffle_before_pack"),
        "per_device_train_batch_size": (
            (loader.get("batch_sampler") or {}).get("batch_size", loader.get("batch_size", 1)),
            "train_dataloader.batch_size",
        ),
        "dataloader_num_workers": (loader.get("num_workers", 0), "train_dataloader.num_workers"),
        "train_sampling_strategy": ("sequential" if is_ordered else None, "sampler.shuffle"),
        "data_seed": (loader["sampler"].get("seed"), "sampler.seed"),
        "function_note": ("function" if function else None, "dataset_map_fn = "),
        "template_note": ("template" if one.get("template_map_fn") else None, "prompt_template = "),
    }


def _optimizer(wrapper: dict) -> dict:
    optimizer, clip = wrapper["optimizer"], wrapper.get("clip_grad") or {}
    mixed = last(wrapper["type"]) in ("AmpOptimWrapper", "DeepSpeedOptimWrapper")
    kind = last(optimizer["type"])
    beta1, beta2 = optimizer.get("betas", (0.9, 0.999))
    eps = optimizer.get("eps", 1e-8)
    names = {"AdamW": "adamw_torch", "PagedAdamW32bit": "paged_adamw_32bit"}
    return {
        "optim": (names.get(kind, kind), f"optimizer.type = {kind}"),
        "learning_rate": (optimizer.get("lr", 1e-3), "optimizer.lr"),
        "weight_decay": (optimizer.get("weight_decay", 1e-2), "weight_decay"),
        "adam_beta1": (beta1, "betas"),
        "adam_beta2": (beta2, "betas"),
        "adam_epsilon": (eps if eps != 1e-8 else None, "optimizer.eps"),
        "max_grad_norm": (clip.get("max_norm", 0), "clip_grad"),
        "gradient_accumulation_steps": (wrapper.get("accumulative_counts", 1), "accumulative_counts"),
        "fp16": (mixed and last(wrapper.get("dtype", "float16")) == "float16", "optim_wrapper.dtype"),
        "bf16": (mixed and last(wrapper.get("dtype", "float16")) == "bfloat16", "optim_wrapper.dtype"),
    }


def in_steps(iterations: int, counts: int) -> int:
    """mmengine counts batches; the recipe counts steps of `counts` batches each."""
    return max(1, round(iterations / counts))


def _reached(fall: dict, whole: float) -> float | None:
    """Where a fall is at its least, unless that is where training ends."""
    begin, end, lasts = fall.get("begin", 0), fall.get("end", float("inf")), fall.get("T_max")
    least = begin + lasts if lasts else end
    return None if abs(least - whole) < 1e-6 else least


def _schedule(schedulers: list[dict], loop: dict, counts: int) -> dict:
    epochs, iterations = loop.get("max_epochs"), loop.get("max_iters")
    rising = [part for part in schedulers if last(part["type"]) == "LinearLR" and part.get("end_factor", 1) == 1]
    falling = [part for part in schedulers if part not in rising]
    warmup: Any = 0
    for part in rising:
        by_epoch = part.get("by_epoch", True)
        warmup = (
            part["end"] / epochs if by_epoch and epochs else "unknown" if by_epoch else in_steps(part["end"], counts)
        )
    least = falling[0].get("eta_min") if falling else None
    reached = _reached(falling[0], epochs or iterations) if falling else None
    name = "linear" if falling and last(falling[0]["type"]) == "LinearLR" else "cosine" if falling else "constant"
    return {
        "num_train_epochs": (epochs, "train_cfg.max_epochs"),
        "max_steps": (in_steps(iterations, counts) if iterations else None, "train_cfg.max_iters"),
        "warmup_steps": (warmup, "param_scheduler[0].end"),
        "lr_scheduler_type": (f"{name}_with_min_lr" if least else name, "param_scheduler"),
        "fall_note": (reached, "T_max = " if falling and falling[0].get("T_max") else "it ends with training here"),
        "lr_scheduler_kwargs": ({"min_lr": least} if least else None, "param_scheduler"),
    }


def _hooks(names: dict[str, Any], counts: int) -> dict:
    hooks = {"checkpoint": {"interval": 1}, "logger": {}} | names.get("default_hooks", {})
    saving, logging = hooks["checkpoint"], hooks["logger"] or {}
    asking = [hook for hook in names.get("custom_hooks", []) if last(hook["type"]) == "EvaluateChatHook"]
    every = asking[0].get("every_n_iters") if asking else None
    prompts = asking[0]["evaluation_inputs"] if asking else None
    system = asking[0].get("system") if asking else None
    kwargs = (asking[0].get("generation_kwargs") if asking else None) or {}
    sampled = {"do_sample": True, "temperature": 0.1, "top_p": 0.75, "top_k": 40, **kwargs}
    strategy = None if saving and not saving.get("by_epoch", True) else "epoch" if saving else "no"
    strategy = "no" if saving and saving["interval"] < 0 else strategy
    found = {
        "logging_steps": (in_steps(logging.get("interval", 10), counts), "default_hooks.logger.interval"),
        "save_strategy": (strategy, "default_hooks.checkpoint: saves by epoch"),
        "eval_prompts": ([prompts] if isinstance(prompts, str) else prompts, "EvaluateChatHook"),
        "eval_prompts_system": (system or None, "system = "),
        "max_new_tokens": (
            kwargs.get("max_new_tokens", asking[0].get("max_new_tokens", 600)) if asking else None,
            "max_new_tokens",
        ),
        **{
            name: (value if asking else None, "XTuner samples answers")
            for name, value in sampled.items()
            if name != "max_new_tokens"
        },
    }
    if asking:
        found["eval_prompts_steps"] = (in_steps(every, counts) if every else 0, "every_n_iters")
    if saving:
        found["save_total_limit"] = (saving.get("max_keep_ckpts", -1), "max_keep_ckpts")
    if strategy is None:
        found["save_steps"] = (in_steps(saving["interval"], counts), "default_hooks.checkpoint.interval")
    return found
