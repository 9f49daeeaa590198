"""Tar shards: written with WebDataset's writer, walked header by header without unpacking anything."""

import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from ccts_dist.errors import ShardError
from ccts_dist.shards.durable import whole_file

_BLOCK = 512
_MAX_PAX_BYTES = 1 << 20
_KINDS = {
    b"0": "file",
    b"\0": "file",
    b"1": "hard link",
    b"2": "symbolic link",
    b"3": "character device",
    b"4": "block device",
    b"5": "folder",
    b"6": "pipe",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class TarMember:
    """Where a member's payload lies in its tar."""

    name: str
    offset: int
    size: int
    kind: str
    """"file", or what else the header says it is; only files have a payload worth reading."""


def write_tar(path: Path, samples: Iterable[tuple[str, Mapping[str, bytes]]]) -> None:
    """Write a tar of samples, each (escaped key, {extension: payload}); equal input gives equal bytes.

    Members of a sample stand in the order of their extensions. Time, owner, group and mode are fixed.
    """
    from webdataset.writer import TarWriter  # costs seconds to import, and readers do without it

    with whole_file(path) as file:
        # PAX: names above 100 bytes get a header of their own, where the default format would refuse them.
        options = {"encoder": False, "mtime": 0, "user": "ccts", "group": "ccts", "mode": 0o644}
        with TarWriter(file, **options, format="PAX_FORMAT") as tar:
            for key, payloads in samples:
                tar.write({"__key__": key, **payloads})


def walk_tar(path: Path) -> Iterator[TarMember]:
    """Every member of a tar in order, from its headers alone; follows no link and unpacks nothing.

    Raises:
        ShardError: the tar is cut, a header is damaged, or something follows the end mark.
    """
    size = path.stat().st_size
    with open(path, "rb") as file:
        offset, extended = 0, {}
        while True:
            block = _block(file, offset, size, path)
            if block == bytes(_BLOCK):
                _check_end(file, path)
                return
            name, length, kind = _parse_header(block, path, offset)
            payload = offset + _BLOCK
            if kind == b"x":
                extended = _read_pax(file, length, path)
            else:
                length = int(extended.get("size", length))
                name = extended.get("path", name)
                kind_word = _KINDS.get(kind, f"member of unknown type {kind!r}")
                length = length if kind_word == "file" else 0
                if payload + length > size:
                    raise ShardError(f"{path.name}: cut inside member {name!r}. Fetch or build the shard again.")
                yield TarMember(name=name, offset=payload, size=length, kind=kind_word)
                extended = {}
            offset = payload + -(-length // _BLOCK) * _BLOCK
            file.seek(offset)


def crc32_of(data: bytes) -> int:
    """The checksum that the index keeps of every member's payload."""
    return zlib.crc32(data)


def _block(file: BinaryIO, offset: int, size: int, path: Path) -> bytes:
    block = file.read(_BLOCK)
    if len(block) < _BLOCK:
        raise ShardError(
            f"{path.name}: ends at byte {min(offset, size)} without an end mark: it was cut. Fetch it again."
        )
    return block


def _parse_header(block: bytes, path: Path, offset: int) -> tuple[str, int, bytes]:
    """Name, payload size and type of a ustar header."""
    stated = _octal(block[148:156])
    counted = sum(block[:148]) + 8 * ord(" ") + sum(block[156:])
    length = _octal(block[124:136])
    if stated != counted or length is None:
        raise ShardError(
            f"{path.name}: no member header at byte {offset}: the tar is damaged. Fetch or build it again."
        )
    name = block[:100].split(b"\0", 1)[0].decode("utf-8", "backslashreplace")
    prefix = block[345:500].split(b"\0", 1)[0].decode("utf-8", "backslashreplace")
    if block[257:262] == b"ustar" and prefix:
        name = f"{prefix}/{name}"
    return name, length, block[156:157]


def _octal(field: bytes) -> int | None:
    text = field.split(b"\0", 1)[0].strip()
    if not text or any(character not in b"01234567" for character in text):
        return None
    return int(text, 8)


def _read_pax(file: BinaryIO, length: int, path: Path) -> dict[str, str]:
    """The records ``<length> <key>=<value>\\n`` of an extended header."""
    fault = ShardError(f"{path.name}: an extended header is damaged. Fetch or build the shard again.")
    if length > _MAX_PAX_BYTES:
        raise fault
    data, records = file.read(length), {}
    while data:
        digits, _, _ = data.partition(b" ")
        if not digits.isdigit() or len(digits) > 7 or not len(digits) + 2 < int(digits) <= len(data):
            raise fault
        record, data = data[len(digits) + 1 : int(digits)], data[int(digits) :]
        key, equals, value = record[:-1].partition(b"=")
        if not equals or record[-1:] != b"\n" or (key == b"size" and (not value.isdigit() or len(value) > 18)):
            raise fault
        records[key.decode("utf-8", "backslashreplace")] = value.decode("utf-8", "backslashreplace")
    return records


def _check_end(file: BinaryIO, path: Path) -> None:
    """After the first zero block there must be a second one, and nothing but zeros."""
    rest = 0
    while chunk := file.read(1 << 20):
        rest += len(chunk)
        if chunk.strip(b"\0"):
            raise ShardError(
                f"{path.name}: bytes follow a block of zeros: the tar is damaged. Fetch or build it again."
            )
    if rest < _BLOCK or rest % _BLOCK:
        raise ShardError(f"{path.name}: the end mark is cut. Fetch or build the shard again.")
