"""What one batch of an index unfolds to is read from its message, before anything is unfolded."""

import contextlib
import io

import pyarrow as pa
import pytest

from ccts_dist.shards.format.arrow_message import check_batch


def batch_bytes(table: pa.Table) -> bytes:
    """The message of a table's only batch, zstd-compressed."""
    file = io.BytesIO()
    with pa.ipc.new_stream(file, table.schema, options=pa.ipc.IpcWriteOptions(compression="zstd")) as writer:
        writer.write_table(table)
    source = pa.BufferReader(file.getvalue())
    pa.ipc.read_message(source)
    return file.getvalue()[source.tell() :]


def test_what_a_batch_unfolds_to_is_read_from_its_message():
    check_batch(batch_bytes(pa.table({"a": pa.array(["x"] * 9), "b": pa.array([0.5] * 9)})))
    with pytest.raises(ValueError, match="unfolds to 150000"):
        check_batch(batch_bytes(pa.table({"a": pa.array(["x" * 15_000_000] * 10)})))


def test_a_message_that_is_no_batch_is_refused():
    with pytest.raises(ValueError, match="is a schema of Arrow"):
        check_batch(pa.schema([("a", pa.string())]).serialize().to_pybytes())
    with pytest.raises(ValueError, match="is a dictionary of Arrow"):
        check_batch(batch_bytes(pa.table({"a": pa.array(["x"] * 9).dictionary_encode()})))


def test_a_batch_of_very_many_buffers_is_refused():
    with pytest.raises(ValueError, match="has 4200 buffers, and may have 4096"):
        check_batch(batch_bytes(pa.table({f"c{number}": pa.array([1]) for number in range(2_100)})))


def test_a_batch_whose_message_has_no_rows_or_a_buffer_too_short_for_its_length_is_refused():
    whole = batch_bytes(pa.table({"a": pa.array(["x"] * 9)}))
    size, message = int.from_bytes(whole[4:8], "little"), 8  # behind the mark and the length of the message
    table = message + int.from_bytes(whole[message : message + 4], "little")
    layout = table - int.from_bytes(whole[table : table + 4], "little", signed=True)
    data = bytearray(whole)
    data[layout + 8 : layout + 10] = bytes(2)  # field 2: the rows
    with pytest.raises(ValueError, match="its Arrow message has no rows"):
        check_batch(bytes(data))
    body = len(pa.ipc.read_message(pa.BufferReader(whole)).body)
    data, refused = bytearray(whole), []
    for at in range(message, message + size - 16, 8):  # the buffers are somewhere among these
        data[at : at + 16] = (body - 4).to_bytes(8, "little") + (4).to_bytes(8, "little")
        with contextlib.suppress(pa.ArrowException, OSError):
            try:
                check_batch(bytes(data))
            except ValueError as error:
                refused.append(str(error))
        data[at : at + 16] = whole[at : at + 16]
    assert any("its Arrow message is damaged (unpack_from requires a buffer" in words for words in refused)
