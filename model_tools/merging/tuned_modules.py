"""The modules that adapters change; merges the weights it is handed, module by module.

In: a model on the meta device and adapter folders. Out: what PEFT's own merge makes of each module's weights. The model
is made hollow: its weights have a shape and no memory. Knows nothing about files of weights.
"""

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import transformers
from peft import PeftConfig, PeftModel, get_peft_model_state_dict, set_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import load_peft_weights
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from sft.core.errors import UserError
from sft.core.text import one_line_message

# What every weight of a hollow model is a view of. Unlike on the meta device, PEFT leaves an adapter's weights whole.
_NOTHING = torch.zeros(())


@dataclass(frozen=True)
class Adapter:
    """An adapter folder and how strongly it counts; 1 is as it was trained."""

    folder: Path
    weight: float = 1.0

    @property
    def config(self) -> PeftConfig:
        """PEFT's configuration, read anew each time: PEFT writes into the one it is given."""
        return PeftConfig.from_pretrained(str(self.folder))


def without_weights(config: PreTrainedConfig, adapters: list[Adapter]) -> PreTrainedModel:
    """The model the adapters were trained on, on the meta device: its class is theirs, or the config's.

    Raises:
        UserError: Transformers has no such class.
    """
    trained = adapters[0].config if adapters else PeftConfig(task_type="CAUSAL_LM")
    named = (trained.auto_mapping or {}).get("base_model_class") or next(iter(config.architectures or []), "")
    with torch.device("meta"):
        if trained.task_type == "CAUSAL_LM" and type(config) in AutoModelForCausalLM._model_mapping:
            return AutoModelForCausalLM.from_config(config)
        if not hasattr(transformers, named):
            raise UserError(
                f"{named or type(config).__name__}: Transformers has no such model: merge it with PEFT itself"
            )
        return getattr(transformers, named)._from_config(config)


class TunedModules:
    """`parameters` maps each module that changes to the parameters of the base model it needs.

    Raises:
        UserError: an adapter does not fit the model, or the adapters cannot be merged together.
    """

    def __init__(self, model: PreTrainedModel, adapters: list[Adapter]):
        """`model` is on the meta device; it is made hollow, and PEFT's modules take the place of those that change."""
        _hollow(model)
        _refuse_what_cannot_merge(adapters)
        peft_model = with_adapters(model, adapters)
        self._names = list(peft_model.peft_config) if adapters else []
        self._model = peft_model.base_model.model if adapters else model
        self._modules = dict(self._find())
        self.parameters = {
            name: tuple(f"{name}.{leaf}" for leaf in _original(module).state_dict())
            for name, module in self._modules.items()
        }

    @torch.no_grad()
    def merge(self, name: str, parameters: dict[str, torch.Tensor], device: str) -> dict[str, torch.Tensor]:
        """The merged parameters of one module; what it held of the adapters is given back to the memory.

        `parameters` are those the module needs, in float32.
        """
        module = self._modules.pop(name)
        original = _original(module)
        for full, value in parameters.items():
            owner, _, leaf = full.removeprefix(f"{name}.").rpartition(".")
            holder = original.get_submodule(owner)
            # An adapter can bring the base's embedding along; that is the one it was trained on.
            if _is_hollow(holder._parameters[leaf]):
                holder._parameters[leaf] = torch.nn.Parameter(value, requires_grad=False)
        merged = self._merged(module.to(device=device, dtype=torch.float32))
        result = {f"{name}.{leaf}": value for leaf, value in merged.state_dict().items()}
        module.to("meta")
        return result

    def _merged(self, module: torch.nn.Module) -> torch.nn.Module:
        if hasattr(module, "unload_and_optionally_merge_module"):
            return module.unload_and_optionally_merge_module(merge=True, safe_merge=False, adapter_names=self._names)
        if isinstance(module, BaseTunerLayer):
            module.merge(adapter_names=self._names)
            return module.get_base_layer()
        return module

    def _find(self) -> Iterator[tuple[str, torch.nn.Module]]:
        """Yield (name in the base model, module) of every module that adapters change or bring along."""
        inside: tuple[str, ...] = ()
        for name, module in self._model.named_modules():
            if inside and name.startswith(inside):
                continue
            is_tuned = hasattr(module, "base_layer") or hasattr(module, "unload_and_optionally_merge_module")
            brings = any(not _is_hollow(parameter) for parameter in module.parameters(recurse=False))
            if is_tuned or brings:
                yield name, module
                inside += (f"{name}.",)


def _hollow(model: PreTrainedModel) -> None:
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                module._parameters[name] = torch.nn.Parameter(_NOTHING.expand(parameter.shape), requires_grad=False)


def _is_hollow(parameter: torch.nn.Parameter | None) -> bool:
    return parameter is not None and parameter.data_ptr() == _NOTHING.data_ptr()


def with_adapters(model: PreTrainedModel, adapters: list[Adapter]) -> PeftModel | PreTrainedModel:
    """The model with all adapters on it and active, each as strong as its weight says; without any, as it is.

    Raises:
        UserError: an adapter does not fit the model.
    """
    if not adapters:
        return model
    peft_model: PeftModel | None = None
    with warnings.catch_warnings():
        # PEFT warns of tied embeddings, which are looked after by whoever writes the weights.
        warnings.simplefilter("ignore")
        for number, adapter in enumerate(adapters):
            name = f"adapter{number}"
            try:
                if peft_model is None:
                    peft_model = PeftModel(model, adapter.config, name, low_cpu_mem_usage=True)
                else:
                    peft_model.add_adapter(name, adapter.config, low_cpu_mem_usage=True)
                _load(peft_model, adapter, name)
            except (ValueError, RuntimeError) as problem:
                reason = one_line_message(problem, 300)
                raise UserError(f"{adapter.folder}: does not fit the base model ({reason}): give its own") from None
    assert peft_model is not None, "there is at least one adapter"
    if len(adapters) > 1:
        peft_model.base_model.set_adapter(list(peft_model.peft_config))
    layers = [module for module in peft_model.modules() if isinstance(module, LoraLayer)]
    for name, adapter in zip(peft_model.peft_config, adapters, strict=True):
        for layer in layers:
            if name in layer.scaling:
                layer.scaling[name] *= adapter.weight
    return peft_model


def _load(peft_model: PeftModel, adapter: Adapter, name: str) -> None:
    """Load an adapter in float32; every tensor must find its place, and every place its tensor.

    PEFT itself passes over tensors that no module takes, and leaves at zero what no tensor fills.
    """
    stored = load_peft_weights(str(adapter.folder), device="cpu")
    expected = get_peft_model_state_dict(peft_model, adapter_name=name, save_embedding_layers=False).keys()
    # The base's own embedding, which PEFT saves with an adapter that changes it.
    own = {f"base_model.model.{parameter}" for parameter in peft_model.base_model.model.state_dict()}
    if homeless := stored.keys() - expected - own:
        fused = " (InternLM2's fused names; model_tools export-adapter splits them)" if "wqkv" in min(homeless) else ""
        raise UserError(f"{adapter.folder}: {min(homeless)} has no place in the base model{fused}: give its own")
    if missing := expected - stored.keys():
        raise UserError(f"{adapter.folder}: lacks {min(missing)}, which its config asks for: write the adapter again")
    weights = {key: value.float() for key, value in stored.items()}
    set_peft_model_state_dict(peft_model, weights, adapter_name=name, low_cpu_mem_usage=True)


def _refuse_what_cannot_merge(adapters: list[Adapter]) -> None:
    for adapter in adapters:
        config = adapter.config
        if getattr(config, "target_parameters", None):
            raise UserError(f"{adapter.folder}: adapts bare parameters (target_parameters): merge it with PEFT itself")
        is_sum = len(adapters) > 1 or adapter.weight != 1
        whole = getattr(config, "modules_to_save", None) or getattr(config, "trainable_token_indices", None)
        is_plain = config.peft_type == "LORA" and not getattr(config, "use_dora", False) and not whole
        if is_sum and not is_plain:
            raise UserError(f"{adapter.folder}: only plain LoRA can be weighted or added to another adapter")


def _original(module: torch.nn.Module) -> torch.nn.Module:
    """The base model's own module inside what PEFT made of it."""
    if isinstance(module, BaseTunerLayer):
        return module.get_base_layer()
    if hasattr(module, "token_adapter"):
        return module.token_adapter.get_base_layer()
    return getattr(module, "original_module", module)
