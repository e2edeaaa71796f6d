"""Tells which tensors of a model's files make which of its parameters, and turns the ones into the others.

In: a model on the meta device and the names its files hold. The rules are Transformers' own, those of `from_pretrained`
and `save_pretrained`, applied to a few tensors at a time.
"""

from collections import defaultdict
from copy import deepcopy

import torch
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    WeightConverter,
    WeightRenaming,
    dot_natural_key,
    rename_source_key,
    revert_weight_conversion,
)


class Layout:
    """How the files of one folder are laid out; `groups` maps stored names that belong together to parameters.

    `sources` maps each parameter to the stored names it is made of, `renamed` each stored tensor that is a parameter as
    it stands to that one's name. A stored tensor that the model has no use for is in no group.
    """

    def __init__(self, model: PreTrainedModel, stored: dict[str, torch.Tensor]):
        """`stored` holds meta tensors by the names of the files."""
        self._model, self._parameters = model, model.state_dict()
        transforms = get_model_conversion_mapping(model)
        self._renamings = [transform for transform in transforms if isinstance(transform, WeightRenaming)]
        self._converters = [transform for transform in transforms if isinstance(transform, WeightConverter)]
        together, converted = defaultdict(list), set()
        for name in stored:
            target, pattern = self._target(name)
            if target:
                together[target].append(name)
            if pattern:
                converted.add(name)
        # What `save_pretrained` would undo is what loading has used.
        model._weight_conversions = [transform for transform in transforms if transform.was_used()]
        self.groups: dict[tuple[str, ...], tuple[str, ...]] = {}
        for names in together.values():
            self.groups[tuple(names)] = tuple(self.to_parameters({name: stored[name] for name in names}))
        self.sources = {made: names for names, all_made in self.groups.items() for made in all_made}
        alone = {names[0]: made[0] for names, made in self.groups.items() if len(names) == len(made) == 1}
        self.renamed = {name: made for name, made in alone.items() if name not in converted}

    def to_parameters(self, stored: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The parameters that whole groups of stored tensors come to."""
        transforms = {}
        for name, tensor in sorted(stored.items(), key=lambda item: dot_natural_key(item[0])):
            target, pattern = self._target(name)
            if target not in transforms:
                transforms[target] = self._converter(pattern) if pattern else WeightRenaming(name, target)
            transforms[target].add_tensor(target, name, pattern or name, tensor)
        parameters: dict[str, torch.Tensor] = {}
        for target, transform in transforms.items():
            parameters |= transform.convert(target, model=self._model, config=self._model.config)
        return {name: value[0] if isinstance(value, list) else value for name, value in parameters.items()}

    def to_stored(self, parameters: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The tensors, under the names of the files, that parameters of whole groups come from."""
        plain = {made[0]: names[0] for names, made in self.groups.items() if len(names) == len(made) == 1}
        stored = {plain[name]: value for name, value in parameters.items() if name in plain}
        converted = {name: value for name, value in parameters.items() if name not in plain}
        return stored | self._as_in_files(revert_weight_conversion(self._model, converted))

    def _as_in_files(self, stored: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Take the base model's prefix off where the files have none: `save_pretrained` always writes it."""
        in_files = {name for names in self.groups for name in names}
        prefix = f"{self._model.base_model_prefix}."
        return {
            name.removeprefix(prefix) if name not in in_files and name.removeprefix(prefix) in in_files else name: value
            for name, value in stored.items()
        }

    def _target(self, name: str) -> tuple[str | None, str | None]:
        """The (first) parameter a stored tensor goes into, and the pattern of the converter it needs, if any."""
        prefix = self._model.base_model_prefix
        target, pattern = rename_source_key(name, self._renamings, self._converters, prefix, self._parameters)
        if target not in self._parameters and name in self._parameters:
            target, pattern = name, None
        return (target, pattern) if target in self._parameters else (None, None)

    def _converter(self, pattern: str) -> WeightConverter:
        return deepcopy(next(converter for converter in self._converters if pattern in converter.source_patterns))
