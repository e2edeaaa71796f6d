"""What a folder's weight files hold as their headers tell, and what of it is missing or cut short; reads no weights.

In: a folder. Out: names, types and shapes, and a list of everything that is wrong. Unlike
`sft.models.weight_files`, which a model is read with, it goes on after the first thing that is wrong.
"""

import json
import math
from dataclasses import dataclass, field
from pathlib import Path

import torch
from huggingface_hub import parse_local_safetensors_file_metadata
from huggingface_hub.errors import SafetensorsParsingError

from model_tools.checkpoints import restricted_pickle
from sft.core.errors import UserError
from sft.models.weight_files import DTYPES, LENGTH_BYTES

AGAIN = "copy or download it again"
# Numbers that a quantised weight is multiplied with or looked up in; the packed weight itself is counted.
PARTS_OF_QUANTISED = (
    ".absmax", ".quant_map", ".nested_absmax", ".nested_quant_map", ".SCB", ".weight_format", ".qzeros", ".scales",
    ".g_idx", ".weight_scale", ".weight_scale_inv", ".input_scale",
)  # fmt: skip
PACKED_4_BIT = ".quant_state.bitsandbytes__"


@dataclass(frozen=True)
class Held:
    """One tensor as its file's header describes it."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def elements(self) -> int:
        return math.prod(self.shape)


@dataclass
class Inventory:
    """All tensors of a folder by name, how many files they lie in, and what is wrong, a sentence each."""

    tensors: dict[str, Held] = field(default_factory=dict)
    files: int = 0
    problems: list[str] = field(default_factory=list)

    def parameters(self, bits: int | None = None) -> int:
        """How many weights there are; `bits` is how many each takes, where several are packed into an integer."""
        return sum(
            held.elements * self._packed(name, held, bits)
            for name, held in self.tensors.items()
            if not name.endswith(PARTS_OF_QUANTISED) and PACKED_4_BIT not in name
        )

    def dtypes(self) -> str:
        """The types of the tensors, the one that most of them are of first."""
        counts: dict[str, int] = {}
        for held in self.tensors.values():
            counts[held.dtype] = counts.get(held.dtype, 0) + held.elements
        return ", ".join(sorted(counts, key=counts.get, reverse=True)) or "unknown"

    def _packed(self, name: str, held: Held, bits: int | None) -> int:
        if any(name + PACKED_4_BIT + kind in self.tensors for kind in ("nf4", "fp4")):
            return 2
        return 32 // bits if bits and name.endswith(".qweight") and held.dtype == "int32" else 1


def take_inventory(folder: Path, names: tuple[str, ...]) -> Inventory:
    """The inventory of the first of these files that is there: weights, or an index of files of weights."""
    found = Inventory()
    first = next((folder / name for name in names if (folder / name).is_file()), None)
    if first is None:
        found.problems.append(f"{folder}: holds no weights (looked for {', '.join(names)})")
        return found
    for file, expected in _shards(first, found.problems).items():
        if not file.is_file():
            found.problems.append(f"{file.name}: is missing, and {first.name} names it: {AGAIN}")
            continue
        found.files += 1
        try:
            held = _pickled(file) if file.suffix == ".bin" else _safetensors(file, found.problems)
        except UserError as problem:
            found.problems.append(str(problem))
            continue
        if lacking := sorted(expected - held.keys()):
            more = f" and {len(lacking) - 1} more" if len(lacking) > 1 else ""
            found.problems.append(f"{file.name}: lacks {lacking[0]}{more}, which {first.name} names: {AGAIN}")
        found.tensors |= held
    return found


def _shards(first: Path, problems: list[str]) -> dict[Path, set[str]]:
    """Each file, and the tensors that the index, if there is one, says it holds."""
    if first.suffix != ".json":
        return {first: set()}
    shards: dict[Path, set[str]] = {}
    try:
        for tensor, name in json.loads(first.read_text(encoding="utf-8"))["weight_map"].items():
            # A name and not a path: an index cannot point out of its folder.
            shards.setdefault(first.parent / Path(name).name, set()).add(tensor)
    except (ValueError, KeyError, TypeError, AttributeError, OSError) as problem:
        problems.append(f"{first.name}: is no index of weight files ({problem}): {AGAIN}")
    return shards


def _safetensors(file: Path, problems: list[str]) -> dict[str, Held]:
    """The tensors of a file; what of it does not fit together is added to the problems."""
    try:
        tensors = parse_local_safetensors_file_metadata(file).tensors
        with open(file, "rb") as opened:
            start = LENGTH_BYTES + int.from_bytes(opened.read(LENGTH_BYTES), "little")
    except (SafetensorsParsingError, ValueError, OSError) as problem:
        raise UserError(f"{file.name}: has no header that can be read ({str(problem)[:100]}): {AGAIN}") from None
    end = start + max((tensor.data_offsets[1] for tensor in tensors.values()), default=0)
    if (size := file.stat().st_size) != end:
        problems.append(f"{file.name}: is {size:,} bytes long, and its header says {end:,}: {AGAIN}")
    held = {}
    for name, tensor in tensors.items():
        dtype = DTYPES.get(tensor.dtype)
        held[name] = Held(_name(dtype) if dtype else tensor.dtype, tuple(tensor.shape))
        if dtype and tensor.data_offsets[1] - tensor.data_offsets[0] != held[name].elements * dtype.itemsize:
            problems.append(f"{file.name}: gives {name} more or fewer bytes than its shape takes: {AGAIN}")
    return held


def _pickled(file: Path) -> dict[str, Held]:
    content = restricted_pickle.load_data(file)
    return of_tensors(content) if isinstance(content, dict) else {}


def of_tensors(content: dict) -> dict[str, Held]:
    """The tensors among the values of a dict, which may be mapped and are not read."""
    return {
        name: Held(_name(value.dtype), tuple(value.shape))
        for name, value in content.items()
        if isinstance(value, torch.Tensor)
    }


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
