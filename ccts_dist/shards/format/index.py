"""The index: every utterance's place, length, labels and speaker, in an Arrow file with one record batch per shard.

The manifest names where each batch lies and what its digest is, so that one shard's rows are read, and known to be
sound, without anything of the others: opening costs the same for ten shards and for twenty thousand. (Parquet would
describe every column of every shard in one footer, which all readers must parse whole.)
"""

import hashlib
import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar, overload, runtime_checkable

import numpy as np
import pyarrow as pa
from jaxtyping import Float64, Int64, UInt32

from ccts_dist.errors import FetchError, ShardError
from ccts_dist.files.digests import OptionalDigest
from ccts_dist.limits import LIMITS
from ccts_dist.shards.format.arrow_message import check_batch
from ccts_dist.shards.format.record_table import RecordTable
from ccts_dist.shards.stores.store import Stored, read_at, reason_of, stored_at
from ccts_dist.shards.stores.transfer import StoredFile

COLUMNS_LIMIT, ROWS_LIMIT = "index.arrow, columns", "index.arrow, a shard's rows"
"""Keys in ``limits.LIMITS``."""

_LABEL = "label."
_PLACE = {"offset": pa.int64(), "size": pa.int64(), "crc32": pa.uint32()}
_MAGIC = b"ARROW1\0\0"
"""Begins every Arrow file; the schema follows."""

ARROW_FAULTS = (pa.ArrowException, OSError, EOFError, UnicodeError, StopIteration)
"""Errors that Arrow raises on bytes that are not its own; it checks every length against the bytes that are there."""

_TEXTS = ("key", "speaker", "gender", "category")

_ROW_BYTES = 1_024
"""Most bytes of a row; longer ones count as several in what is kept."""

_MOST_STORED = 1_024
"""Entries that are kept made: many times the shards of a window, a small part of the largest corpus."""

Rows = TypeVar("Rows")
Text = TypeVar("Text", bound=str | None)


class Texts(Sequence[Text]):
    """Strings as Arrow keeps them: one made when it is asked for, instead of all in memory."""

    def __init__(self, column: pa.Array | pa.ChunkedArray) -> None:
        self._column = column

    @overload
    def __getitem__(self, at: int) -> Text: ...
    @overload
    def __getitem__(self, at: slice) -> Sequence[Text]: ...
    def __getitem__(self, at: Any) -> Any:
        if isinstance(at, slice):
            return tuple(self)[at]
        return self._column[at].as_py()

    def __len__(self) -> int:
        return len(self._column)

    def __iter__(self) -> Iterator[Text]:
        return iter(self._column.to_pylist())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and len(self) == len(other) and tuple(self) == tuple(other)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return repr(tuple(self))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class MemberPlaces:
    """Places of one kind of member in a shard, row for row."""

    offset: Int64[np.ndarray, " rows"]
    size: Int64[np.ndarray, " rows"]
    crc32: UInt32[np.ndarray, " rows"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ShardRows:
    """The index of one shard, a column each."""

    shard: str
    keys: Sequence[str]
    """Keys in the corpus's spelling, not escaped."""

    num_samples: Int64[np.ndarray, " rows"]
    labels: Mapping[str, Float64[np.ndarray, " rows"]]
    """0..1 by target, NaN where nobody rated."""

    speakers: Sequence[str | None]
    genders: Sequence[str | None]
    categories: Sequence[str | None]
    """Categorical emotion as the corpus spells it."""

    members: Mapping[str, MemberPlaces]
    """By extension: "flac", "json", and "teacher.npy" in merged shards."""

    def __len__(self) -> int:
        return len(self.num_samples)


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexPlace:
    """Place of one shard's batch in the index file."""

    offset: int
    size: int
    sha256: OptionalDigest
    """Digest of all that stands before the first batch (the columns' names and types), and then of this batch."""


@runtime_checkable
class Indexed(Protocol):
    """Manifest's facts of one shard's rows."""

    @property
    def name(self) -> str: ...
    @property
    def num_utterances(self) -> int: ...
    @property
    def index(self) -> IndexPlace: ...


def rows_to_table(rows: ShardRows) -> pa.Table:
    """The batch of a shard."""
    texts = (rows.keys, rows.speakers, rows.genders, rows.categories)
    columns: dict[str, Any] = {
        name: pa.array(list(values), pa.string()) for name, values in zip(_TEXTS, texts, strict=True)
    }
    columns["num_samples"] = pa.array(rows.num_samples, pa.int64())
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


def table_to_rows(shard: str, table: pa.RecordBatch) -> ShardRows:
    """The inverse of ``rows_to_table``; labels and members in the order of the columns."""
    names = table.schema.names
    targets = [name.removeprefix(_LABEL) for name in names if name.startswith(_LABEL)]
    members = [name.removesuffix(".crc32") for name in names if name.endswith(".crc32")]
    keys, speakers, genders, categories = (Texts(table[name]) for name in _TEXTS)
    return ShardRows(
        shard=shard,
        keys=keys,
        num_samples=_numbers(table["num_samples"], np.int64),
        labels={target: _numbers(table[_LABEL + target], np.float64) for target in targets},
        speakers=speakers,
        genders=genders,
        categories=categories,
        members={member: table_places(table, member) for member in members},
    )


def table_places(table: pa.RecordBatch, member: str) -> MemberPlaces:
    """Places of one kind of member, from a batch that has its columns."""
    return MemberPlaces(
        offset=_numbers(table[f"{member}.offset"], np.int64),
        size=_numbers(table[f"{member}.size"], np.int64),
        crc32=_numbers(table[f"{member}.crc32"], np.uint32),
    )


class RowGroups(Generic[Rows]):
    """Reads an index one shard at a time and keeps the last shards read, bounded in rows.

    Can be pickled, and shared by threads; a process that gets a copy opens the file for itself.
    """

    def __init__(
        self,
        index: Path | Stored,
        shards: Sequence[Indexed],
        decode: Callable[[Any, pa.RecordBatch], Rows],
        *,
        max_rows: int = 131_072,
    ) -> None:
        """
        Args:
            shards: as the manifest lists them.
            decode: makes what ``get`` returns of a shard's batch, given what the manifest states of the shard; can be
                pickled. Raises ``ValueError`` in words when the rows are not what they must be.
            max_rows: shards are forgotten, the longest unused first, while more rows than this are kept.
        """
        self._index = index if isinstance(index, Stored) else stored_at(index)
        self._shards, self._decode, self._max_rows = shards, decode, max_rows
        self._stored: dict[str, Stored] = {}
        self._numbers = {} if isinstance(shards, RecordTable) else {one.name: at for at, one in enumerate(shards)}
        self._forget()

    def _forget(self) -> None:
        self._header = b""
        self._process = os.getpid()
        self._lock = threading.Lock()
        self._cached: OrderedDict[str, tuple[int, Rows]] = OrderedDict()

    def __getstate__(self) -> dict[str, Any]:
        own = ("_header", "_process", "_lock", "_cached")
        return {name: value for name, value in self.__dict__.items() if name not in own}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._forget()

    def get(self, shard: str) -> Rows:
        """One shard's rows.

        Raises:
            ShardError: the index has no such shard, cannot be read, is not the one that the manifest names, or has
                rows that ``decode`` refuses.
        """
        if self._process != os.getpid():
            self._forget()  # forked: a lock that another thread may have held
        with self._lock:
            if shard not in self._cached:
                self._cached[shard] = self._read(shard)
                total = sum(num_rows for num_rows, _ in self._cached.values())
                while total > self._max_rows and len(self._cached) > 1:
                    total -= self._cached.popitem(last=False)[1][0]
            self._cached.move_to_end(shard)
            return self._cached[shard][1]

    def listed(self, shard: str) -> Indexed:
        """Manifest's facts of a shard.

        Raises:
            ShardError: it names no such shard.
        """
        shards = self._shards
        number = shards.find("name", shard) if isinstance(shards, RecordTable) else self._numbers.get(shard)
        if number is None:
            raise ShardError(f"{shard}: not in {self._index}. Take a shard that its manifest lists.")
        return shards[number]

    def stored(self, shard: str) -> Stored:
        """A shard's file, which lies beside the index.

        Raises:
            ShardError: as ``listed``.
        """
        stored = self._stored.get(shard)
        if stored is None:
            entry = self.listed(shard)
            assert isinstance(entry, StoredFile), "an entry of a manifest"
            if len(self._stored) >= _MOST_STORED:
                self._stored = {}
            stored = self._stored[shard] = Stored(self._index.store, entry)
        return stored

    def _read(self, shard: str) -> tuple[int, Rows]:
        entry = self.listed(shard)
        header, data = self._header_and_batch(shard, entry.index)
        try:
            batch = _read_batch(header, data)
            if batch.num_rows != entry.num_utterances:
                raise ShardError(
                    f"{shard}: {batch.num_rows} rows in {self._index}, and the manifest states {entry.num_utterances}. "
                    "The index is stale: build the set again."
                )
            return max(batch.num_rows, batch.nbytes // _ROW_BYTES), self._decode(entry, batch)
        except (ValueError, *ARROW_FAULTS) as fault:  # sealed so by a faulty tool, which no digest shows
            words = str(fault).partition("\n")[0] or type(fault).__name__
            raise ShardError(
                f"{shard}: its rows in {self._index} are not what they must be: {words}. "
                f"Run shards/check.py {self._index.store.words}, and build the set again."
            ) from fault

    def _header_and_batch(self, shard: str, place: IndexPlace) -> tuple[bytes, bytes]:
        try:
            _check_place(self._shards[0].index.offset, COLUMNS_LIMIT)
            _check_place(place.size, ROWS_LIMIT)
            while True:
                with self._index.opened() as descriptor:
                    header = self._header or read_at(descriptor, self._shards[0].index.offset, 0)
                    data = read_at(descriptor, place.size, place.offset)
                    if hashlib.sha256(header + data).hexdigest() == place.sha256:
                        self._header = header
                        return header, data
                    if not self._index.discard(descriptor):
                        break
        except FetchError:
            raise
        except (ShardError, OSError, ValueError) as fault:
            raise ShardError(
                f"{shard}: cannot read its rows in {self._index} ({_reason(fault)}). Make the index again."
            ) from fault
        raise ShardError(
            f"{shard}: its rows in {self._index} are not those that the manifest names. The index is stale or "
            "damaged: fetch or build the set again."
        )


def _check_place(size: int, limit: str) -> None:
    if not 0 <= size <= LIMITS[limit]:
        raise ValueError(f"reported to take {size} bytes, and may take {LIMITS[limit]}")


def _reason(fault: Exception) -> str:
    return reason_of(fault) if isinstance(fault, ShardError | OSError) else str(fault)


def _read_batch(header: bytes, data: bytes) -> pa.RecordBatch:
    check_batch(data)
    # As a stream of one batch, which alone can be asked to start no threads: those of Arrow, met by the end of a
    # process at the wrong moment, make it abort.
    stream = pa.py_buffer(header[len(_MAGIC) :] + data)
    with pa.ipc.open_stream(stream, options=pa.ipc.IpcReadOptions(use_threads=False)) as reader:
        return reader.read_next_batch()


def _numbers(column: pa.Array, kind: Any) -> np.ndarray:
    """The column without a copy; nulls, which only floats have, as NaN. (Arrow's own way imports pandas.)"""
    places = slice(column.offset, column.offset + len(column))
    known, data = column.buffers()
    values = np.frombuffer(data or b"", dtype=kind)[places]
    if column.null_count == 0:
        return values
    return np.where(np.unpackbits(np.frombuffer(known, np.uint8), bitorder="little")[places], values, np.nan)
