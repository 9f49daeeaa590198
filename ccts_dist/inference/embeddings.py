"""Embeddings in a file: a NumPy array, a safetensors file or a Parquet table, each with the keys of its rows.

All of them grow on disk row by row, so that memory does not depend on their number, and can be read after each end.
"""

import json
import shutil
import struct
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Protocol, runtime_checkable

import numpy as np
import pyarrow as pa
from jaxtyping import Float32
from pyarrow import parquet

from ccts_dist.errors import ConfigError
from ccts_dist.inference.output import GrowingFile, writing
from ccts_dist.inference.rows import json_text

SUFFIXES = (".npy", ".parquet", ".safetensors")

_GROUP_ROWS = 1024
"""Rows that are written to a Parquet file at a time."""


@runtime_checkable
class EmbeddingFile(Protocol):
    """A file of embeddings that grows."""

    def add(self, key: Mapping[str, Any], embedding: Float32[np.ndarray, " hidden"]) -> None:
        """One more row; ``key`` names whose, by column."""
        ...

    def end(self) -> list[GrowingFile]:
        """The files, each well-formed and still to be completed or left."""
        ...


def check_suffix(path: Path) -> None:
    """Refuse a file of no kind that is known here.

    Raises:
        ConfigError: its name ends otherwise.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise ConfigError(f"--embeddings {path}: embeddings are {', '.join(SUFFIXES)} files. Name such a file.")


def keys_beside(path: Path) -> Path | None:
    """File for the keys of a NumPy array, which holds none itself; None for the other kinds."""
    return path.with_name(f"{path.name}.keys.jsonl") if path.suffix.lower() == ".npy" else None


def embedding_file(path: Path, *, size: int, columns: Sequence[str]) -> EmbeddingFile:
    """An empty file of the kind that its name states.

    Args:
        size: numbers in an embedding.
        columns: of the keys; the first is text, the others are numbers.

    Raises:
        OutputError: it cannot be made.
    """
    kind = {".npy": _Npy, ".parquet": _Parquet, ".safetensors": _Safetensors}[path.suffix.lower()]
    return kind(path, size, columns)


def _line(key: Mapping[str, Any]) -> bytes:
    return json_text(key).encode() + b"\n"


class _Npy:
    """``np.load(FILE, mmap_mode="r")``: [rows hidden] of float32; the keys are JSON lines in ``FILE.keys.jsonl``."""

    def __init__(self, path: Path, size: int, columns: Sequence[str]) -> None:
        beside = keys_beside(path)
        assert beside is not None
        self._out, self._keys = GrowingFile(path), GrowingFile(beside)
        self._size, self._rows = size, 0
        self._write_header()

    def add(self, key: Mapping[str, Any], embedding: Float32[np.ndarray, " hidden"]) -> None:
        with writing(self._out.path):
            self._out.file.write(embedding.astype("<f4").tobytes())
            self._keys.file.write(_line(key))
        self._rows += 1

    def end(self) -> list[GrowingFile]:
        with writing(self._out.path):
            self._out.file.seek(0)
            self._write_header()
        return [self._keys, self._out]

    def _write_header(self) -> None:
        # NumPy leaves room in the header for the first axis to grow.
        header = {"descr": "<f4", "fortran_order": False, "shape": (self._rows, self._size)}
        with writing(self._out.path):
            np.lib.format.write_array_header_1_0(self._out.file, header)


class _Safetensors:
    """Tensors "embeddings", [rows hidden] of float32, and "keys", the bytes of as many JSON lines.

    Keys among the metadata would make a header of more than safetensors reads (100 MB) of a million files.
    """

    def __init__(self, path: Path, size: int, columns: Sequence[str]) -> None:
        self._out = GrowingFile(path)
        with writing(path):
            # The header comes first and holds the number of rows.
            self._rows: BinaryIO = tempfile.TemporaryFile(dir=path.parent)  # noqa: SIM115 - closed by end
            self._keys: BinaryIO = tempfile.TemporaryFile(dir=path.parent)  # noqa: SIM115
        self._size = size

    def add(self, key: Mapping[str, Any], embedding: Float32[np.ndarray, " hidden"]) -> None:
        with writing(self._out.path):
            self._rows.write(embedding.astype("<f4").tobytes())
            self._keys.write(_line(key))

    def end(self) -> list[GrowingFile]:
        with writing(self._out.path), self._rows, self._keys:
            middle, keys = self._rows.tell(), self._keys.tell()
            end = middle + keys
            tensors = {
                "embeddings": {"dtype": "F32", "shape": [middle // (4 * self._size), self._size]},
                "keys": {"dtype": "U8", "shape": [keys]},
            }
            tensors["embeddings"]["data_offsets"], tensors["keys"]["data_offsets"] = [0, middle], [middle, end]
            header = json.dumps(tensors).encode()
            header += b" " * (-len(header) % 8)
            self._out.file.write(struct.pack("<Q", len(header)) + header)
            for part in (self._rows, self._keys):
                part.seek(0)
                shutil.copyfileobj(part, self._out.file)
        return [self._out]


class _Parquet:
    """Columns of the keys, and "embedding", a list of float32 of fixed length."""

    def __init__(self, path: Path, size: int, columns: Sequence[str]) -> None:
        self._out = GrowingFile(path)
        text, *numbers = columns
        fields = [pa.field(text, pa.string()), *(pa.field(name, pa.float64()) for name in numbers)]
        self._schema = pa.schema([*fields, pa.field("embedding", pa.list_(pa.float32(), size))])
        with writing(path):
            self._writer = parquet.ParquetWriter(self._out.file, self._schema)
        self._columns = columns
        self._held: list[dict[str, Any]] = []

    def add(self, key: Mapping[str, Any], embedding: Float32[np.ndarray, " hidden"]) -> None:
        self._held.append({**key, "embedding": embedding.tolist()})
        if len(self._held) == _GROUP_ROWS:
            self._write()

    def end(self) -> list[GrowingFile]:
        if self._held:
            self._write()
        with writing(self._out.path):
            self._writer.close()
        return [self._out]

    def _write(self) -> None:
        with writing(self._out.path):
            self._writer.write_batch(pa.RecordBatch.from_pylist(self._held, schema=self._schema))
        self._held = []
