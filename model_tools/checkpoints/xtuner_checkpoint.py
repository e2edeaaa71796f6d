"""What an XTuner checkpoint says of its LoRA beside the weights: the settings in the config text that mmengine keeps.

In: the content of `iter_N.pth`, or the config that lies beside it. Out: PEFT's LoraConfig. Nothing of XTuner is run,
and none of it need be installed.
"""

from collections import Counter
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from model_tools.checkpoints.adapter_tensors import Tensors, module_ranks
from model_tools.xtuner.config import parse_config, read_config
from sft.core.errors import UserError

if TYPE_CHECKING:
    from peft import LoraConfig

# What DeepSpeed lays beside a checkpoint, in the place where XTuner lays its config.
SCRIPTS_OF_DEEPSPEED = ("zero_to_fp32.py", "zero_to_torch.py")
KNOWN_FROM_TENSORS = ("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "rank_pattern")
ADVICE = "add --config with the XTuner config it was trained with"


@dataclass(frozen=True)
class LoraSettings:
    """The LoRA part of a config as far as its text tells, empty if there is none, and the base model it names."""

    lora: dict[str, object]
    base: str | None
    where: str


def read_lora_settings(content: dict, checkpoint: Path, config: Path | None) -> LoraSettings:
    """The settings from the config a person names, else from the checkpoint itself, else from the one beside it.

    Raises:
        UserError: there is none, or it sets no LoRA.
    """
    settings = _settings(read_config(config).values, str(config)) if config else settings_within(content, checkpoint)
    settings = settings or _settings_beside(checkpoint)
    if not settings.lora:
        raise UserError(f"{settings.where}: sets no lora in its model: {ADVICE}")
    return settings


def settings_within(content: dict, checkpoint: Path) -> LoraSettings | None:
    """The settings from the config in a checkpoint; None where there is none.

    Raises:
        UserError: the config is not Python.
    """
    where = f"{checkpoint} (the config in it)"
    text = _config_text(content)
    return _settings(parse_config(text, where).values, where) if text else None


def _settings_beside(checkpoint: Path) -> LoraSettings:
    beside = [file for file in checkpoint.parent.glob("*.py") if file.name not in SCRIPTS_OF_DEEPSPEED]
    if len(beside) != 1:
        raise UserError(
            f"{checkpoint}: holds no config, and {len(beside)} *.py lie beside it; lora_alpha is not known: {ADVICE}"
        )
    return _settings(read_config(beside[0]).values, str(beside[0]))


def _config_text(content: dict) -> str | None:
    """The config that mmengine wrote into a checkpoint: in `meta`, or where its log keeps it."""
    meta = content.get("meta")
    hub = content.get("message_hub")
    logged = hub.get("runtime_info") if isinstance(hub, dict) else None
    texts = (part.get("cfg") for part in (meta, logged) if isinstance(part, dict))
    return next((text for text in texts if isinstance(text, str)), None)


def lora_config(settings: LoraSettings, tensors: Tensors) -> "LoraConfig":
    """PEFT's LoraConfig of an adapter with these tensors: ranks and modules as they are, the rest as the config says.

    Raises:
        UserError: the settings are not those of these tensors, or do not say alpha.
    """
    from peft import LoraConfig

    rank_of = module_ranks(tensors)
    rank = settings.lora.get("r", Counter(rank_of.values()).most_common(1)[0][0])
    if rank not in rank_of.values():
        have = ", ".join(map(str, sorted(set(rank_of.values()))))
        raise UserError(f"{settings.where}: says r {rank}, and the tensors have r {have}: {ADVICE}")
    if not isinstance(settings.lora.get("lora_alpha"), (int, float)):
        raise UserError(f"{settings.where}: does not say lora_alpha: {ADVICE}")
    _refuse_what_is_not_set(settings, tensors)
    taken = {field.name for field in fields(LoraConfig)} - {*KNOWN_FROM_TENSORS}
    from_config: dict[str, Any] = {name: value for name, value in settings.lora.items() if name in taken}
    from_tensors: dict[str, Any] = {
        "r": rank,
        "target_modules": sorted(rank_of),
        "rank_pattern": {module: own for module, own in rank_of.items() if own != rank},
        "use_dora": any("lora_magnitude_vector" in name for name in tensors),
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": settings.base,
        "inference_mode": True,
    }
    try:
        return LoraConfig(**from_config | from_tensors)
    except (ValueError, TypeError) as problem:
        raise UserError(f"{settings.where}: lora is not as PEFT takes it ({problem}): {ADVICE}") from None


def _refuse_what_is_not_set(settings: LoraSettings, tensors: Tensors) -> None:
    """PEFT skips a tensor that no setting mentions, without a message."""
    modules = settings.lora.get("modules_to_save")
    saved = tuple(f".{module}." for module in modules) if isinstance(modules, list) else ()
    has_bias = settings.lora.get("bias", "none") != "none"
    for name in tensors:
        is_bias = has_bias and name.endswith(".bias")
        if not is_bias and ".lora_" not in name and not any(module in name for module in saved):
            raise UserError(
                f"{settings.where}: {name} was trained, and neither bias nor modules_to_save asks for it: {ADVICE}"
            )


def _settings(config: dict[str, object], where: str) -> LoraSettings:
    model = config.get("model")
    lora, llm = (model.get("lora"), model.get("llm")) if isinstance(model, dict) else (None, None)
    base = (llm if isinstance(llm, dict) else {}).get("pretrained_model_name_or_path")
    lora = lora if isinstance(lora, dict) else {}
    plain = {name: value for name, value in lora.items() if name != "type" and _is_plain(value)}
    return LoraSettings(plain, base if isinstance(base, str) else None, where)


def _is_plain(value: object) -> bool:
    if isinstance(value, (list, dict)):
        return all(_is_plain(part) for part in (value.values() if isinstance(value, dict) else value))
    return value is None or isinstance(value, (bool, int, float, str))
