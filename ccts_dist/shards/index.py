"""The index: every utterance's place, length, labels and speaker, in Parquet, one row group per shard."""

import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Generic, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Float64, Int64, UInt32

from ccts_dist.errors import ShardError
from ccts_dist.shards.durable import whole_file

_LABEL = "label."
_PLACE = {"offset": pa.int64(), "size": pa.int64(), "crc32": pa.uint32()}

Rows = TypeVar("Rows")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class MemberPlaces:
    """Where one kind of member lies in a shard, row for row."""

    offset: Int64[np.ndarray, " rows"]
    size: Int64[np.ndarray, " rows"]
    crc32: UInt32[np.ndarray, " rows"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ShardRows:
    """The index of one shard, a column each."""

    shard: str
    keys: tuple[str, ...]
    """As the corpus spells them, not escaped."""

    num_samples: Int64[np.ndarray, " rows"]
    labels: Mapping[str, Float64[np.ndarray, " rows"]]
    """0..1 by target, NaN where nobody rated."""

    speakers: tuple[str | None, ...]
    genders: tuple[str | None, ...]
    members: Mapping[str, MemberPlaces]
    """By extension: "flac", "json", and "teacher.npy" in merged shards."""

    def __len__(self) -> int:
        return len(self.keys)


def rows_to_table(rows: ShardRows) -> pa.Table:
    """The row group of a shard."""
    columns: dict[str, Any] = {
        "key": pa.array(rows.keys, pa.string()),
        "speaker": pa.array(rows.speakers, pa.string()),
        "gender": pa.array(rows.genders, pa.string()),
        "num_samples": pa.array(rows.num_samples, pa.int64()),
    }
    for target, label in rows.labels.items():
        columns[_LABEL + target] = pa.array(label, pa.float64(), from_pandas=True)  # NaN becomes null
    columns |= place_columns(rows.members)
    return pa.table(columns)


def place_columns(members: Mapping[str, MemberPlaces]) -> dict[str, pa.Array]:
    """The columns ``<member>.offset``, ``.size`` and ``.crc32``."""
    return {
        f"{member}.{name}": pa.array(getattr(places, name), kind)
        for member, places in members.items()
        for name, kind in _PLACE.items()
    }


def table_to_rows(shard: str, table: pa.Table) -> ShardRows:
    """The inverse of ``rows_to_table``; labels and members in the order of the columns."""
    names = table.column_names
    targets = [name.removeprefix(_LABEL) for name in names if name.startswith(_LABEL)]
    members = [name.removesuffix(".crc32") for name in names if name.endswith(".crc32")]
    return ShardRows(
        shard=shard,
        keys=tuple(table["key"].to_pylist()),
        num_samples=_numbers(table["num_samples"], np.int64),
        labels={target: _numbers(table[_LABEL + target], np.float64) for target in targets},
        speakers=tuple(table["speaker"].to_pylist()),
        genders=tuple(table["gender"].to_pylist()),
        members={member: table_places(table, member) for member in members},
    )


def table_places(table: pa.Table, member: str) -> MemberPlaces:
    """Where one kind of member lies, from a row group that has its columns."""
    return MemberPlaces(
        offset=_numbers(table[f"{member}.offset"], np.int64),
        size=_numbers(table[f"{member}.size"], np.int64),
        crc32=_numbers(table[f"{member}.crc32"], np.uint32),
    )


def place_column_names(member: str) -> list[str]:
    """The columns that ``table_places`` reads."""
    return [f"{member}.{name}" for name in _PLACE]


class IndexWriter:
    """Writes an index file, one ``add`` per shard in the manifest's order; it appears when the block ends well."""

    def __init__(self, path: Path) -> None:
        self._whole = whole_file(path)
        self._writer: pq.ParquetWriter | None = None

    def __enter__(self) -> "IndexWriter":
        self._file = self._whole.__enter__()
        return self

    def add(self, table: pa.Table) -> None:
        """Append one shard's rows as a row group of their own."""
        if self._writer is None:
            self._writer = pq.ParquetWriter(self._file, table.schema, compression="zstd", write_statistics=False)
        self._writer.write_table(table, row_group_size=max(1, table.num_rows))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._writer is None and error is None:
            self.add(pa.table({"key": pa.array([], pa.string())}))
        if self._writer is not None:
            self._writer.close()
        self._whole.__exit__(kind, error, trace)


class RowGroups(Generic[Rows]):
    """Reads an index one shard at a time and keeps the last shards read, bounded in rows.

    Can be pickled, and shared by threads; a process that gets a copy opens the file for itself.
    """

    def __init__(
        self,
        path: Path,
        num_rows: Mapping[str, int],
        decode: Callable[[str, pa.Table], Rows],
        *,
        columns: Sequence[str] | None = None,
        max_rows: int = 131_072,
    ) -> None:
        """
        Args:
            num_rows: rows that each shard must have, in the order of the row groups.
            decode: makes of a shard's name and row group what ``get`` returns; a function of a module.
            columns: read these only; None for all.
            max_rows: shards are forgotten, the longest unused first, while more rows than this are kept.
        """
        self._path, self._num_rows, self._decode = path, dict(num_rows), decode
        self._columns, self._max_rows = columns, max_rows
        self._numbers = {shard: number for number, shard in enumerate(num_rows)}
        self._forget()

    def _forget(self) -> None:
        self._file: pq.ParquetFile | None = None
        self._process = os.getpid()
        self._lock = threading.Lock()
        self._kept: OrderedDict[str, Rows] = OrderedDict()

    def __getstate__(self) -> dict[str, Any]:
        own = ("_file", "_process", "_lock", "_kept")
        return {name: value for name, value in self.__dict__.items() if name not in own}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._forget()

    def get(self, shard: str) -> Rows:
        """One shard's rows.

        Raises:
            ShardError: the index has no such shard, or cannot be read, or its rows are not as many as they must be.
        """
        if self._process != os.getpid():
            self._forget()  # forked: the parent's file, and a lock that another thread may have held
        with self._lock:
            if shard in self._kept:
                self._kept.move_to_end(shard)
                return self._kept[shard]
            rows = self._decode(shard, self._read(shard))
            self._kept[shard] = rows
            total = sum(self._num_rows[name] for name in self._kept)
            while total > self._max_rows and len(self._kept) > 1:
                total -= self._num_rows[self._kept.popitem(last=False)[0]]
            return rows

    def _read(self, shard: str) -> pa.Table:
        if shard not in self._numbers:
            raise ShardError(f"{shard}: not in {self._path}. Take a shard that its manifest lists.")
        try:
            if self._file is None:
                self._file = pq.ParquetFile(self._path)
            table = self._file.read_row_group(self._numbers[shard], columns=self._columns, use_threads=False)
        except (pa.ArrowException, OSError, IndexError) as fault:
            reason = str(fault).splitlines()[0]
            raise ShardError(
                f"{shard}: cannot read its rows in {self._path} ({reason}). Make the index again."
            ) from fault
        if table.num_rows != self._num_rows[shard]:
            raise ShardError(
                f"{shard}: {table.num_rows} rows in {self._path}, and the manifest says {self._num_rows[shard]}. "
                "The index is stale: build the set again."
            )
        return table


def _numbers(column: pa.ChunkedArray, kind: Any) -> np.ndarray:
    values = column.to_numpy()  # nulls come as NaN
    return np.array(values, dtype=kind)
