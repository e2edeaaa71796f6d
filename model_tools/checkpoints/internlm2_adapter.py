"""Turns an adapter made for InternLM2's own code into one for the native model, whose modules have Llama's names.

In: tensors and config as PEFT writes them. Out: the same adapter, for `sft.models.internlm2`. A fused `wqkv` is split:
its A is shared by queries, keys and values, and each row of its B, like those of its weight, goes to one of them.
"""

from collections import Counter
from pathlib import Path

import torch
from peft.utils.other import get_pattern_key
from transformers.conversion_mapping import get_checkpoint_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

from model_tools.checkpoints.adapter_tensors import PREFIX, Tensors, module_ranks
from model_tools.checkpoints.model_folder import config_file
from sft.core.errors import UserError
from sft.core.json_file import read_json
from sft.models import internlm2

internlm2.register_with_transformers()

RULES = get_checkpoint_conversion_mapping("internlm2")
RENAMINGS = [rule for rule in RULES if isinstance(rule, WeightRenaming)]
CONVERTERS = [rule for rule in RULES if isinstance(rule, WeightConverter)]
PARTS = (internlm2.QUERY, internlm2.KEY, internlm2.VALUE)
# Of these the base model's weights stay as they were; others take a part out of them, which cannot be split.
PLAIN_STARTS = (True, False, None, "gaussian", "eva", "orthogonal")

OUTSIDE_LAYERS = ("embed_tokens", "lm_head")
LLAMA_MODULES = (
    *(f"{name}_proj" for name in ("q", "k", "v", "o", "gate", "up", "down")),
    *OUTSIDE_LAYERS,
)
# Fields that must say nothing for an engine to apply an adapter as PEFT does.
# Sources: vllm/lora/peft_helper.py, sglang/srt/lora/lora_config.py.
EMPTY = (None, [], {}, False, "none")
PLAIN_FOR_ENGINES = {
    "peft_type": ("LORA",),
    **dict.fromkeys(
        ("use_dora", "modules_to_save", "rank_pattern", "alpha_pattern", "bias", "lora_bias", "target_parameters",
         "trainable_token_indices"), EMPTY
    ),
}  # fmt: skip


def has_published_names(tensors: Tensors) -> bool:
    """Whether any module has a name that InternLM2's own code gives it."""
    return any(native_names(name.removeprefix(PREFIX)) != [name.removeprefix(PREFIX)] for name in tensors)


def native_names(name: str) -> list[str]:
    """The name, or the three names, that a published name of the base model has in the native one."""
    renamed, fused = rename_source_key(name, RENAMINGS, CONVERTERS)
    return [renamed.replace(internlm2.QUERY, part) for part in PARTS] if fused else [renamed]


def is_internlm2(base: Path) -> bool:
    """Whether a config.json is that of an InternLM2; other models of its makers use some of its names.

    Raises:
        UserError: it cannot be read.
    """
    return read_json(base, "download it again").get("model_type") == "internlm2"


def to_native(tensors: Tensors, config: dict, base: Path, where: Path) -> tuple[Tensors, dict]:
    """The adapter for the native model: tensors and config. `base` is the base model's config.json.

    Raises:
        UserError: the base is of another shape, or the adapter is of a kind that cannot be split.
    """
    if kind := _undivided(config):
        raise UserError(f"{where}: {kind} on InternLM2's fused modules cannot be split: use it with its own code")
    shape = internlm2.InternLM2Config.from_pretrained(base)
    made: Tensors = {}
    for name, tensor in tensors.items():
        names = native_names(name.removeprefix(PREFIX))
        parts = [tensor] if len(names) == 1 else _split(name, tensor, shape, where)
        made |= {PREFIX + new: part for new, part in zip(names, parts, strict=True)}
    return made, config | _renamed(config, tensors, made)


def for_engines(tensors: Tensors, config: dict, where: Path) -> dict:
    """The config of a native adapter as engines read it that load adapters beside a Llama, such as vLLM and SGLang.

    Those take one rank and one scale for all modules, and short names of modules where a full one is not needed.

    Raises:
        UserError: the adapter has what they refuse or, worse, pass over; or its base is no InternLM2 and no Llama.
    """
    base = config_file(config.get("base_model_name_or_path") or "")
    shape = read_json(base) if base else {}
    if shape.get("model_type", "llama") not in ("internlm2", "llama"):
        raise UserError(f"{where}: its base is a {shape['model_type']}, which is no Llama under any name: omit --as")
    if refused := next((name for name, plain in PLAIN_FOR_ENGINES.items() if config.get(name) not in plain), None):
        raise UserError(f"{where}: has {refused}, which engines refuse or pass over beside a base: merge it instead")
    modules = sorted(module_ranks(tensors))
    if others := [module for module in modules if module.rpartition(".")[2] not in LLAMA_MODULES]:
        raise UserError(f"{where}: adapts {others[0]}, which no Llama has: give InternLM2's folder as --base")
    counts = Counter(module.rpartition(".")[2] for module in modules)
    layers = shape.get("num_hidden_layers")
    is_everywhere = all(count == layers for name, count in counts.items() if name not in OUTSIDE_LAYERS)
    return config | {"target_modules": sorted(counts) if is_everywhere else modules, "auto_mapping": None}


def _undivided(config: dict) -> str | None:
    """What of a config does not hold for parts of a module as for the whole."""
    if config.get("peft_type") != "LORA":
        return str(config.get("peft_type"))
    if config.get("init_lora_weights") not in PLAIN_STARTS:
        return f"init_lora_weights {config['init_lora_weights']}"
    if "lora_alpha" not in config:
        return "a config without lora_alpha"
    return "target_parameters" if config.get("target_parameters") else None


def _split(name: str, tensor: torch.Tensor, base: internlm2.InternLM2Config, where: Path) -> list[torch.Tensor]:
    if ".lora_A" in name:
        return [tensor.clone() for _ in PARTS]
    heads, kv_heads, size = base.num_attention_heads, base.num_key_value_heads, base.head_dim
    rows = (heads + 2 * kv_heads) * size
    if tensor.shape[0] != rows:
        raise UserError(
            f"{where}: {name} has {tensor.shape[0]} rows, and a base with {heads} heads and {kv_heads} key heads of "
            f"{size} has {rows}: name its own with --base"
        )
    return list(internlm2.SplitWqkv().convert({name: tensor}, [name], PARTS, config=base).values())


def _renamed(config: dict, tensors: Tensors, made: Tensors) -> dict:
    """What changes in a config: every module by its new full name, with its own rank and alpha where they differ."""
    old_alphas = config.get("alpha_pattern") or {}
    alphas = {
        new: old_alphas.get(get_pattern_key(old_alphas, module), config["lora_alpha"])
        for module in module_ranks(tensors)
        for new in _modules(module)
    }
    new_ranks = module_ranks(made)
    rank = Counter(new_ranks.values()).most_common(1)[0][0]
    saved = [new for module in config.get("modules_to_save") or () for new in _modules(module)]
    tokens = config.get("trainable_token_indices")
    if isinstance(tokens, dict):
        tokens = {new: indices for module, indices in tokens.items() for new in _modules(module)}
    return {
        "r": rank,
        "target_modules": sorted(new_ranks),
        "rank_pattern": {module: own for module, own in new_ranks.items() if own != rank},
        "alpha_pattern": {module: own for module, own in alphas.items() if own != config["lora_alpha"]},
        "modules_to_save": saved or None,
        "trainable_token_indices": tokens,
        # Full names say which layers; these would be searched for the old ones. The native model is no remote code.
        **dict.fromkeys(("exclude_modules", "layers_to_transform", "layers_pattern", "auto_mapping")),
        "task_type": "CAUSAL_LM",
    }


def _modules(module: str) -> list[str]:
    return [name.removesuffix(".") for name in native_names(f"{module}.")]
