"""Merges adapters into the weights of a base model, a few tensors at a time, and writes the result.

In: the base's files and the adapters' modules. Out: new weight files. The largest thing ever in memory is one layer,
whatever the model's size. Arithmetic is in float32 and rounded once.
"""

import ctypes
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

import torch
from tqdm import tqdm
from transformers import PreTrainedModel

from model_tools.merging.adapter import Adapter
from model_tools.merging.layout import Layout
from model_tools.merging.tuned_modules import PlainLora, TunedModules
from model_tools.merging.weight_writer import WeightWriter
from sft.core.errors import UserError
from sft.models.weight_files import WeightFiles, meta_tensors

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h
MERGED_AT_ONCE = 1 << 18  # numbers, few enough to stay in the processor's cache from their reading to their rounding
GIVEN_BACK, KEPT_FREE = 1 << 22, 1 << 25  # bytes: more than a part of a tensor takes, and what the parts in use take
Tensors = dict[str, torch.Tensor]
Part = bytes | memoryview


@dataclass(frozen=True)
class MergeUnit:
    """Stored tensors that are read together, and the modules they come to that adapters change, if any."""

    stored: tuple[str, ...]
    modules: tuple[str, ...]


class MergedWeights:
    """The weights of base and adapters as they will be written; `shapes` are meta tensors by name.

    `dtype` None keeps each tensor's own. `as_parameters` writes them under the names of the model's parameters and not
    under those of the base's files.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        files: WeightFiles,
        adapters: list[Adapter],
        dtype: torch.dtype | None,
        as_parameters: bool = False,
    ):
        self._files, self._as_parameters = files, as_parameters
        meta = meta_tensors(files.tensors, dtype)
        self._layout = Layout(model, meta)
        # From here on the model's modules are PEFT's, under other names.
        self._tuned = TunedModules(model, adapters)
        self._home = self._layout.sources
        self._product = torch.empty(0)
        ties = [self._tie(*pair) for pair in model.all_tied_weights_keys.items()]
        # A parameter tied to another is usually in no file; it is read from where the other lies.
        self._source = {name: name for name in self._home} | {
            tied: source for tied, source in ties if tied not in self._home
        }
        self._refuse_what_is_not_stored(model)
        self.untied = self._untied(ties)
        # One flag stands for all ties of a model: where it is taken back, none that no file holds may be left to it.
        left_out = self._home.keys() | self._tuned.following
        self._added = tuple(tied for tied, _ in ties if self.untied and tied not in left_out)
        self.units = self._units()
        # What no parameter is made of has a name in the base's layout alone.
        known = {name: meta[name] for names in self._layout.groups for name in names}
        made = self._layout.to_parameters(known) if as_parameters else meta
        self.shapes = made | self._named({name: self._like(name, meta) for name in self._added})

    def write(self, folder: Path, max_shard_size: str, device: str) -> None:
        """Write all weight files into a folder.

        Raises:
            UserError: a merged value does not fit the type it is rounded to, or an adapter holds NaN.
        """
        _give_freed_memory_back()
        with WeightWriter(folder, self.shapes, max_shard_size) as writer:
            units = tqdm(self.units, desc="merging", unit="layer", disable=None)
            for unit, following in zip_longest(units, self.units[1:]):
                for name in following.stored if following else ():
                    self._files.read_ahead(name)
                for name, content in self._contents(unit, device):
                    writer.write(name, content)

    def _contents(self, unit: MergeUnit, device: str) -> Iterator[tuple[str, torch.Tensor | Iterable[Part]]]:
        if plain := self._plain(unit, device):
            weight, added = plain
            yield self._name(weight), self._plainly_merged(weight, added)
            unit = MergeUnit(tuple(name for name in unit.stored if name != weight), ())
        if unit.modules:
            yield from self._merged(unit, device).items()
        elif self._as_parameters:
            stored = {name: self._files.read(name) for name in unit.stored if unit.stored in self._layout.groups}
            for name, value in self._layout.to_parameters(stored).items():
                yield name, _rounded(name, value, self.shapes[name].dtype)
        else:
            for name in unit.stored:
                wanted = self.shapes[name].dtype
                is_same = wanted == self._files.tensors[name].dtype
                yield name, self._files.chunks(name) if is_same else _rounded(name, self._files.read(name), wanted)

    def _plain(self, unit: MergeUnit, device: str) -> tuple[str, PlainLora] | None:
        """The one stored tensor of a unit that changes, and what plain LoRA adds to it; None where there is more to do.

        Other tensors of the unit, such as a bias, stay as they are.
        """
        if device != "cpu" or len(unit.modules) != 1:
            return None
        renamed, changed = self._layout.renamed, f"{unit.modules[0]}.weight"
        weight = next((name for name in unit.stored if renamed.get(name) == changed), None)
        is_shared = changed in map(self._source.get, self._added)
        if weight is None or is_shared or not renamed.keys() >= set(unit.stored):
            return None
        added = self._tuned.take_plain(unit.modules[0])
        return (weight, added) if added else None

    def _plainly_merged(self, name: str, added: PlainLora) -> Iterator[Part]:
        """The bytes of what PEFT's merge makes of a weight, to the last bit, part by part.

        With a whole weight each step would take new memory, which costs more time than the arithmetic. Only the product
        is computed whole: of a part of it the sums could be added up in another order.
        """
        stored, wanted = self._files.tensors[name], self.shapes[self._name(name)].dtype
        if len(self._product) < stored.elements:
            self._product = torch.empty(stored.elements)
        product = self._product[: stored.elements]
        torch.mm(added.left, added.right, out=product.view(stored.shape))
        first = 0
        for delta in product.split(MERGED_AT_ONCE):
            part = torch.empty(len(delta), dtype=stored.dtype)
            self._files.read_part(name, first, part)
            first += len(delta)
            merged = part.float().add_(delta.mul_(added.scale))
            yield _rounded(name, merged, wanted).view(torch.uint8).numpy().data

    def _name(self, stored: str) -> str:
        """What a stored tensor that is a parameter as it stands is called where it is written."""
        return self._layout.renamed[stored] if self._as_parameters else stored

    def _merged(self, unit: MergeUnit, device: str) -> Tensors:
        """Every tensor of one unit as it is to be stored, merged in float32 and rounded."""
        stored = {name: self._files.read(name).to(device=device, dtype=torch.float32) for name in unit.stored}
        base = self._layout.to_parameters(stored)
        changed = dict(base)
        for module in unit.modules:
            needed = {name: base[self._source[name]] for name in self._tuned.parameters[module]}
            if len(self._source) > len(self._home):
                # PEFT merges in place, and another parameter may be made of the same weights.
                needed = {name: value.clone() for name, value in needed.items()}
            changed |= self._tuned.merge(module, needed, device)
        for name in self._added:
            if self._source[name] in base:
                changed.setdefault(name, base[self._source[name]])
        own = {name: value for name, value in changed.items() if name in self._home or name in self._added}
        return {name: _rounded(name, value, self.shapes[name].dtype) for name, value in self._named(own).items()}

    def _named(self, parameters: Tensors) -> Tensors:
        return parameters if self._as_parameters else self._layout.to_stored(parameters)

    def _like(self, parameter: str, meta: Tensors) -> torch.Tensor:
        """The meta tensor of the parameter that another one is tied to."""
        source = self._source[parameter]
        group = self._home[source]
        return self._layout.to_parameters({name: meta[name] for name in group})[source]

    def _tie(self, tied: str, source: str) -> tuple[str, str]:
        """Two parameters that are tied, the one that is in a file last: files can hold either."""
        return (source, tied) if tied in self._home and source not in self._home else (tied, source)

    def _untied(self, ties: list[tuple[str, str]]) -> tuple[str, ...]:
        """Parameters that share their weights with another in the base, and no longer do.

        An adapter that changes one of the two, or each in its way, would else change the other too.
        """
        changed = {name for names in self._tuned.parameters.values() for name in names}
        return tuple(
            tied
            for tied, source in ties
            if (tied in changed or source in changed) and not {tied, source} & self._tuned.following
        )

    def _units(self) -> list[MergeUnit]:
        """All stored tensors, in their order, joined where one module needs several of them."""
        joined = {name: name for name in self._files.tensors}

        def first(name: str) -> str:
            while joined[name] != name:
                name = joined[name]
            return name

        def join(names) -> None:
            for other in names[1:]:
                joined[first(other)] = first(names[0])

        for names in self._layout.groups:
            join(names)
        modules: dict[str, list[str]] = defaultdict(list)
        for module, parameters in self._tuned.parameters.items():
            needed = [name for parameter in parameters for name in self._home[self._source[parameter]]]
            join(needed)
            modules[needed[0]].append(module)
        members: dict[str, list[str]] = defaultdict(list)
        changed: dict[str, list[str]] = defaultdict(list)
        for name in self._files.tensors:
            members[first(name)].append(name)
            changed[first(name)] += modules[name]
        return [MergeUnit(tuple(names), tuple(changed[root])) for root, names in members.items()]

    def _refuse_what_is_not_stored(self, model: PreTrainedModel) -> None:
        needed = {name for names in self._tuned.parameters.values() for name in names}
        if missing := needed - self._source.keys():
            raise UserError(
                f"{self._files.folder}: holds no weights for {min(missing)} of {type(model).__name__}, which the "
                "adapter changes: give the base model it was trained on"
            )


def _give_freed_memory_back() -> None:
    """Let large blocks return to the system when they are freed; glibc would keep as much as the whole model.

    Small ones it keeps for the next part: new memory costs more time than what is computed in it.
    Source: mallopt(3), M_MMAP_THRESHOLD: the threshold grows with every block freed until a program sets it.
    """
    c_library = ctypes.CDLL(None)
    if hasattr(c_library, "mallopt"):
        c_library.mallopt(M_MMAP_THRESHOLD, GIVEN_BACK)
        c_library.mallopt(M_TRIM_THRESHOLD, KEPT_FREE)


def _rounded(name: str, value: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    rounded = value.to(device="cpu", dtype=dtype)
    extremes = torch.stack(torch.aminmax(value))
    if dtype.is_floating_point and not extremes.isfinite().all():
        raise UserError(f"{name}: is NaN or infinite in adapter or base: take an earlier checkpoint of the run")
    if dtype.is_floating_point and not extremes.to(dtype).isfinite().all():
        raise UserError(f"{name}: holds values that are NaN or infinite in {str(dtype)[6:]}: try --dtype bf16 or fp32")
    return rounded
