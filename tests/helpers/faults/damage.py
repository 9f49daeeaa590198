"""Damage to shard sets and teacher caches: one function per kind, and what makes manifests agree with it.

A "blessed" set is one whose manifest was made to agree with damaged files, as a faulty tool would leave it: only what
lies deeper than sizes and digests is left to find.
"""

import bz2
import gzip
import hashlib
import io
import json
import lzma
import os
import shutil
import tarfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from ccts_dist.files.atomic import file_sha256
from ccts_dist.shards.format.index_writer import IndexWriter
from ccts_dist.shards.format.sealed_json import sealed_bytes
from ccts_dist.shards.format.tars import TarMember, crc32_of, walk_tar

BLOCK = 512
MAGIC_BYTES = 8
"""Of an Arrow file: "ARROW1" and two zeros."""

COMPRESSORS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "bzip2": bz2.compress,
    "xz": lzma.compress,
    "zstd": lambda data: pa.compress(data, codec="zstd", asbytes=True),
}
"""By the name that the checker gives them."""

Members = list[tuple[tarfile.TarInfo, bytes]]


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
        path = root / "index.arrow"
        document.update(index_size_bytes=path.stat().st_size, index_sha256=file_sha256(path))
        for shard, place in zip(document["shards"], index_places(path), strict=False):
            shard["index"] = place

    edit_manifest(root, agree)


def bless_bytes(root: Path) -> None:
    """Make a manifest agree with its files, of whatever bytes: batches stay where they were reported to lie."""

    def agree(document: dict[str, Any]) -> None:
        data = (root / "index.arrow").read_bytes()
        document.update(index_size_bytes=len(data), index_sha256=hashlib.sha256(data).hexdigest())
        header = data[: document["shards"][0]["index"]["offset"]]
        for shard in document["shards"]:
            path, place = root / shard["name"], shard["index"]
            shard.update(size_bytes=path.stat().st_size, sha256=file_sha256(path))
            batch = data[place["offset"] : place["offset"] + place["size"]]
            place["sha256"] = hashlib.sha256(header + batch).hexdigest()

    edit_manifest(root, agree)


def bless_crc(root: Path, shard: str) -> None:
    """Make the checksums in the index agree with a damaged tar too, so that only the contents are left to report."""
    table = index_tables(root)[shard]
    for column in [name for name in table.schema.names if name.endswith(".crc32")]:
        member = column.removesuffix(".crc32")
        offsets, sizes = table[f"{member}.offset"].to_pylist(), table[f"{member}.size"].to_pylist()
        data = (root / shard).read_bytes()
        checksums = [crc32_of(data[at : at + size]) for at, size in zip(offsets, sizes, strict=True)]
        table = set_values(table, column, dict(enumerate(checksums)))
    write_index(root, index_tables(root) | {shard: table})
    bless(root)


def edit_condition(cache: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change the condition of a cache; its manifest is left as it is."""
    document = json.loads((cache / "condition.json").read_bytes())
    change(document)
    (cache / "condition.json").write_text(json.dumps(document))


def bless_condition(cache: Path) -> None:
    """Make the manifest agree with the condition."""
    digest = file_sha256(cache / "condition.json")
    edit_manifest(cache, lambda document: document["teacher"].update(condition_sha256=digest))


def index_places(path: Path) -> list[dict[str, Any]]:
    """Where each batch of an index lies, as manifests state it, from the file itself."""
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


def change_index(root: Path, shard: str, column: str, values: Mapping[int, Any]) -> None:
    """Put other values into rows of the index; the manifest is left as it is."""
    tables = index_tables(root)
    write_index(root, tables | {shard: set_values(tables[shard], column, values)})


def member_of(root: Path, shard: str, row: int, member: str) -> TarMember:
    """Where a member lies in a sound shard."""
    return [found for found in walk_tar(root / shard) if found.name.endswith(f".{member}")][row]


def overwrite(path: Path, at: int, data: bytes) -> None:
    """Put other bytes into a file."""
    with open(path, "r+b") as file:
        file.seek(at)
        file.write(data)


def flip(path: Path, at: int, bit: int = 0) -> None:
    """Flip one bit of a file."""
    with open(path, "rb") as file:
        file.seek(at)
        (byte,) = file.read(1)
    overwrite(path, at, bytes([byte ^ 1 << bit]))


def flip_in_member(root: Path, shard: str, row: int, member: str) -> None:
    """One bit of audio, text or teacher's output."""
    found = member_of(root, shard, row, member)
    flip(root / shard, found.offset + found.size // 2)


def flip_in_header(root: Path, shard: str, row: int, member: str) -> None:
    """One bit of the name in a tar header."""
    flip(root / shard, member_of(root, shard, row, member).offset - BLOCK)


def zero_in_member(root: Path, shard: str, row: int, member: str) -> int:
    """A block of zeros in the middle of a payload, as a disk that lost a block leaves it; gives its place."""
    found = member_of(root, shard, row, member)
    at = found.offset + -(-found.size // BLOCK) // 2 * BLOCK
    assert at + BLOCK <= found.offset + found.size, "the payload is too short for a whole block"
    overwrite(root / shard, at, bytes(BLOCK))
    return at


def zero_header(root: Path, shard: str, row: int, member: str) -> int:
    """A block of zeros in a header's place; gives its place."""
    at = member_of(root, shard, row, member).offset - BLOCK
    overwrite(root / shard, at, bytes(BLOCK))
    return at


def cut_inside(root: Path, shard: str, row: int, member: str) -> None:
    """The file ends in the middle of a payload."""
    found = member_of(root, shard, row, member)
    os.truncate(root / shard, found.offset + found.size // 2)


def cut_between(root: Path, shard: str, row: int, member: str, *, end_mark: bool) -> None:
    """The file ends before a member; with an end mark it is a whole tar."""
    os.truncate(root / shard, member_of(root, shard, row, member).offset - BLOCK)
    if end_mark:
        with open(root / shard, "ab") as file:
            file.write(bytes(2 * BLOCK))


def members_of(path: Path) -> Members:
    """Headers and payloads of a tar of plain files."""
    with tarfile.open(path) as opened:
        return [(member, opened.extractfile(member).read()) for member in opened]  # pyright: ignore


def write_members(path: Path, members: Members) -> None:
    """Write a tar anew."""
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as opened:
        for member, data in members:
            opened.addfile(member, io.BytesIO(data))


def reorder(root: Path, shard: str, order: Sequence[int]) -> None:
    """The members of a tar in another order; some may be omitted, or come twice."""
    members = members_of(root / shard)
    write_members(root / shard, [members[number] for number in order])


def swap_members(root: Path, shard: str, one: int, other: int) -> None:
    """Two members in each other's place."""
    order = list(range(len(members_of(root / shard))))
    order[one], order[other] = other, one
    reorder(root, shard, order)


def add_member(root: Path, shard: str, name: str, kind: bytes = tarfile.REGTYPE, data: bytes = b"") -> None:
    """One more member, behind the others."""
    member = tarfile.TarInfo(name)
    member.type, member.size = kind, len(data)
    member.linkname = "/etc/passwd" if kind in (tarfile.SYMTYPE, tarfile.LNKTYPE) else ""
    write_members(root / shard, [*members_of(root / shard), (member, data)])


def replace_payload(root: Path, shard: str, row: int, member: str, data: bytes) -> None:
    """Other bytes, of no greater length, in a member's place; padded with blanks."""
    found = member_of(root, shard, row, member)
    assert len(data) <= found.size
    overwrite(root / shard, found.offset, data.ljust(found.size))


def set_size_field(root: Path, shard: str, row: int, member: str, field: bytes) -> None:
    """Other bytes in a header's size field, and a checksum that agrees."""
    at = member_of(root, shard, row, member).offset - BLOCK
    block = bytearray((root / shard).read_bytes()[at : at + BLOCK])
    block[124:136] = field
    block[148:156] = b" " * 8
    block[148:156] = f"{sum(block):06o}".encode() + b"\0 "
    overwrite(root / shard, at, bytes(block))


def add_extended_header(root: Path, shard: str, number: int, records: Mapping[str, str]) -> None:
    """An extended header with records of one's own before a member; all that follow move."""
    members = members_of(root / shard)
    members[number][0].pax_headers = dict(records)
    write_members(root / shard, members)


def compress(root: Path, shard: str, kind: str) -> None:
    """A compressed tar under the plain one's name; ``kind`` is one of ``COMPRESSORS``."""
    (root / shard).write_bytes(COMPRESSORS[kind]((root / shard).read_bytes()))


def empty(root: Path, shard: str) -> None:
    """A file of no bytes."""
    (root / shard).write_bytes(b"")


def only_zeros(root: Path, shard: str) -> None:
    """A file of the right size that was never written."""
    (root / shard).write_bytes(bytes((root / shard).stat().st_size))


def lose(root: Path, name: str) -> None:
    """A file that is not there."""
    (root / name).unlink()


def copy_shard(root: Path, shard: str, name: str) -> None:
    """A tar that no manifest names."""
    shutil.copy(root / shard, root / name)


def take_from(root: Path, other: Path, name: str) -> None:
    """A file of another build in this one's place."""
    shutil.copy(other / name, root / name)


def leave_over(root: Path) -> list[str]:
    """What a builder that was killed leaves; gives the names."""
    (root / ".building").mkdir()
    (root / ".building" / "Train-000000.tar.json").write_text("{}")
    (root / ".Train-000007.tar.partial").write_bytes(b"half")
    return [".Train-000007.tar.partial", ".building"]
