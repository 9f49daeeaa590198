"""Safetensors files written one tensor at a time, and read no further than is asked for.

The library's own writer wants all tensors of a file in memory at once, which for a checkpoint is the whole model on
rank 0. The format itself is a JSON header and the tensors' bytes in a row, so it can be written as they come.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import BinaryIO

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ccts_dist.errors import CheckpointError

# https://huggingface.co/docs/safetensors: the names of the types that a model's state can have.
_TYPES = {torch.float32: "F32", torch.int64: "I64", torch.int32: "I32", torch.uint8: "U8", torch.bool: "BOOL"}
_PIECE_BYTES = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """Header entry of a tensor."""

    shape: tuple[int, ...]
    dtype: torch.dtype = torch.float32

    @property
    def size_bytes(self) -> int:
        """Size of its data."""
        return prod(self.shape) * self.dtype.itemsize


class TensorFile:
    """A safetensors file under way: ``write`` every entry in the order announced, then ``finish``."""

    def __init__(self, path: Path, entries: Mapping[str, Entry]) -> None:
        """Create the file and write its header.

        Raises:
            OSError: it cannot be written.
        """
        header, offset = {}, 0
        for name, entry in entries.items():
            end = offset + entry.size_bytes
            header[name] = {"dtype": _TYPES[entry.dtype], "shape": list(entry.shape), "data_offsets": [offset, end]}
            offset = end
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)  # so that the data is aligned for whoever maps the file
        self._entries = iter(entries.items())
        self._digest = hashlib.sha256()
        self._file: BinaryIO = path.open("wb", buffering=0)
        try:
            self._append(len(text).to_bytes(8, "little") + text)
        except OSError:
            self._file.close()
            raise

    def write(self, name: str, tensor: Tensor) -> None:
        """Append the next entry's data.

        Raises:
            OSError: it cannot be written.
        """
        expected, entry = next(self._entries)
        assert (name, tuple(tensor.shape), tensor.dtype) == (expected, entry.shape, entry.dtype), expected
        if tensor.numel():
            self._append(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)

    def finish(self) -> tuple[int, str]:
        """Sync the file to disk and close it; its size in bytes and its SHA-256.

        Raises:
            OSError: it cannot be written.
        """
        assert next(self._entries, None) is None, "an entry was announced and not written"
        size = self._file.tell()
        os.fsync(self._file.fileno())
        self._file.close()
        return size, self._digest.hexdigest()

    def close(self) -> None:
        """Let the file go, finished or not."""
        self._file.close()

    def _append(self, data: bytes | memoryview) -> None:
        # Digested piece by piece while it is at hand, so that nobody has to read the file again for it.
        rest = memoryview(data)
        while rest:
            written = self._file.write(rest[:_PIECE_BYTES])
            self._digest.update(rest[:written])
            rest = rest[written:]


class StoredTensors:
    """The tensors of a safetensors file, as views of the mapped file: only what is looked at is read."""

    def __init__(self, path: Path) -> None:
        """Raises: CheckpointError: not a readable safetensors file."""
        self.path = path
        try:
            self._file = safe_open(path, framework="pt", device="cpu")
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"{path}: cannot be read ({error}).") from error
        self.names: frozenset[str] = frozenset(self._file.keys())

    def get(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """One tensor; not to be written to.

        Raises:
            CheckpointError: there is none of that name and shape.
        """
        if name not in self.names:
            raise CheckpointError(
                f"{self.path}: holds no {name!r}, which the model has. Was it saved by another model?"
            )
        tensor: Tensor = self._file.get_tensor(name)
        if tuple(tensor.shape) != shape:
            raise CheckpointError(
                f"{self.path}: {name!r} has shape {list(tensor.shape)}, the model's has {list(shape)}. "
                "Was it saved by another model?"
            )
        return tensor
