"""Reads the weights of a model folder tensor by tensor, as they lie on the disk; the model is never loaded.

In: a folder with safetensors or pickled weights, in one file or in shards. Out: names, shapes and tensors, one at a
time. Knows nothing about what the tensors mean.
"""

import hashlib
import json
import pickle
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from huggingface_hub import parse_local_safetensors_file_metadata
from huggingface_hub.errors import SafetensorsParsingError

from sft.core.errors import UserError, one_line

# What Transformers looks for in a folder, in this order.
WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2, "I64": torch.int64, "I32": torch.int32,
    "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip
DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}
COPIED_AT_ONCE = 1 << 24
LENGTH_BYTES = 8  # of a safetensors header's length, which stands before it
SAMPLE = 4096


@dataclass(frozen=True)
class StoredTensor:
    """One tensor on the disk; `start` is its first byte in a safetensors file, None in a pickled one."""

    file: Path
    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int | None

    @property
    def bytes(self) -> int:
        return torch.Size(self.shape).numel() * self.dtype.itemsize


class WeightFiles:
    """The weights of one folder; `tensors` maps each name to where it lies.

    Raises:
        UserError: there are none, a shard is missing or cut short, or the index names what no shard holds.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        found = next((self.folder / name for name in WEIGHTS if (self.folder / name).is_file()), None)
        if found is None:
            raise UserError(f"{folder}: holds no weights (looked for {', '.join(WEIGHTS)}): is it a model folder?")
        shards = _shards(found) if found.suffix == ".json" else {found: None}
        self.tensors: dict[str, StoredTensor] = {}
        self._mapped: tuple[Path | None, dict[str, torch.Tensor]] = (None, {})
        for file, expected in shards.items():
            if not file.is_file():
                raise UserError(f"{file}: is missing, and {found.name} names it: download it again")
            stored = _pickled(file, self._shard(file)) if file.suffix == ".bin" else _safetensors(file)
            if expected is not None and (missing := expected - stored.keys()):
                raise UserError(f"{file}: lacks {min(missing)}, which {found.name} says it holds: download it again")
            self.tensors |= stored

    def read(self, name: str) -> torch.Tensor:
        """A copy of one tensor, in memory of its own."""
        stored = self.tensors[name]
        if stored.start is None:
            return self._shard(stored.file)[name].clone()
        buffer = bytearray(stored.bytes)
        with open(stored.file, "rb", buffering=0) as file:
            file.seek(stored.start)
            file.readinto(buffer)
        flat = torch.frombuffer(buffer, dtype=stored.dtype) if buffer else torch.empty(0, dtype=stored.dtype)
        return flat.view(stored.shape)

    def chunks(self, name: str) -> Iterator[bytes]:
        """The bytes of one tensor, a few at a time; a large embedding never lies in memory whole."""
        stored = self.tensors[name]
        if stored.start is None:
            flat = _bytes_of(self._shard(stored.file)[name])
            yield from (part.numpy().data for part in flat.split(COPIED_AT_ONCE))
            return
        left = stored.bytes
        with open(stored.file, "rb", buffering=0) as file:
            file.seek(stored.start)
            while left:
                part = file.read(min(left, COPIED_AT_ONCE))
                left -= len(part)
                yield part

    def fingerprint(self) -> str:
        """SHA-256 of every tensor's name, dtype, shape and first 4,096 bytes: two models differ, two copies agree.

        The files' division into shards and their format do not matter.
        """
        digest = hashlib.sha256()
        for name, stored in sorted(self.tensors.items()):
            digest.update(f"{name} {DTYPE_NAMES[stored.dtype]} {list(stored.shape)}\n".encode())
            digest.update(self._first_bytes(name))
        return digest.hexdigest()

    def _shard(self, file: Path) -> dict[str, torch.Tensor]:
        """The tensors of a pickled shard; only the last one asked for is kept."""
        if self._mapped[0] != file:
            self._mapped = (file, _unpickled(file))
        return self._mapped[1]

    def _first_bytes(self, name: str) -> bytes:
        stored = self.tensors[name]
        if stored.start is None:
            return _bytes_of(self._shard(stored.file)[name].flatten()[:SAMPLE])[:SAMPLE].numpy().tobytes()
        with open(stored.file, "rb", buffering=0) as file:
            file.seek(stored.start)
            return file.read(min(stored.bytes, SAMPLE))


def _shards(index: Path) -> dict[Path, set[str]]:
    """Each shard that an index names, and the tensors it should hold."""
    try:
        names = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        shards: dict[Path, set[str]] = {}
        for tensor, file in names.items():
            # A name and not a path: an index cannot point out of its folder.
            shards.setdefault(index.parent / Path(file).name, set()).add(tensor)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as problem:
        raise UserError(f"{index}: is no index of shards ({problem}): download it again") from None
    return shards


def _safetensors(file: Path) -> dict[str, StoredTensor]:
    try:
        tensors = parse_local_safetensors_file_metadata(file).tensors
        with open(file, "rb") as opened:
            header = LENGTH_BYTES + int.from_bytes(opened.read(LENGTH_BYTES), "little")
        end = header + max((tensor.data_offsets[1] for tensor in tensors.values()), default=0)
        stored = {
            name: StoredTensor(file, DTYPES[tensor.dtype], tuple(tensor.shape), header + tensor.data_offsets[0])
            for name, tensor in tensors.items()
        }
    except (SafetensorsParsingError, ValueError, OSError) as problem:
        raise UserError(f"{file}: is no safetensors file ({one_line(problem, 160)}): download it again") from None
    except KeyError as dtype:
        raise UserError(f"{file}: holds tensors of type {dtype}, which cannot be read here") from None
    if file.stat().st_size != end:
        raise UserError(f"{file}: is {file.stat().st_size:,} bytes and should be {end:,}: download it again")
    return stored


def _pickled(file: Path, tensors: dict[str, torch.Tensor]) -> dict[str, StoredTensor]:
    return {name: StoredTensor(file, tensor.dtype, tuple(tensor.shape), None) for name, tensor in tensors.items()}


def _unpickled(file: Path) -> dict[str, torch.Tensor]:
    """The tensors of a pickled shard, mapped and not read where its format allows."""
    try:
        try:
            loaded = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
        except RuntimeError:  # torch's older format cannot be mapped
            loaded = torch.load(file, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError) as problem:
        raise UserError(f"{file}: cannot be read as weights alone ({one_line(problem, 160)}): do not use it") from None
    return {name: tensor for name, tensor in loaded.items() if isinstance(tensor, torch.Tensor)}


def _bytes_of(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous().flatten().view(torch.uint8)
