"""Writes a model's weights as safetensors shards, tensor by tensor in any order; no shard ever lies in memory whole.

In: names, types and shapes, all known before. Out: the files that Transformers loads. A thread writes them, and brings
them to the disk, while the next tensors are computed. The format is written by hand because its library writes a file
only from tensors that are all in memory.
Source: https://github.com/huggingface/safetensors#format
"""

import json
import os
from collections import deque
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any, BinaryIO

import torch
from huggingface_hub.serialization import split_state_dict_into_shards_factory

from sft.models.weight_files import IN_SAFETENSORS, LENGTH_BYTES, dtype_name

ALIGNMENT = 8
SHARD_PATTERN = "model{suffix}.safetensors"
MOST_WAITING = 1 << 25  # bytes that may wait to be written: enough to keep the disk busy
SYNCED_AT_ONCE = 1 << 26  # bytes


class WeightWriter:
    """The weight files of a new folder; `shapes` are meta tensors by name, in the order they are to lie."""

    def __init__(self, folder: Path, shapes: dict[str, torch.Tensor], max_shard_size: str):
        self.folder, self.unwritten = folder, set(shapes)
        split = split_state_dict_into_shards_factory(
            shapes,
            get_storage_size=lambda tensor: tensor.nbytes,
            filename_pattern=SHARD_PATTERN,
            max_shard_size=max_shard_size,
        )
        self._index = split if split.is_sharded else None
        self._shards = {
            name: {tensor: shapes[tensor] for tensor in tensors} for name, tensors in split.filename_to_tensors.items()
        }
        self._open = ExitStack()
        self._files: dict[str, BinaryIO] = {}
        # Of each tensor: its file, its first byte in it, and how many bytes it takes.
        self._places: dict[str, tuple[BinaryIO, int, int]] = {}
        self._thread = ThreadPoolExecutor(1)
        self._waiting: deque[tuple[Future[None], int]] = deque()
        self._bytes_waiting = 0
        self._bytes_unsynced = 0

    def write(self, name: str, content: torch.Tensor | Iterable[bytes | memoryview]) -> None:
        """Write one tensor: its values, or its bytes part by part, none of which may change afterwards.

        Raises:
            OSError: this tensor, or one before it, cannot be written.
        """
        file, start, expected = self._places[name]
        if isinstance(content, torch.Tensor):
            content = [content.contiguous().flatten().view(torch.uint8).cpu().numpy().data]
        written = 0
        for part in content:
            self._waiting.append((self._thread.submit(self._write_part, file, start + written, part), len(part)))
            written += len(part)
            self._bytes_waiting += len(part)
            self._wait(MOST_WAITING)
        if written != expected:
            raise ValueError(f"{name}: {written:,} bytes were written where {expected:,} belong")
        self.unwritten.discard(name)

    def __enter__(self) -> "WeightWriter":
        for name, tensors in self._shards.items():
            self._files[name] = self._open.enter_context((self.folder / name).open("wb"))
            self._places |= self._write_header(name, tensors)
        return self

    def __exit__(self, kind, *_) -> None:
        with self._open:
            try:
                if kind is None:
                    self._wait(0)
                    self._finish()
            finally:
                self._thread.shutdown(cancel_futures=True)

    def _wait(self, most: int) -> None:
        """Wait until no more than so many bytes are still to be written; what went wrong is raised here."""
        while self._bytes_waiting > most:
            future, size = self._waiting.popleft()
            future.result()
            self._bytes_waiting -= size

    def _write_part(self, file: BinaryIO, start: int, part: bytes | memoryview) -> None:
        file.seek(start)
        file.write(part)
        self._bytes_unsynced += len(part)
        if self._bytes_unsynced >= SYNCED_AT_ONCE:
            # All of it has to be on the disk in the end; what is brought there now is not waited for then.
            file.flush()
            os.fsync(file.fileno())
            self._bytes_unsynced = 0

    def _finish(self) -> None:
        """See that every tensor was written, and write the index of the shards."""
        if self.unwritten:
            raise ValueError(f"{len(self.unwritten)} tensors were not written, {min(self.unwritten)} among them")
        if self._index:
            index = {"metadata": self._index.metadata, "weight_map": self._index.tensor_to_filename}
            path = self.folder / "model.safetensors.index.json"
            path.write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")

    def _write_header(self, name: str, tensors: dict[str, torch.Tensor]) -> dict[str, tuple[BinaryIO, int, int]]:
        header: dict[str, dict[str, Any]] = {"__metadata__": {"format": "pt"}}
        offset = 0
        for tensor, shape in tensors.items():
            end = offset + shape.nbytes
            header[tensor] = {
                "dtype": IN_SAFETENSORS[dtype_name(shape.dtype)],
                "shape": list(shape.shape),
                "data_offsets": [offset, end],
            }
            offset = end
        text = json.dumps(header, ensure_ascii=False).encode("utf-8")
        text += b" " * (-len(text) % ALIGNMENT)
        file = self._files[name]
        file.write(len(text).to_bytes(LENGTH_BYTES, "little") + text)
        start = LENGTH_BYTES + len(text)
        return {
            tensor: (file, start + header[tensor]["data_offsets"][0], shape.nbytes) for tensor, shape in tensors.items()
        }
