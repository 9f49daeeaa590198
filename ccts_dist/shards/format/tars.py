"""Tar shards: written with WebDataset's writer, walked header by header without unpacking anything."""

import os
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from ccts_dist.errors import ShardError
from ccts_dist.files.atomic import atomic_open
from ccts_dist.limits import LIMITS

_BLOCK = 512
_HEADERS = "a shard's extended headers"
"""Those before one member, together, in ``limits.LIMITS``: far above the longest name that a file system takes."""

_LARGEST_MEMBER = 1 << 30
"""A day of speech. What claims more than this, and more than the whole file has, was never so large."""

_MAX_END_BYTES = 1 << 20
"""Tars are padded with zeros to a whole record, of 10 KiB as a rule."""

_KINDS = {
    b"0": "file",
    b"\0": "file",
    b"1": "hard link",
    b"2": "symbolic link",
    b"3": "character device",
    b"4": "block device",
    b"5": "folder",
    b"6": "pipe",
    b"g": "global extended header",
    b"S": "sparse file",
}
_WITHOUT_PAYLOAD = frozenset(b"123456")
"""Their size field means nothing; any other kind, known or not, has as many bytes as it states."""

_OTHER_FILES = {
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\xfd7zXZ\0": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"\x04\x22\x4d\x18": "lz4",
    b"\x1f\x9d": "compress (.Z)",
    b"LZIP": "lzip",
    b"]\0\0": "lzma",
    b"PK\x03\x04": "a zip archive",
    b"7z\xbc\xaf\x27\x1c": "a 7z archive",
    b"version https://git-lfs": "a Git LFS pointer",
    b"<": "a web page or XML, perhaps a server's error",
    b"{": "JSON, perhaps a server's error",
    b"fLaC": "a FLAC file",
    b"RIFF": "a wave file",
}
"""How files begin that are met in a tar's place."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TarMember:
    """Place of a member's payload in its tar."""

    name: str
    offset: int
    size: int
    kind: str
    """"file", or what else the header states it is; only files have a payload worth reading."""


class BrokenTarError(ShardError):
    """A tar that cannot be walked to its end.

    Args:
        name: of its file.
        offset: of the header, or of what stands in its place, where the walk had to stop.
        what: what is wrong there.
        no_tar: it is empty, or a file of another kind.
    """

    def __init__(self, name: str, offset: int, what: str, *, no_tar: bool = False) -> None:
        super().__init__(f"{name}: {what}. Fetch or build the shard again.")
        self.offset = offset
        self.what = what
        self.no_tar = no_tar


def write_tar(path: Path, samples: Iterable[tuple[str, Mapping[str, bytes]]]) -> None:
    """Write a tar of samples, each (escaped key, {extension: payload}); equal input gives equal bytes.

    Members of a sample stand in the order of their extensions. Time, owner, group and mode are fixed.
    """
    from webdataset.writer import TarWriter  # costs seconds to import, and readers do without it

    with atomic_open(path) as file:
        # PAX: names above 100 bytes get a header of their own, where the default format would refuse them.
        options = {"encoder": False, "mtime": 0, "user": "ccts", "group": "ccts", "mode": 0o644}
        with TarWriter(file, **options, format="PAX_FORMAT") as tar:
            for key, payloads in samples:
                tar.write({"__key__": key, **payloads})


def walk_tar(path: Path) -> Iterator[TarMember]:
    """Every member of a tar in order, from its headers alone; follows no link and unpacks nothing.

    What a header claims is believed only as far as the file goes. Time is linear in the file's size, and memory
    bounded, whatever the bytes.

    Raises:
        ShardError: the tar is cut, compressed or empty, a header is damaged, or something follows the end mark; a
            ``BrokenTarError``, which names where.
    """
    with open(path, "rb") as file:
        yield from walk_open_tar(file, path.name)


def walk_open_tar(file: BinaryIO, name: str) -> Iterator[TarMember]:
    """``walk_tar`` of a file that is open; ``name`` is for people. The file may be read elsewhere between members.

    Raises:
        ShardError: as ``walk_tar``.
    """
    return _Walk(file, name).members()


def crc32_of(data: bytes) -> int:
    """The checksum that the index keeps of every member's payload."""
    return zlib.crc32(data)


@dataclass(frozen=True, slots=True)
class _Header:
    """A ustar header, as far as it matters here."""

    name: str
    size: int | str
    """In words what is wrong with it, where it is no size."""

    kind: bytes


class _Walk:
    """One pass over the headers of an open tar."""

    def __init__(self, file: BinaryIO, name: str) -> None:
        self._file, self._name = file, name
        self._size = os.fstat(file.fileno()).st_size
        self._offset = 0
        """Offset of the header that is being looked at."""

    def members(self) -> Iterator[TarMember]:
        records: dict[str, str] = {}
        """Facts in extended headers of the member after them."""

        extended = 0
        """Their bytes."""

        while (block := self._block()) != bytes(_BLOCK):
            header = self._header(block)
            payload = self._offset + _BLOCK
            if header.kind in (b"x", b"L", b"K"):
                length = self._length(header.name, header.size)
                extended += length
                if extended > LIMITS[_HEADERS]:
                    raise self._broken(f"an extended header is damaged: it claims {extended} bytes")
                records |= self._extended(header.kind, length)
            else:
                name, kind = records.get("path", header.name), self._kind(header.kind, records)
                length = 0
                if header.kind[0] not in _WITHOUT_PAYLOAD:
                    length = self._length(name, _pax_size(records["size"]) if "size" in records else header.size)
                yield TarMember(name=name, offset=payload, size=length, kind=kind)
                records, extended = {}, 0
            self._offset = payload + -(-length // _BLOCK) * _BLOCK
        if records:
            raise self._broken("an extended header stands before the end mark, and no member after it")
        self._check_end()

    def _broken(self, what: str, *, no_tar: bool = False) -> BrokenTarError:
        return BrokenTarError(self._name, self._offset, what, no_tar=no_tar)

    def _block(self) -> bytes:
        if self._offset > self._size:  # the padding of the last member is gone
            raise self._broken(f"ends at byte {self._size} without an end mark: it was cut")
        self._file.seek(self._offset)
        block = self._file.read(_BLOCK)
        if len(block) < _BLOCK:
            if not self._size:
                raise self._broken("is empty (0 bytes)", no_tar=True)
            raise self._refuse_other_file(block) or self._broken(
                f"ends at byte {self._size} without an end mark: it was cut"
            )
        return block

    def _header(self, block: bytes) -> _Header:
        stated = _octal(block[148:156])
        counted = sum(block[:148]) + 8 * ord(" ") + sum(block[156:])
        if stated != counted:
            raise self._refuse_other_file(block) or self._broken(
                f"no member header at byte {self._offset}: the tar is damaged"
            )
        name = block[:100].split(b"\0", 1)[0].decode("utf-8", "backslashreplace")
        prefix = block[345:500].split(b"\0", 1)[0].decode("utf-8", "backslashreplace")
        if block[257:263] == b"ustar\0" and prefix:
            name = f"{prefix}/{name}"
        return _Header(name=name, size=_size(block[124:136]), kind=block[156:157])

    def _refuse_other_file(self, block: bytes) -> BrokenTarError | None:
        kinds = (kind for magic, kind in _OTHER_FILES.items() if not self._offset and block.startswith(magic))
        kind = next(kinds, None)
        return self._broken(f"is {kind}, not a plain tar", no_tar=True) if kind else None

    @staticmethod
    def _kind(kind: bytes, records: Mapping[str, str]) -> str:
        if any(key.startswith("GNU.sparse.") for key in records):
            return "sparse file"
        return _KINDS.get(kind, f"member of unknown type {kind!r}")

    def _length(self, name: str, size: int | str) -> int:
        """The size of a member, if the file has so many bytes after its header."""
        shown = short(name)
        if isinstance(size, str):
            raise self._broken(f"member {shown} has {size} (header at byte {self._offset})")
        left = self._size - self._offset - _BLOCK
        if size > left and size > max(self._size, _LARGEST_MEMBER):
            raise self._broken(
                f"member {shown} has an absurd size field: {size} bytes, and the whole file has {self._size} "
                f"(header at byte {self._offset})"
            )
        if size > left:
            raise self._broken(f"cut inside member {shown}: it claims {size} bytes, and {left} are left")
        return size

    def _extended(self, kind: bytes, length: int) -> dict[str, str]:
        data = self._file.read(length)
        if kind == b"x":
            records = _pax_records(data)
            if records is None:
                raise self._broken(f"an extended header is damaged (at byte {self._offset})")
            return records
        # Of GNU tar: "L" is the name of the member after it, "K" what a link points at, which nobody follows.
        return {"path": data.split(b"\0", 1)[0].decode("utf-8", "backslashreplace")} if kind == b"L" else {}

    def _check_end(self) -> None:
        """After the first zero block there must be a second one, and nothing but a few zeros."""
        rest = self._size - self._offset - _BLOCK
        zeros = self._file.read(_MAX_END_BYTES)
        if zeros.strip(b"\0") or rest > _MAX_END_BYTES:
            raise self._broken(
                f"bytes follow a block of zeros at byte {self._offset} ({rest} of them): the tar is damaged"
            )
        if rest < _BLOCK or rest % _BLOCK:
            raise self._broken("the end mark is cut")
        if not self._offset:
            raise self._broken(f"holds nothing but zeros ({self._size} bytes)", no_tar=True)


def short(name: str, limit: int = 120) -> str:
    """A name out of a file that may be hostile, as people can read it on a line."""
    return repr(name) if len(name) <= limit else f"{name[:limit]!r}... ({len(name)} characters)"


def _octal(field: bytes) -> int | None:
    text = field.split(b"\0", 1)[0].strip()
    if not text or any(character not in b"01234567" for character in text):
        return None
    return int(text, 8)


def _size(field: bytes) -> int | str:
    """A size field: octal digits, or with the highest bit set a binary number (GNU tar's, for 8 GiB and more)."""
    if field[0] in (0x80, 0xFF):
        size: int | None = int.from_bytes(field[1:], "big", signed=field[0] == 0xFF)
    else:
        size = _octal(field)
    if size is None:
        return f"a size field that is no number, {field!r}"
    return size if size >= 0 else f"a negative size, {size}"


def _pax_size(text: str) -> int | str:
    if text.isascii() and text.isdigit() and len(text) <= 18:
        return int(text)
    return f"no size in its extended header, {short(text)}"


def _pax_records(data: bytes) -> dict[str, str] | None:
    """The records ``<length> <key>=<value>\\n`` of an extended header; None when they are none."""
    records, start = {}, 0
    while start < len(data):
        digits = data[start : start + 8].partition(b" ")[0]
        if not digits.isdigit() or len(digits) > 7:
            return None
        end = start + int(digits)
        record = data[start + len(digits) + 1 : end]
        key, equals, value = record[:-1].partition(b"=")
        if end > len(data) or record[-1:] != b"\n" or not equals:
            return None
        records[key.decode("utf-8", "backslashreplace")] = value.decode("utf-8", "backslashreplace")
        start = end
    return records
