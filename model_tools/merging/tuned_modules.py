"""The modules that adapters change; merges the weights it is handed, module by module.

In: a model on the meta device and adapter folders. Out: what PEFT's own merge makes of each module's weights. The model
is made hollow: its weights have a shape and no memory. Knows nothing about files of weights.
"""

import warnings
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass

import torch
import transformers
from peft import PeftConfig, PeftModel
from peft.tuners.lora import Linear as LoraLinear
from peft.tuners.lora import LoraLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from transformers import AutoModel, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from model_tools.checkpoints.trained_adapter import UNEXPECTED
from model_tools.merging.adapter import Adapter
from model_tools.merging.adapter_loading import load_adapter, what_to_do
from model_tools.merging.mergeable import TOGETHER, refuse_unmergeable
from sft.core.errors import UserError
from sft.core.text import one_line_message

# What every weight of a hollow model is a view of. Unlike on the meta device, PEFT leaves an adapter's weights whole.
_NOTHING = torch.zeros(())


def without_weights(config: PreTrainedConfig, adapters: list[Adapter]) -> PreTrainedModel:
    """The model the adapters were trained on, on the meta device: its class is theirs, or the config's.

    Raises:
        UserError: an adapter is of a kind that cannot be merged, or Transformers has no such class.
    """
    refuse_unmergeable(adapters)
    trained = adapters[0].config if adapters else PeftConfig(task_type="CAUSAL_LM")
    named = (trained.auto_mapping or {}).get("base_model_class") or next(iter(config.architectures or []), "")
    kind, writers = type(config), AutoModelForCausalLM._model_mapping
    with torch.device("meta"):
        if trained.task_type == "FEATURE_EXTRACTION" and kind in AutoModel._model_mapping:
            return AutoModel.from_config(config)
        # A class that is not of Transformers' own, such as InternLM2's, is known by its name here alone.
        if kind in writers and (trained.task_type == "CAUSAL_LM" or named == getattr(writers[kind], "__name__", None)):
            return AutoModelForCausalLM.from_config(config)
        if not hasattr(transformers, named):
            raise UserError(
                f"{named or type(config).__name__}: Transformers has no such model: merge it with PEFT itself"
            )
        return getattr(transformers, named)._from_config(config)


@dataclass(frozen=True)
class PlainLora:
    """What the plainest LoRA adds to a weight `(out, in)`: `scale` times `left @ right`, `(out, r)` and `(r, in)`."""

    left: torch.Tensor
    right: torch.Tensor
    scale: float


class TunedModules:
    """`parameters` maps each module that changes to the parameters of the base model it needs.

    `following` are those of them that change only as the parameter does that they are tied to.

    Raises:
        UserError: an adapter does not fit the model, or PEFT cannot merge it.
    """

    def __init__(self, model: PreTrainedModel, adapters: list[Adapter]):
        """`model` is on the meta device; it is made hollow, and PEFT's modules take the place of those that change."""
        _hollow(model)
        own = model.state_dict()
        peft_model = with_adapters(model, adapters)
        self._names = list(peft_model.peft_config) if adapters else []
        self._model = peft_model.base_model.model if adapters else model
        self._folders = " ".join(str(each.folder) for each in adapters)
        self._modules = dict(self._find())
        self._refuse_what_is_changed_twice()
        if adapters and not self._modules:
            raise UserError(f"{self._folders}: changes no weights of the base: there is nothing to merge")
        self.parameters = {
            name: tuple(parameter for parameter in own if parameter.startswith(f"{name}.")) for name in self._modules
        }
        self.following = {
            parameter
            for name, module in self._modules.items()
            if getattr(getattr(module, "token_adapter", None), "tied_adapter", None)
            for parameter in self.parameters[name]
        }
        self._try_each_kind(own)

    @torch.no_grad()
    def merge(self, name: str, parameters: dict[str, torch.Tensor], device: str) -> dict[str, torch.Tensor]:
        """The merged parameters of one module; what it held of the adapters is given back to the memory.

        `parameters` are those the module needs, in float32.

        Raises:
            UserError: PEFT cannot merge it.
        """
        module = self._take(name)
        _fill(module, {full.removeprefix(f"{name}."): value for full, value in parameters.items()})
        merged = self._merged(name, module, device)
        return {f"{name}.{leaf}": value for leaf, value in merged.state_dict().items()}

    def take_plain(self, name: str) -> PlainLora | None:
        """What one module's only adapter adds to its weight and to nothing else; None if it is not as plain as that.

        Like `merge`, it gives what the module held of the adapter away.
        """
        module = self._modules[name]
        if type(module) is not LoraLinear or type(module.base_layer) is not torch.nn.Linear or len(self._names) > 1:
            return None
        (adapter,), bias = self._names, module.base_layer.bias
        brings = not _is_hollow(module.base_layer.weight) or (bias is not None and not _is_hollow(bias))
        if brings or module.lora_variant or module.lora_bias[adapter] or module.fan_in_fan_out:
            return None
        self._take(name)
        left, right = (factor[adapter].weight.detach().float() for factor in (module.lora_B, module.lora_A))
        return PlainLora(left, right, module.scaling[adapter])

    def _take(self, name: str) -> torch.nn.Module:
        self._model.set_submodule(name, torch.nn.Identity())
        return self._modules.pop(name)

    def _merged(self, name: str, module: torch.nn.Module, device: str) -> torch.nn.Module:
        try:
            module = module.to(device=device, dtype=torch.float32)
            if hasattr(module, "unload_and_optionally_merge_module"):
                return module.unload_and_optionally_merge_module(
                    merge=True, safe_merge=False, adapter_names=self._names
                )
            if isinstance(module, BaseTunerLayer):
                module.merge(adapter_names=self._names)
                return module.get_base_layer()
        except torch.OutOfMemoryError:
            raise
        except UNEXPECTED as problem:
            reason = one_line_message(problem, 200)
            raise UserError(f"{self._folders}: PEFT cannot merge {name} ({reason}): {TOGETHER}") from None
        return module

    @torch.no_grad()
    def _try_each_kind(self, own: dict[str, torch.Tensor]) -> None:
        """Merge a copy of the smallest module of each kind: PEFT says only then that it cannot.

        `own` are the base's parameters by name, of which the shapes count.
        """
        smallest: dict[tuple, tuple[int, str]] = {}
        for name, module in self._modules.items():
            original = _original(module)
            kind = (type(module), type(original), *original.state_dict())
            size = sum(parameter.numel() for parameter in original.parameters())
            smallest[kind] = min((size, name), smallest.get(kind, (size, name)))
        for _, name in smallest.values():
            trial = deepcopy(self._modules[name])
            _hollow(_original(trial))
            zeros = {each: torch.zeros(own[each].shape) for each in self.parameters[name]}
            _fill(trial, {each.removeprefix(f"{name}."): value for each, value in zeros.items()})
            self._merged(name, trial, "cpu")

    def _refuse_what_is_changed_twice(self) -> None:
        for name, module in self._modules.items():
            if isinstance(_original(module), BaseTunerLayer | AuxiliaryTrainingWrapper):
                raise UserError(
                    f"{self._folders}: changes {name} in two ways at once (whole, by LoRA, or some tokens, which are "
                    "those of a tied one too), and PEFT cannot merge both: train it in one of them"
                )

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


def _fill(module: torch.nn.Module, values: dict[str, torch.Tensor]) -> None:
    """Put the base's values where what PEFT made of a module is hollow, buffers that are in its files included."""
    original = _original(module)
    for name, value in values.items():
        owner, _, leaf = name.rpartition(".")
        # PEFT's module of an attention has one of its own inside.
        holder = _original(original.get_submodule(owner))
        # An adapter can bring the base's embedding along; that is the one it was trained on.
        if _is_hollow(holder._parameters.get(leaf)):
            holder._parameters[leaf] = torch.nn.Parameter(value, requires_grad=False)
        elif leaf in holder._buffers:
            holder._buffers[leaf] = value
    for each in module.modules():
        for leaf in each._non_persistent_buffers_set:
            # Such as the scale of Gemma's embeddings, in PEFT's copy of one too: of use in a model that runs alone.
            if (buffer := each._buffers[leaf]) is not None and buffer.is_meta:
                each._buffers[leaf] = torch.zeros_like(buffer, device="cpu")


def _hollow(model: torch.nn.Module) -> None:
    """Replace all parameters; those that are one stay one, by which PEFT knows that they are tied."""
    hollow: dict[torch.nn.Parameter, torch.nn.Parameter] = {}
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                new = torch.nn.Parameter(_NOTHING.expand(parameter.shape), requires_grad=False)
                module._parameters[name] = hollow.setdefault(parameter, new)


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
                config = adapter.config
                # AdaLoRA looks into its weights for the ranks that were allotted, and cannot where they are empty.
                is_empty = config.peft_type != "ADALORA"
                if peft_model is None:
                    peft_model = PeftModel(model, config, name, low_cpu_mem_usage=is_empty)
                else:
                    peft_model.add_adapter(name, config, low_cpu_mem_usage=is_empty)
                load_adapter(peft_model, adapter, name, is_sum=len(adapters) > 1 or adapter.weight != 1)
            except UNEXPECTED as problem:
                reason, advice = one_line_message(problem, 300), what_to_do(adapter.tensors())
                raise UserError(f"{adapter.folder}: does not fit the base model ({reason}): {advice}") from None
    assert peft_model is not None, "there is at least one adapter"
    if len(adapters) > 1:
        peft_model.base_model.set_adapter(list(peft_model.peft_config))
    layers = [module for module in peft_model.modules() if isinstance(module, LoraLayer)]
    for name, adapter in zip(peft_model.peft_config, adapters, strict=True):
        for layer in layers:
            if name in layer.scaling:
                layer.scaling[name] *= adapter.weight
    return peft_model


def _original(module: torch.nn.Module) -> torch.nn.Module:
    """The base model's own module inside what PEFT made of it."""
    if isinstance(module, BaseTunerLayer):
        return module.get_base_layer()
    if hasattr(module, "token_adapter"):
        return module.token_adapter.get_base_layer()
    return getattr(module, "original_module", module)
