"""Writing the index of a shard set: an Arrow file of a batch per shard, digested as it is written."""

import hashlib
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import pyarrow as pa

from ccts_dist.files.atomic import atomic_open
from ccts_dist.shards.format.index import _MAGIC, IndexPlace


class IndexWriter:
    """Writes an index file, one ``add`` per shard in the manifest's order; it appears when the block ends well."""

    def __init__(self, path: Path) -> None:
        self._whole = atomic_open(path)
        self._writer: pa.RecordBatchFileWriter | None = None
        self.size_bytes = 0
        """Size of the finished file, as is ``sha256``; for the manifest, once the block has ended."""
        self.sha256 = ""

    def __enter__(self) -> "IndexWriter":
        self._file = _Digested(self._whole.__enter__())
        return self

    def add(self, table: pa.Table) -> IndexPlace:
        """Append one shard's rows as a batch of their own; where they lie is for the manifest."""
        if self._writer is None:
            self._start(table.schema)
        assert self._writer is not None
        # Arrow writes what begins the file together with the first batch.
        begun = self._file.size > 0
        offset = self._file.size if begun else len(self._header)
        self._file.part = hashlib.sha256(self._header if begun else b"")
        (batch,) = table.combine_chunks().to_batches() or [pa.RecordBatch.from_pylist([], schema=table.schema)]
        self._writer.write_batch(batch)
        return IndexPlace(offset=offset, size=self._file.size - offset, sha256=self._file.part.hexdigest())

    def _start(self, schema: pa.Schema) -> None:
        options = pa.ipc.IpcWriteOptions(compression="zstd")
        self._writer = pa.ipc.new_file(pa.PythonFile(self._file, "w"), schema, options=options)
        self._header = _MAGIC + schema.serialize().to_pybytes()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._writer is None and error is None:
            self._start(pa.schema([("key", pa.string())]))
        if self._writer is not None:
            self._writer.close()
        self.size_bytes, self.sha256 = self._file.size, self._file.whole.hexdigest()
        self._whole.__exit__(kind, error, trace)


class _Digested:
    """A file for Arrow to write, which knows the digest of all it was given and of the part since ``part`` was set."""

    closed = False

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.whole, self.part = hashlib.sha256(), hashlib.sha256()
        self.size = 0

    def write(self, data: Any) -> int:  # bytes, or a buffer of Arrow's
        self._file.write(data)
        self.whole.update(data)
        self.part.update(data)
        self.size += len(data)
        return len(data)

    def tell(self) -> int:
        return self.size

    def flush(self) -> None:
        self._file.flush()
