"""What XTuner's `optim_wrapper`, `strategy` and `train_cfg` come to in a recipe: optimizer, precision and length."""

from dataclasses import dataclass
from typing import Any

from model_tools.xtuner.draft import NUMBER, SWITCH, TEXT, WHOLE, Part
from model_tools.xtuner.values import name_of

ADAM = (0.9, 0.999)


@dataclass(frozen=True)
class Optimizer:
    """Its name in a recipe, and the defaults of the class."""

    optim: str
    lr: float
    weight_decay: float
    betas: tuple[float, float] | None = ADAM
    eps: float | None = 1e-8


# Source of the defaults: torch.optim, bitsandbytes.optim, deepspeed.ops.
OPTIMIZERS = {
    "AdamW": Optimizer("adamw_torch", 1e-3, 1e-2),
    "Adam": Optimizer("adamw_torch", 1e-3, 0.0),
    "FusedAdam": Optimizer("adamw_torch_fused", 1e-3, 0.0),
    "DeepSpeedCPUAdam": Optimizer("adamw_torch", 1e-3, 0.0),
    "AdamW8bit": Optimizer("adamw_8bit", 1e-3, 1e-2),
    "PagedAdamW": Optimizer("paged_adamw_32bit", 1e-3, 1e-2),
    "PagedAdamW32bit": Optimizer("paged_adamw_32bit", 1e-3, 1e-2),
    "PagedAdamW8bit": Optimizer("paged_adamw_8bit", 1e-3, 1e-2),
    "Lion": Optimizer("lion_32bit", 1e-4, 0.0, (0.9, 0.99), None),
    "Lion32bit": Optimizer("lion_32bit", 1e-4, 0.0, (0.9, 0.99), None),
    "Lion8bit": Optimizer("lion_8bit", 1e-4, 0.0, (0.9, 0.99), None),
    "PagedLion32bit": Optimizer("paged_lion_32bit", 1e-4, 0.0, (0.9, 0.99), None),
    "PagedLion8bit": Optimizer("paged_lion_8bit", 1e-4, 0.0, (0.9, 0.99), None),
    "RMSprop": Optimizer("rmsprop", 1e-2, 0.0, None, 1e-8),
    "Adagrad": Optimizer("adagrad", 1e-2, 0.0, None, None),
    "SGD": Optimizer("sgd", 1e-3, 0.0, None, None),
}
DEEPSPEED = "ds_configs/zero2.json"
# What DeepSpeed is told beside that which is a setting: how it goes about it, and what the loader says too.
WITHOUT_A_SETTING = (
    "train_micro_batch_size_per_gpu", "inputs_to_half", "exclude_frozen_parameters", "zero_allow_untested_optimizer",
    "zero_force_ds_cpu_optimizer", "steps_per_print", "wall_clock_breakdown",
)  # fmt: skip


def read_optimizer(config: Part) -> str | None:
    """Set the keys on the optimizer; returns the precision it computes in, None where it mixes none."""
    draft, wrapper = config.draft, config.part("optim_wrapper")
    draft.settings["deepspeed"] = DEEPSPEED
    if wrapper is None:
        return None
    kind = name_of(wrapper.take("type", "OptimWrapper"))
    if kind == "DeepSpeedOptimWrapper":
        precision = _read_strategy(config)
    else:
        config.expect("strategy")
        counts = wrapper.carry("accumulative_counts", WHOLE, "gradient_accumulation_steps", 1, "accumulative_counts")
        draft.accumulation = max(1, counts or 1)
        if counts is None and wrapper.values.get("accumulative_counts") is not None:
            draft.note("save_steps, logging_steps, eval_prompts_steps and max_steps: in batches, as XTuner has them")
        precision = _read_precision(wrapper, kind)
        then = "" if precision == "bfloat16" else ", and computes in bf16 then where the GPU can"
        draft.note(f"deepspeed: XTuner takes it on the command line{then}; here it is a key, set to ZeRO-2")
        _read_clipping(wrapper)
    draft.settings |= {"fp16": precision == "float16", "bf16": precision == "bfloat16"}
    if optimizer := wrapper.part("optimizer"):
        _read_arguments(optimizer)
    draft.note_rest(wrapper)
    return precision


def _read_precision(wrapper: Part, kind: str | None) -> str | None:
    draft = wrapper.draft
    dtype = wrapper.take("dtype")
    wrapper.expect("loss_scale", "dynamic", advice="the scale is dynamic here")
    if kind != "AmpOptimWrapper":
        said = wrapper.shown("type", wrapper.values.get("type", kind))
        if kind == "OptimWrapper":
            advice = "computes in what the weights are held in; for mixed precision, set bf16: true or fp16: true"
        else:
            advice = "unknown here; set fp16 or bf16 yourself"
        draft.note(f"{said}: {advice}")
        return None
    precision = "float16" if dtype is None else name_of(dtype)  # what torch.autocast takes on a GPU
    if precision not in ("float16", "bfloat16"):
        draft.note(wrapper.not_known("dtype", dtype, "set fp16 or bf16 yourself"))
        return None
    return precision


def _read_clipping(wrapper: Part) -> None:
    draft, clipping = wrapper.draft, wrapper.part("clip_grad")
    if clipping is None:
        draft.settings["max_grad_norm"] = 0.0
        draft.at_top["max_norm"] = (wrapper.path_of("clip_grad"), None)
        draft.note(
            "optim_wrapper.clip_grad: there is none, so gradients are not clipped: max_grad_norm: 0; under --deepspeed "
            "XTuner clips at 1.0"
        )
        return
    clipping.carry("max_norm", NUMBER, "max_grad_norm", at_top="max_norm")
    clipping.expect("error_if_nonfinite", False)
    clipping.expect("norm_type", 2, 2.0, advice="the norm is the 2-norm here")
    clipping.expect("type", "norm", advice="gradients are clipped by their norm here; set max_grad_norm")
    draft.note_rest(clipping)


def _read_arguments(optimizer: Part) -> None:
    draft, settings = optimizer.draft, optimizer.draft.settings
    kind = optimizer.take("type")
    draft.at_top["optim_type"] = (optimizer.path_of("type"), kind)
    known = OPTIMIZERS.get(name_of(kind) or "")
    if known:
        settings["optim"] = known.optim
    else:
        draft.note(f"{optimizer.shown('type', kind)}: no counterpart known; set optim yourself")
    known = known or OPTIMIZERS["AdamW"]
    optimizer.carry("lr", NUMBER, "learning_rate", known.lr, at_top="lr")
    optimizer.carry("weight_decay", NUMBER, "weight_decay", known.weight_decay, at_top="weight_decay")
    if name_of(kind) == "Adam" and settings.get("weight_decay"):
        draft.note(f"{optimizer.path_of('type')} = Adam: adds weight decay to gradients; AdamW, here, to weights")
    betas = optimizer.take("betas", known.betas and list(known.betas))
    draft.at_top["betas"] = (optimizer.path_of("betas"), betas)
    if isinstance(betas, list) and len(betas) == 2:
        both = Part({"betas[0]": betas[0], "betas[1]": betas[1]}, optimizer.path, draft)
        both.carry("betas[0]", NUMBER, "adam_beta1")
        both.carry("betas[1]", NUMBER, "adam_beta2")
    elif betas is not None:
        draft.note(optimizer.not_known("betas", betas, "set adam_beta1 and adam_beta2 yourself"))
    eps = optimizer.get("eps", NUMBER, "adam_epsilon", known.eps)
    if eps not in (None, 1e-8):
        settings["adam_epsilon"] = eps
    for name in ("amsgrad", "maximize", "capturable", "differentiable", "adam_w_mode"):
        optimizer.expect(name, name == "adam_w_mode")
    optimizer.expect("foreach", True, False)
    draft.note_rest(optimizer)


def _read_strategy(config: Part) -> str | None:
    """A config that brings DeepSpeed with it; returns its precision."""
    draft, given = config.draft, config.part("strategy")
    if given is None:
        draft.note("optim_wrapper.type = DeepSpeedOptimWrapper: there is no strategy; set fp16 or bf16 yourself")
        return "float16"
    strategy = _merged_with_file(given)
    strategy.take("type")
    accumulation = strategy.carry(
        "gradient_accumulation_steps", WHOLE, "gradient_accumulation_steps", 1, "accumulative_counts"
    )
    draft.accumulation = max(1, accumulation or 1)
    if strategy.carry("gradient_clipping", NUMBER, "max_grad_norm", at_top="max_norm") is None:
        draft.settings["max_grad_norm"] = 0.0  # DeepSpeed's default
    precision = None
    for name, dtype in (("fp16", "float16"), ("bf16", "bfloat16")):
        enabled = strategy.part(name)
        if enabled and enabled.get("enabled", SWITCH, name):
            precision = dtype
            enabled.expect("loss_scale", 0, advice="the scale is dynamic here")
    if zero := strategy.part("zero_optimization"):
        _read_zero(zero)
    for name in WITHOUT_A_SETTING:
        strategy.take(name)
    strategy.expect("sequence_parallel_size", 1)
    draft.note_rest(strategy)
    return precision


def _merged_with_file(strategy: Part) -> Part:
    """The strategy's own words over those of its `config`, of which "auto" ones say nothing.

    Source: mmengine's `DeepSpeedStrategy`.
    """
    inner = strategy.take("config")
    if inner is not None and not isinstance(inner, dict):
        advice = "is not read; set deepspeed, max_grad_norm, and fp16 or bf16 to what it says"
        strategy.draft.note(f"{strategy.shown('config', inner)}: {advice}")
    said = {name: value for name, value in (inner if isinstance(inner, dict) else {}).items() if value != "auto"}
    own = {name: value for name, value in strategy.values.items() if name != "config" and value is not None}
    return Part(said | own, strategy.path, strategy.draft)


def _read_zero(zero: Part) -> None:
    draft = zero.draft
    stage = zero.get("stage", WHOLE, "deepspeed", 0)
    devices = {_device(zero, name) for name in ("offload_optimizer", "offload_param")}
    offload = "_offload" if stage != 1 and devices - {None, "none"} else ""
    file = draft.settings["deepspeed"] = f"ds_configs/zero{stage}{offload}.json" if stage in (1, 2, 3) else DEEPSPEED
    if stage not in (1, 2, 3):
        draft.note(f"{zero.shown('stage', stage)}: here it is {file}")
    zero.expect("overlap_comm", True, False)
    if others := [name for name in zero.values if name not in zero.taken]:
        draft.note(f"{zero.path}: {file} stands for it; not taken from it: {', '.join(map(str, others))}")


def _device(zero: Part, name: str) -> str | None:
    """The device that something is moved to."""
    place = zero.part(name)
    if place is None:
        return None
    place.expect("pin_memory", True, False)
    device = place.get("device", TEXT, "deepspeed", "cpu")
    if device not in ("cpu", "none"):
        zero.draft.note(f"{place.shown('device', device)}: the CPU takes it here")
    zero.draft.note_rest(place)
    return device


@dataclass(frozen=True)
class Length:
    """How long XTuner trains, in epochs or in iterations (batches), and whether its loop counts epochs."""

    epochs: float | None
    iterations: int | None
    has_epochs: bool


def read_length(config: Part) -> Length:
    """Set the keys on how long training takes."""
    draft, loop = config.draft, config.part("train_cfg")
    if loop is None:
        return Length(None, None, False)
    kind = name_of(loop.take("type"))
    by_epoch = loop.take("by_epoch")
    epochs = loop.carry("max_epochs", NUMBER, "num_train_epochs", at_top="max_epochs")
    iterations = loop.get("max_iters", WHOLE, "max_steps", at_top="max_iters")
    if iterations:
        draft.settings["max_steps"] = draft.steps_of(loop, "max_iters", iterations, "max_steps")
    is_usual = kind in ("TrainLoop", "EpochBasedTrainLoop", "IterBasedTrainLoop")
    if not is_usual and loop.values.get("type") is not None:
        draft.note(f"{loop.shown('type', loop.values.get('type'))}: unknown here; rows are trained on once an epoch")
    has_validation = bool(config.values.get("val_dataloader"))
    for name in ("val_interval", "val_begin", "dynamic_intervals"):
        value = loop.take(name)
        if has_validation and value is not None:
            draft.note(f"{loop.shown(name, value)}: held-out rows are measured by eval_file and eval_steps here")
    draft.note_rest(loop)
    counts_epochs = kind == "EpochBasedTrainLoop" or (kind is None and bool(by_epoch))
    return Length(epochs, iterations, counts_epochs)


def amount(value: Any) -> float | None:
    """The value where it is a number."""
    return value if isinstance(value, (int, float)) and not isinstance(value, bool) else None
