"""Says whether a model or an adapter holds every tensor that its configuration asks for, by names and shapes.

In: what the headers of the weights say, and the configuration. Out: a sentence for each kind of tensor that is missing.
Most are known by their regularity, without Transformers, which takes seconds to import; only where that leaves a
doubt is the model built, without weights, and asked.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from model_tools.checkpoints.model_folder import AGAIN, config_file
from sft.core.json_file import read_json
from sft.core.text import counted, one_line_message

if TYPE_CHECKING:
    from sft.models.weight_files import StoredTensor

LAYER = re.compile(r"^(.*?)\.(\d+)\.(.*)$")
LORA_PAIR = ("lora_A", "lora_B")
# What has a LoRA adapter leave out modules that its other settings name.
CHOOSING = ("layers_to_transform", "layers_pattern", "exclude_modules", "target_parameters")


def lacking_in_model(folder: Path, config: dict, tensors: dict[str, StoredTensor]) -> list[str]:
    """What a model folder lacks of the tensors that its configuration asks for, or has in another shape."""
    if _is_regular(config, tensors):
        return []
    from sft.models import internlm2

    internlm2.register_with_transformers()
    from transformers import CONFIG_MAPPING, AutoConfig, AutoModelForCausalLM

    try:
        AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except Exception as problem:  # whatever its values make of the code of its model
        reason = one_line_message(problem, 160)
        is_known = str(config.get("model_type")) in CONFIG_MAPPING
        return [f"config.json: Transformers cannot use it ({reason}): {AGAIN}"] if is_known else []
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            folder,
            device_map="meta",
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            trust_remote_code=False,
        )
    except Exception:  # of an architecture, or weights, that Transformers does not know: nothing can be said
        return []
    problems, (_, found) = [], loaded
    if missing := sorted(found["missing_keys"]):
        problems.append(f"lacks {_some(missing)}, which its configuration asks for: {AGAIN}")
    if mismatched := sorted(name for name, *_ in found["mismatched_keys"]):
        problems.append(f"holds {_some(mismatched)} in another shape than its configuration says: {AGAIN}")
    return problems


def lacking_in_adapter(config: dict, tensors: dict[str, StoredTensor]) -> list[str]:
    """What a LoRA adapter lacks: one of a pair, or some layers' share of what the others have."""
    problems = []
    for first, second in (LORA_PAIR, LORA_PAIR[::-1]):
        for name in tensors:
            if f".{first}." in name and name.replace(f".{first}.", f".{second}.") not in tensors:
                problems.append(f"{name} is there without its {second}: write the adapter again")
    if problems or any(config.get(key) for key in CHOOSING):
        return problems
    modules = {
        name.removeprefix("base_model.model.").partition(".lora_A.")[0] for name in tensors if ".lora_A." in name
    }
    base = config_file(str(config.get("base_model_name_or_path")))
    layers = _layers_of(read_json(base)) if base else None
    if base is None or _are_regular(_by_layer(modules), layers):
        return []
    if missing := sorted(_like(modules, _modules_of(base.parent)) - modules):
        problems.append(f"lacks {_some(missing)}, of which other layers have theirs: write the adapter again")
    return problems


def _is_regular(config: dict, tensors: dict[str, StoredTensor]) -> bool:
    """Whether there are an embedding, a norm and a head, and of every layer the same tensors."""
    outside: list[tuple] = [tensor.shape for name, tensor in tensors.items() if not LAYER.match(name)]
    heads = outside.count((config.get("vocab_size"), config.get("hidden_size")))
    is_tied = config.get("tie_word_embeddings") is True
    return (
        heads in ((1, 2) if is_tied else (2,))
        and (config.get("hidden_size"),) in outside
        and _are_regular(_by_layer(tensors), _layers_of(config))
    )


def _layers_of(config: dict) -> int | None:
    layers = config.get("num_hidden_layers")
    return layers if isinstance(layers, int) else None


def _by_layer(names: Iterable[str]) -> dict[tuple[str, str], set[int]]:
    """Of each kind of name, the layers that have it."""
    layers: dict[tuple[str, str], set[int]] = defaultdict(set)
    for name in names:
        if found := LAYER.match(name):
            layers[found[1], found[3]].add(int(found[2]))
    return layers


def _are_regular(by_layer: dict[tuple[str, str], set[int]], layers: int | None) -> bool:
    return layers is not None and bool(by_layer) and all(each == set(range(layers)) for each in by_layer.values())


def _modules_of(base: Path) -> set[str]:
    """The modules of a base model; none where Transformers does not know it."""
    import torch

    from sft.models import internlm2

    internlm2.register_with_transformers()
    from transformers import AutoConfig, AutoModelForCausalLM

    try:
        with torch.device("meta"):
            config = AutoConfig.from_pretrained(base, trust_remote_code=False)
            model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    except Exception:  # as above
        return set()
    return {name for name, _ in model.named_modules()}


def _like(modules: set[str], others: set[str]) -> set[str]:
    """Of other modules, those that are in another layer what one of these is."""
    kinds = _by_layer(modules).keys()
    return {name for name in others if (found := LAYER.match(name)) and (found[1], found[3]) in kinds}


def _some(names: list[str]) -> str:
    more = f" and {counted(len(names) - 1, 'other')}" if len(names) > 1 else ""
    return names[0] + more
