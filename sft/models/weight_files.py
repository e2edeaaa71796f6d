"""Reads the weights of a model folder tensor by tensor, as they lie on the disk; the model is never loaded.

In: a folder with safetensors or pickled weights, in one file or in shards. Out: names, types and shapes, what is
missing or cut short, and tensors, one at a time. Nothing in a file is run. Headers of safetensors are read without
torch, which takes seconds to import. Knows nothing about what the tensors mean.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from huggingface_hub import parse_local_safetensors_file_metadata
from huggingface_hub.errors import SafetensorsParsingError
from huggingface_hub.utils import TensorInfo
from safetensors import SafetensorError, safe_open

from sft.core.errors import UserError
from sft.core.text import one_line_message
from sft.models import restricted_pickle

if TYPE_CHECKING:
    import torch

# What Transformers looks for in a folder, in this order.
WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
# safetensors' names of types: torch's, and the bytes of one number.
DTYPES = {
    "F64": ("float64", 8), "F32": ("float32", 4), "F16": ("float16", 2), "BF16": ("bfloat16", 2),
    "F8_E4M3": ("float8_e4m3fn", 1), "F8_E5M2": ("float8_e5m2", 1), "I64": ("int64", 8), "I32": ("int32", 4),
    "I16": ("int16", 2), "I8": ("int8", 1), "U8": ("uint8", 1), "BOOL": ("bool", 1),
}  # fmt: skip
IN_SAFETENSORS = {torch_name: name for name, (torch_name, _) in DTYPES.items()}
BYTES = dict(DTYPES.values())
COPIED_AT_ONCE = 1 << 19
LENGTH_BYTES = 8  # of a safetensors header's length, which stands before it
SAMPLE = 4096
# What the hub's library raises of a damaged header, which it does not check: that it is an object is taken for granted.
UNREADABLE_HEADER = (
    SafetensorsParsingError, ValueError, OSError, TypeError, KeyError, AttributeError, RecursionError,
)  # fmt: skip
AGAIN = "copy or download it again"


@dataclass(frozen=True)
class StoredTensor:
    """One tensor on the disk; `start` is its first byte in a safetensors file, None in a pickled one.

    `dtype_name` is torch's name of its type, such as "bfloat16", or the file's own where torch has no such type.
    """

    file: Path
    dtype_name: str
    shape: tuple[int, ...]
    start: int | None = None

    @property
    def dtype(self) -> torch.dtype:
        """Its type, which torch knows for every tensor of `WeightFiles`."""
        import torch

        return getattr(torch, self.dtype_name)

    @property
    def elements(self) -> int:
        """How many numbers it holds."""
        return math.prod(self.shape)

    @property
    def bytes(self) -> int:
        """How many bytes it takes."""
        return self.elements * (BYTES.get(self.dtype_name) or self.dtype.itemsize)


@dataclass
class WeightHeaders:
    """All tensors of a folder by name, how many files they are in, and everything that is wrong, a sentence each."""

    tensors: dict[str, StoredTensor] = field(default_factory=dict)
    files: int = 0
    problems: list[str] = field(default_factory=list)


def read_headers(folder: Path, names: tuple[str, ...] = WEIGHTS) -> WeightHeaders:
    """What the headers of weight files say; `names` are files of weights or indexes of them, of which the first counts.

    It does not stop at the first problem, and of safetensors files it reads no weights.
    """
    headers = WeightHeaders()
    first = next((folder / name for name in names if (folder / name).is_file()), None)
    if first is None:
        headers.problems.append(f"{folder}: holds no weights (looked for {', '.join(names)}): {AGAIN}")
        return headers
    for file, expected in _shards(first, headers.problems).items():
        if not file.is_file():
            headers.problems.append(f"{file}: is missing, and {first.name} names it: {AGAIN}")
            continue
        headers.files += 1
        try:
            stored = _pickled(file) if file.suffix == ".bin" else _safetensors(file, headers.problems)
        except UserError as problem:
            headers.problems.append(str(problem))
            continue
        if lacking := sorted(expected - stored.keys()):
            more = f" and {len(lacking) - 1} more" if len(lacking) > 1 else ""
            headers.problems.append(f"{file}: lacks {lacking[0]}{more}, which {first.name} names: {AGAIN}")
        if twice := sorted(stored.keys() & headers.tensors.keys()):
            other = headers.tensors[twice[0]].file.name
            headers.problems.append(f"{file}: holds {twice[0]}, and so does {other}: {AGAIN}")
        headers.tensors |= stored
    if not headers.tensors and not headers.problems:
        headers.problems.append(f"{first}: holds no weights: {AGAIN}")
    return headers


def describe_tensors(file: Path, content: dict) -> dict[str, StoredTensor]:
    """The tensors among the values of a dict that was read from a file; they may be mapped, and are not read."""
    import torch

    return {
        name: StoredTensor(file, dtype_name(value.dtype), tuple(value.shape))
        for name, value in content.items()
        if isinstance(value, torch.Tensor)
    }


def dtype_name(dtype: torch.dtype) -> str:
    """Such as "bfloat16"."""
    return str(dtype).removeprefix("torch.")


def meta_tensors(stored: dict[str, StoredTensor], dtype: torch.dtype | None = None) -> dict[str, torch.Tensor]:
    """Stored tensors as tensors on the meta device; `dtype` takes the place of every floating-point type."""
    import torch

    dtypes = {
        name: dtype if dtype and tensor.dtype.is_floating_point else tensor.dtype for name, tensor in stored.items()
    }
    return {name: torch.empty(tensor.shape, dtype=dtypes[name], device="meta") for name, tensor in stored.items()}


class WeightFiles:
    """The weights of one folder; `tensors` maps each name to where it lies.

    Raises:
        UserError: there are none, a shard is missing or cut short, the index names what no shard holds, or a tensor is
            of a type that cannot be read here.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        headers = read_headers(self.folder)
        if headers.problems:
            raise UserError(headers.problems[0])
        self.tensors = headers.tensors
        for stored in self.tensors.values():
            if stored.start is not None and stored.dtype_name not in BYTES:
                raise UserError(f"{stored.file}: holds tensors of type {stored.dtype_name}, which cannot be read here")
        self._mapped: tuple[Path | None, dict[str, torch.Tensor]] = (None, {})

    def read(self, name: str) -> torch.Tensor:
        """A copy of one tensor, in memory of its own."""
        import torch

        stored = self.tensors[name]
        tensor = torch.empty(stored.shape, dtype=stored.dtype)
        self.read_part(name, 0, tensor.view(-1))
        return tensor

    def read_part(self, name: str, first: int, part: torch.Tensor) -> None:
        """Fill `part`, `(numbers,)` of the stored type, with the numbers of one tensor from `first` on.

        Raises:
            UserError: the file is shorter than when this object was made.
        """
        import torch

        stored = self.tensors[name]
        if stored.start is None:
            part.copy_(self._shard(stored.file)[name].flatten()[first : first + len(part)])
            return
        unread = part.view(torch.uint8).numpy().data
        with open(stored.file, "rb", buffering=0) as file:
            file.seek(stored.start + first * part.itemsize)
            # One call fills no more than 2 GiB.
            while unread and (count := file.readinto(unread)):
                unread = unread[count:]
        if unread:
            raise _cut_short(stored.file)

    def read_ahead(self, name: str) -> None:
        """Have the system read one tensor from the disk while something else is done, where it can."""
        stored = self.tensors[name]
        if stored.start is not None and hasattr(os, "posix_fadvise"):
            with open(stored.file, "rb", buffering=0) as file:
                os.posix_fadvise(file.fileno(), stored.start, stored.bytes, os.POSIX_FADV_WILLNEED)

    def chunks(self, name: str) -> Iterator[bytes]:
        """The bytes of one tensor, a few at a time; a large embedding never lies in memory whole."""
        stored = self.tensors[name]
        if stored.start is None:
            flat = _bytes_of(self._shard(stored.file)[name])
            yield from (part.numpy().data for part in flat.split(COPIED_AT_ONCE))
            return
        unread = stored.bytes
        with open(stored.file, "rb", buffering=0) as file:
            file.seek(stored.start)
            while unread:
                part = file.read(min(unread, COPIED_AT_ONCE))
                if not part:
                    raise _cut_short(stored.file)
                unread -= len(part)
                yield part

    def first_bytes(self, name: str, count: int) -> bytes:
        """The first bytes of one tensor, as many as it has of them."""
        stored = self.tensors[name]
        if stored.start is None:
            return _bytes_of(self._shard(stored.file)[name].flatten()[:count])[:count].numpy().tobytes()
        with open(stored.file, "rb", buffering=0) as file:
            file.seek(stored.start)
            return file.read(min(stored.bytes, count))

    def fingerprint(self) -> str:
        """SHA-256 of every tensor's name, dtype, shape and first 4,096 bytes: two models differ, two copies agree.

        The files' division into shards and their format do not matter.
        """
        digest = hashlib.sha256()
        for name, stored in sorted(self.tensors.items()):
            digest.update(f"{name} {IN_SAFETENSORS[stored.dtype_name]} {list(stored.shape)}\n".encode())
            digest.update(self.first_bytes(name, SAMPLE))
        return digest.hexdigest()

    def _shard(self, file: Path) -> dict[str, torch.Tensor]:
        """The tensors of a pickled shard; only the last one asked for is kept."""
        if self._mapped[0] != file:
            self._mapped = (file, _unpickled_tensors(file))
        return self._mapped[1]


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
        problems.append(f"{first}: is no index of weight files ({problem}): {AGAIN}")
    return shards


def _safetensors(file: Path, problems: list[str]) -> dict[str, StoredTensor]:
    """The tensors of a file by its header; what of it does not fit together is added to the problems."""
    try:
        tensors = parse_local_safetensors_file_metadata(file).tensors
        with open(file, "rb") as opened:
            start = LENGTH_BYTES + int.from_bytes(opened.read(LENGTH_BYTES), "little")
        _refuse_other_values(tensors.values())
    except UNREADABLE_HEADER as problem:
        raise UserError(f"{file}: has no header that can be read ({one_line_message(problem, 160)}): {AGAIN}") from None
    end = start + max((tensor.data_offsets[1] for tensor in tensors.values()), default=0)
    found = []
    if (size := file.stat().st_size) != end:
        found.append(f"{file}: is {size:,} bytes long, and its header says {end:,}: {AGAIN}")
    stored = {}
    for name, tensor in tensors.items():
        first, last = tensor.data_offsets
        name_of_dtype, size = DTYPES.get(tensor.dtype, (tensor.dtype, 0))
        stored[name] = StoredTensor(file, name_of_dtype, tuple(tensor.shape), start + first)
        if size and last - first != stored[name].bytes:
            found.append(f"{file}: gives {name} more or fewer bytes than its shape takes: {AGAIN}")
    if not found:
        found += _misplaced(file)
    problems += found
    return stored


def _refuse_other_values(tensors: Iterable[TensorInfo]) -> None:
    for tensor in tensors:
        numbers = [*tensor.shape, *tensor.data_offsets]
        if len(tensor.data_offsets) != 2 or not all(type(number) is int for number in numbers):
            raise ValueError("a tensor whose shape and place are no whole numbers")
        if not isinstance(tensor.dtype, str):
            raise ValueError("a tensor of no type")


def _misplaced(file: Path) -> list[str]:
    """What safetensors itself has against a header: tensors that overlap, leave holes or begin too early."""
    try:
        with safe_open(file, framework="np"):
            return []
    except SafetensorError as problem:
        reason = one_line_message(problem, 160).removeprefix("Error while deserializing header: ")
        return [f"{file}: its header does not divide the file into tensors ({reason}): {AGAIN}"]


def _pickled(file: Path) -> dict[str, StoredTensor]:
    return describe_tensors(file, _unpickled_tensors(file))


def _unpickled_tensors(file: Path) -> dict[str, torch.Tensor]:
    """The tensors of a pickled shard, mapped and not read where its format allows."""
    import torch

    content = restricted_pickle.load_data(file)
    content = content if isinstance(content, dict) else {}
    return {name: tensor for name, tensor in content.items() if isinstance(tensor, torch.Tensor)}


def _cut_short(file: Path) -> UserError:
    return UserError(f"{file}: was cut short while it was read: {AGAIN}")


def _bytes_of(tensor: torch.Tensor) -> torch.Tensor:
    import torch

    return tensor.contiguous().flatten().view(torch.uint8)
