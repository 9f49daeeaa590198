"""Damage to shard sets and teacher caches: one function per kind, and what makes manifests agree with it.

A "blessed" set is one whose manifest was made to agree with damaged files, as a faulty tool would leave it: only what
lies deeper than sizes and digests is left to find.
"""

import hashlib
import io
import json
import tarfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa

from ccts_dist.shards.documents import sealed_bytes
from ccts_dist.shards.durable import file_sha256
from ccts_dist.shards.index import IndexWriter

MAGIC_BYTES = 8
"""Of an Arrow file: "ARROW1" and two zeros."""


def edit_manifest(root: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change a manifest, of a set or of a cache, as the plain document that it is, and seal it anew."""
    path = root / "manifest.json"
    document = json.loads(path.read_bytes())
    change(document)
    path.write_bytes(sealed_bytes(document))


def bless(root: Path) -> None:
    """Make the manifest of a set or a cache agree with its tars and index as they are."""

    def agree(document: dict[str, Any]) -> None:
        for shard in document["shards"]:
            path = root / shard["name"]
            shard.update(size_bytes=path.stat().st_size, sha256=file_sha256(path))
        bless_index(root, document)

    edit_manifest(root, agree)


def bless_index(root: Path, document: dict[str, Any]) -> None:
    """Make a manifest document agree with the index file, batch by batch."""
    path = root / "index.arrow"
    document.update(index_size_bytes=path.stat().st_size, index_sha256=file_sha256(path))
    for shard, place in zip(document["shards"], index_places(path), strict=False):
        shard["index"] = place


def index_places(path: Path) -> list[dict[str, Any]]:
    """Where each batch of an index lies, as manifests say it, from the file itself."""
    data = path.read_bytes()
    file = pa.BufferReader(data)
    file.seek(MAGIC_BYTES)
    pa.ipc.read_message(file)
    header, places = data[: file.tell()], []
    while True:
        offset = file.tell()
        try:
            pa.ipc.read_message(file)
        except EOFError:
            return places
        batch = data[offset : file.tell()]
        digest = hashlib.sha256(header + batch).hexdigest()
        places.append({"offset": offset, "size": len(batch), "sha256": digest})


def index_tables(root: Path) -> dict[str, pa.Table]:
    """The rows of an index, by shard."""
    names = [shard["name"] for shard in json.loads((root / "manifest.json").read_bytes())["shards"]]
    with pa.ipc.open_file(root / "index.arrow") as opened:
        batches = [pa.Table.from_batches([opened.get_batch(at)]) for at in range(opened.num_record_batches)]
    return dict(zip(names, batches, strict=True))


def write_index(root: Path, tables: Mapping[str, pa.Table]) -> None:
    """Write other rows into an index; the manifest is left as it is."""
    with IndexWriter(root / "index.arrow") as index:
        for table in tables.values():
            index.add(table)


def set_values(table: pa.Table, column: str, values: Mapping[int, Any]) -> pa.Table:
    """A table with other values in some rows of a column."""
    cells = table[column].to_pylist()
    for row, value in values.items():
        cells[row] = value
    at = table.schema.get_field_index(column)
    return table.set_column(at, column, pa.array(cells, table.schema.field(column).type))


def members_of(path: Path) -> list[tuple[tarfile.TarInfo, bytes]]:
    """Headers and payloads of a tar of plain files."""
    with tarfile.open(path) as opened:
        return [(member, opened.extractfile(member).read()) for member in opened]  # pyright: ignore


def write_members(path: Path, members: list[tuple[tarfile.TarInfo, bytes]]) -> None:
    """Write a tar anew."""
    with tarfile.open(path, "w") as opened:
        for member, data in members:
            opened.addfile(member, io.BytesIO(data))
