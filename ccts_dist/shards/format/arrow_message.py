"""The memory that an Arrow record batch will take, before anything of it is unfolded.

Arrow makes room for what a compressed buffer states of itself: a batch of .35 MB can ask for gigabytes. Its message is
read here as the format's specification has it (arrow.apache.org/docs/format/Columnar.html; the tables of Message.fbs).
"""

import struct
from collections.abc import Iterator

import pyarrow as pa

from ccts_dist.limits import LIMITS

_ROWS = "index.arrow, a shard's rows"
_BUFFERS, _COMPRESSION = 2, 3
"""Fields of the table RecordBatch."""

_MOST_BUFFERS = 4_096


def check_batch(data: bytes) -> None:
    """Refuse a batch that would take more memory than ``LIMITS`` allows, or is none.

    Raises:
        ValueError: it is no single record batch, or unfolds to more.
        pyarrow.ArrowException: it is no message of Arrow's.
        EOFError: it is cut.
    """
    source = pa.BufferReader(data)
    message = pa.ipc.read_message(source)
    if message.type != "record batch":
        raise ValueError(f"is a {message.type} of Arrow, and must be a record batch")
    try:
        total = sum(_unfolded(memoryview(message.metadata), memoryview(message.body or b"")))
    except (struct.error, IndexError) as fault:
        raise ValueError(f"its Arrow message is damaged ({fault})") from fault
    if total > LIMITS[_ROWS]:
        raise ValueError(f"unfolds to {total} bytes, and may have {LIMITS[_ROWS]}")


def _unfolded(metadata: memoryview, body: memoryview) -> Iterator[int]:
    """Bytes of each buffer once it is unfolded."""
    message = _uint32(metadata, 0)
    batch = _table(metadata, message, 2)
    if batch is None:
        raise ValueError("its Arrow message has no rows")
    vector = _table(metadata, batch, _BUFFERS)
    if vector is None:
        return
    compressed = _field(metadata, batch, _COMPRESSION) is not None
    count = _uint32(metadata, vector)
    if count > _MOST_BUFFERS:
        raise ValueError(f"has {count} buffers, and may have {_MOST_BUFFERS}")
    for number in range(count):
        offset, length = struct.unpack_from("<qq", metadata, vector + 4 + 16 * number)
        if offset < 0 or length < 0 or offset + length > len(body):
            raise ValueError("has a buffer that lies outside")
        if compressed and length:
            (stated,) = struct.unpack_from("<q", body, offset)  # -1: as it stands
            length = length - 8 if stated == -1 else stated
            if length < 0:
                raise ValueError(f"has a buffer of {length} bytes")
        yield length


def _table(data: memoryview, table: int, field: int) -> int | None:
    """Place at which the table or vector that a field names begins; None where the field is absent."""
    place = _field(data, table, field)
    return None if place is None else place + _uint32(data, place)


def _field(data: memoryview, table: int, field: int) -> int | None:
    (back,) = struct.unpack_from("<i", data, table)
    layout = table - back
    if layout < 0:
        raise IndexError("a table lies outside")
    (size,) = struct.unpack_from("<H", data, layout)
    at = 4 + 2 * field
    if at + 2 > size:
        return None
    (offset,) = struct.unpack_from("<H", data, layout + at)
    return table + offset if offset else None


def _uint32(data: memoryview, at: int) -> int:
    return struct.unpack_from("<I", data, at)[0]
