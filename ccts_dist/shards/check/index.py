"""Damage in an index: the Arrow file as a whole, each shard's batch, and what its rows state by themselves."""

import hashlib
import os
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import BinaryIO

import numpy as np
import pyarrow as pa

from ccts_dist.errors import ShardError
from ccts_dist.limits import LIMITS
from ccts_dist.shards.check.findings import Finding, TarRows
from ccts_dist.shards.format.arrow_message import check_batch
from ccts_dist.shards.format.index import ARROW_FAULTS, COLUMNS_LIMIT, ROWS_LIMIT, Indexed, ShardRows
from ccts_dist.shards.format.index_validation import TEXTS
from ccts_dist.shards.format.schema import INDEX_NAME
from ccts_dist.shards.format.tars import short

_MAGIC = b"ARROW1\0\0"
_BLOCK = 512


class IndexFile:
    """An open index, which is believed in nothing: every place, length and name in it is looked at.

    Threads may read batches at the same time.
    """

    def __init__(self, file: BinaryIO, shards: Sequence[Indexed], columns: Mapping[str, pa.DataType]) -> None:
        """
        Args:
            shards: as the manifest lists them.
            columns: name and type of every column that there must be.
        """
        self._file, self._shards, self._columns = file, shards, columns
        self._size = os.fstat(file.fileno()).st_size
        self._numbers = {shard.name: number for number, shard in enumerate(shards)}
        first = shards[0].index.offset if shards else 0
        self._header = os.pread(file.fileno(), first, 0) if 0 < first <= min(self._size, LIMITS[COLUMNS_LIMIT]) else b""
        self._schema: pa.Schema | None = None

    def findings(self) -> Iterator[Finding]:
        """Faults of the file as a whole; call before ``batch``."""
        yield from self._check_places()
        if not self._shards:
            return
        try:
            schema = self._read_schema()
        except ARROW_FAULTS as error:
            yield Finding(shard=INDEX_NAME, what=f"is no Arrow file: {_first_line(error)}")
            return
        faults = [*self._check_columns(schema)]
        self._schema = None if faults else schema
        yield from faults
        yield from self._check_footer(schema)

    def _check_columns(self, schema: pa.Schema) -> Iterator[Finding]:
        found = dict(zip(schema.names, schema.types, strict=True))
        for name in dict.fromkeys([*self._columns, *found]):
            stands, wanted = found.get(name), self._columns.get(name)
            if stands != wanted:
                what = f"column {short(name)} is {_type_in_words(stands)}, and must be {_type_in_words(wanted)}"
                yield Finding(shard=INDEX_NAME, what=what)

    def _check_places(self) -> Iterator[Finding]:
        """Batches lie in the manifest's order, one directly after the other, within the file."""
        end = None
        for shard in self._shards:
            offset, size = shard.index.offset, shard.index.size
            if offset <= 0 or size <= 0 or offset + size > self._size:
                what = f"its rows are stated to lie at byte {offset} to {offset + size} of {INDEX_NAME}, which has "
                yield Finding(shard=shard.name, what=what + f"{self._size} bytes")
            elif end is not None and offset != end:
                words = "overlap those before them" if offset < end else "do not follow those before them"
                what = (
                    f"its rows are stated to lie at byte {offset} of {INDEX_NAME} and {words}, which end at byte {end}"
                )
                yield Finding(shard=shard.name, what=what)
            end = offset + size

    def _read_schema(self) -> pa.Schema:
        if self._header[: len(_MAGIC)] != _MAGIC:
            raise pa.ArrowInvalid("it does not begin with ARROW1")
        source = pa.BufferReader(self._header)
        source.seek(len(_MAGIC))
        message = pa.ipc.read_message(source)
        if message.type != "schema":  # of which Arrow would read memory that is not there
            raise pa.ArrowInvalid("it does not begin with its columns")
        schema = pa.ipc.read_schema(message)
        names = schema.names  # raises where one is no text
        if len(set(names)) != len(names):
            raise pa.ArrowInvalid("it has a column twice")
        if source.tell() != len(self._header):
            raise pa.ArrowInvalid(f"{len(self._header) - source.tell()} bytes lie between its columns and its rows")
        return schema

    def _check_footer(self, schema: pa.Schema) -> Iterator[Finding]:
        try:
            with pa.ipc.open_file(pa.PythonFile(self._file, "r")) as opened:
                found, stated = opened.num_record_batches, opened.schema
        except ARROW_FAULTS as error:
            yield Finding(shard=INDEX_NAME, what=f"its footer is damaged: {_first_line(error)}")
            return
        if found != len(self._shards):
            what = f"its footer names {found} batches of rows, and the manifest {len(self._shards)} shards"
            yield Finding(shard=INDEX_NAME, what=what)
        elif stated != schema:
            yield Finding(shard=INDEX_NAME, what="its footer has other columns than its beginning")

    def batch(self, shard: str) -> pa.RecordBatch:
        """One shard's rows, of sound form; their values are for ``value_findings``.

        Raises:
            ShardError: in words what is wrong, without the shard's name; empty words when ``findings`` has reported it.
        """
        entry = self._shards[self._numbers[shard]]
        offset, size = entry.index.offset, entry.index.size
        if self._schema is None or offset <= 0 or size <= 0 or offset + size > self._size:
            raise ShardError("")
        if size > LIMITS[ROWS_LIMIT]:
            raise ShardError(f"its rows take {size} bytes of {INDEX_NAME}, and may take {LIMITS[ROWS_LIMIT]}")
        data = os.pread(self._file.fileno(), size, offset)
        if hashlib.sha256(self._header + data).hexdigest() != entry.index.sha256:
            raise ShardError(f"its rows in {INDEX_NAME} are not those that the manifest names: it is stale or damaged")
        try:
            check_batch(data)
            source = pa.BufferReader(data)
            batch = pa.ipc.read_record_batch(pa.ipc.read_message(source), self._schema)
            batch.validate(full=True)
        except (ValueError, *ARROW_FAULTS) as error:
            raise ShardError(f"its rows in {INDEX_NAME} cannot be read: {_first_line(error)}") from error
        if batch.num_rows != entry.num_utterances:
            raise ShardError(
                f"has {batch.num_rows} rows in {INDEX_NAME}, and the manifest states {entry.num_utterances}"
            )
        for name in self._columns:
            if batch[name].null_count and name not in TEXTS and not name.startswith("label."):
                raise ShardError(f"its rows in {INDEX_NAME} have no {name} everywhere")
        # A copy has buffers as long as its rows; those of a file may be of any length that is not too short.
        return batch.take(pa.array(range(batch.num_rows)))


def place_findings(rows: TarRows, size_bytes: int) -> Iterator[Finding]:
    """Keys and places of index rows by themselves: every member within the shard, in order, none over another.

    Args:
        size_bytes: of the shard, as the manifest has it.
    """
    met: set[str] = set()
    for row, key in enumerate(rows.keys):
        if not key or any(unicodedata.category(letter) == "Cc" for letter in key):
            yield Finding(shard=rows.shard, key=key, what=f"row {row} has an empty key, or a control character in it")
        if key in met:
            yield Finding(shard=rows.shard, key=key, what="comes twice in the index")
        met.add(key)
    wrong: list[Finding] = []
    end = 0
    for row, key in enumerate(rows.keys):
        for member, where in rows.places.items():
            offset, size = int(where.offset[row]), int(where.size[row])
            if size >= 0 and offset % _BLOCK == 0 and end + _BLOCK <= offset <= offset + size <= size_bytes:
                end = offset + size
                continue
            place = f"byte {offset} to {offset + size} of {size_bytes}, after one that ends at byte {end}"
            wrong.append(Finding(shard=rows.shard, key=key, what=f"{member} is stated to lie at {place}"))
    if wrong:
        others = f", and {len(wrong) - 1} other members as badly" if len(wrong) > 1 else ""
        yield replace(wrong[0], what=f"{wrong[0].what}{others}: the index is stale or damaged")


def value_findings(rows: ShardRows, num_samples: int) -> Iterator[Finding]:
    """Lengths and labels of index rows by themselves.

    Args:
        num_samples: of the shard, as the manifest has it.
    """
    total = sum(map(int, rows.num_samples))
    if total != num_samples:
        what = f"has {total} samples in the index, and the manifest states {num_samples}"
        yield Finding(shard=rows.shard, what=what)
    for row in np.flatnonzero(rows.num_samples <= 0).tolist():
        what = f"the index states that it has {rows.num_samples[row]} samples"
        yield Finding(shard=rows.shard, key=rows.keys[row], what=what)
    for target, labels in rows.labels.items():
        for row in np.flatnonzero((labels < 0) | (labels > 1)).tolist():  # NaN: nobody rated
            what = f"the index has {labels[row]} for label {target!r}, which is not on 0..1"
            yield Finding(shard=rows.shard, key=rows.keys[row], what=what)


def known_categories(batch: pa.RecordBatch) -> set[str]:
    """Categories that occur in a shard's rows."""
    return {category for category in batch["category"].unique().to_pylist() if category is not None}


def _type_in_words(kind: pa.DataType | None) -> str:
    return "absent" if kind is None else short(str(kind))[1:-1]


def _first_line(error: BaseException) -> str:
    return short(str(error).partition("\n")[0] or type(error).__name__)[1:-1]
