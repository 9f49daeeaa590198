"""The validation of an index's rows, so that readers need look at nothing twice: columns, places, lengths, labels.

Digests show damage. This is for what a faulty tool has written and sealed: it is refused where a shard's rows are read,
in words, and never met as some library's error by one rank in the middle of a step.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import Bool

from ccts_dist.limits import LIMITS, MOST_MEMBER_SAMPLES
from ccts_dist.shards.format.index import MemberPlaces, ShardRows, table_to_rows

TEXTS = ("speaker", "gender", "category")
"""Columns of texts that may have no value in a row."""

_FLAC_BYTE_SAMPLES = 8_192
"""Nor can a byte of it stand for more: a frame has at most 65,535 samples and at least eight bytes."""


def place_columns_of(members: Sequence[str]) -> dict[str, pa.DataType]:
    """Columns that name where members lie."""
    kinds = {"offset": pa.int64(), "size": pa.int64(), "crc32": pa.uint32()}
    return {f"{member}.{name}": kind for member in members for name, kind in kinds.items()}


def shard_columns(targets: Sequence[str], members: Sequence[str]) -> dict[str, pa.DataType]:
    """Columns of a shard set's index."""
    texts: dict[str, pa.DataType] = dict.fromkeys(("key", *TEXTS), pa.string())
    labels: dict[str, pa.DataType] = {f"label.{target}": pa.float64() for target in targets}
    return texts | {"num_samples": pa.int64()} | labels | place_columns_of(members)


def sound_rows(columns: Mapping[str, pa.DataType], entry: Any, batch: pa.RecordBatch) -> ShardRows:
    """The rows of a shard set's shard.

    Args:
        columns: what ``shard_columns`` states of the set.
        entry: of the shard, in the manifest.

    Raises:
        ValueError: names what is wrong with them.
    """
    if fault := form_fault(batch, columns):
        raise ValueError(fault)
    rows = table_to_rows(entry.name, batch)
    if fault := rows_fault(rows, entry.size_bytes, entry.num_samples):
        raise ValueError(fault)
    return rows


def form_fault(batch: pa.RecordBatch, columns: Mapping[str, pa.DataType]) -> str:
    """In words what is wrong with a batch as such; empty if nothing is.

    Args:
        columns: name and type of every column that there must be.

    Raises:
        pyarrow.ArrowException: the batch is not what Arrow calls valid.
    """
    batch.validate(full=True)
    found = dict(zip(batch.schema.names, batch.schema.types, strict=True))
    if len(found) != batch.num_columns:
        return "a column comes twice"
    for name in dict.fromkeys([*columns, *found]):
        kind = columns.get(name, "absent")
        if (stands := found.get(name, "absent")) != kind:
            return f"column {name!r} is {stands}, and must be {kind}"
        if name not in TEXTS and not name.startswith("label.") and batch[name].null_count:
            return f"column {name!r} has no value everywhere"
    return ""


def places_fault(places: MemberPlaces, size_bytes: int, member: str, keys: Sequence[str]) -> str:
    """In words which member is stated to lie outside its shard, or to be too large; empty if none is.

    Args:
        size_bytes: of the shard, as the manifest has it.
    """
    offset, size = places.offset, places.size
    most = min(size_bytes, LIMITS.get(f"{member} member", size_bytes))
    fits = (offset >= 0) & (size >= 0) & (size <= most) & (offset <= size_bytes - size)
    return _first(~fits, lambda row: f"{member} of {keys[row]!r} lies at byte {offset[row]}, of {size[row]} bytes")


def rows_fault(rows: ShardRows, size_bytes: int, num_samples: int) -> str:
    """In words what is wrong with a shard's rows by themselves; empty if nothing is.

    Args:
        size_bytes: of the shard, as the manifest has it.
        num_samples: the same of its samples.
    """
    keys, lengths = rows.keys, rows.num_samples
    if "" in keys:
        return "a key is empty"
    if len(set(keys)) < len(keys):
        return f"key {next(key for key, count in Counter(keys).items() if count > 1)!r} is there twice"
    for member, places in rows.members.items():
        if fault := places_fault(places, size_bytes, member, keys):
            return fault
    most = np.minimum(MOST_MEMBER_SAMPLES, rows.members["flac"].size * _FLAC_BYTE_SAMPLES)
    if fault := _first(
        (lengths <= 0) | (lengths > most), lambda row: f"audio of {keys[row]!r} has {lengths[row]} samples"
    ):
        return fault
    if (total := int(lengths.sum())) != num_samples:
        return f"has {total} samples, and the manifest states {num_samples}"
    for target, labels in rows.labels.items():
        off = (labels < 0) | (labels > 1)  # NaN: nobody rated
        if fault := _first(off, lambda row, t=target, v=labels: f"label {t!r} of {keys[row]!r} is {v[row]}, not 0..1"):
            return fault
    return ""


def _first(wrong: Bool[np.ndarray, " rows"], words: Callable[[int], str]) -> str:
    return words(int(np.argmax(wrong))) if wrong.any() else ""
