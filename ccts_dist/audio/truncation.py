"""The length that an audio file states, to find files that were cut.

libsndfile reads a WAV, AIFF, AU or W64 that ends early as a shorter file, an Ogg stream that lacks any of its pages
too, and an MP3 without a count of its frames as long as it guesses. So the structure is looked at before: headers and
pages, no audio.
"""

import os
import re
import struct
import zlib

from ccts_dist.audio.mp3 import begins_with_frames, id3_bytes, is_mp3, look_at_mp3
from ccts_dist.audio.views import Opened, read_at

_SLACK_BYTES = 44
"""Some writers of WAV count their own header (44 bytes) into the audio's size; that much may be missing, 1.4 ms."""

_ENDLESS = 0x7FFF_0000
"""Writers to a pipe state this size or a larger one (FFmpeg 2^32 - 1, SoX 2^31 - 4096): the length is not known."""

_PAGE = b"OggS\0"
_PAGE_HEADER = 27
"""How a page of an Ogg stream begins, and bytes before the list of its parts' lengths (RFC 3533, section 6)."""

_BLOCK = 1 << 20

_MIRRORED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))
"""Each byte with its bits in the other order."""

_HEADER_LIMIT = 1 << 20
_CHUNK_LIMIT = 10_000
_MOST_TAGS = 100
"""Bytes, chunks and tags that are looked at, whatever a header states."""

_DIGITS = 18
"""Most digits of a number in a text header: more than any file has bytes."""

_WHOLE_HEADER = re.compile(rb"(?:RIFF|RF64).{4}WAVEfmt ", re.DOTALL)
_FLAC_HEADER = re.compile(rb"fLaC[\x00\x80]\x00\x00\x22")
"""How a WAV and a FLAC begin, with bytes enough that audio does not have them by chance."""


def missing_audio(file: Opened) -> str:
    """In words, that a file's structure states audio is missing, or would be left undecoded; "" if it does not report
    so.

    Knows RIFF (WAV, RF64), AIFF, AU, W64, CAF, NIST SPHERE, Ogg, FLAC and MP3. Whether a FLAC is complete is left to
    its decoder. A header that states no length, as written to a pipe, is taken at its word. Of files of one kind that
    were joined end to end decoders give the first alone.
    """
    size = file.seek(0, os.SEEK_END)
    if size == 0:
        return "is an empty file"
    head = read_at(file, 0, 16)
    if head[:4] == b"OggS":
        return _damaged_ogg(file)
    if is_mp3(head):
        return look_at_mp3(file).fault
    if head[:4] == b"fLaC":
        return _joined("FLAC files") if _search(file, _FLAC_HEADER, 4) >= 0 else ""
    place = _stated_place(file, head, size)
    if place is None:
        endless = head[:4] in (b"RIFF", b"RF64") and _search(file, _WHOLE_HEADER, 4) >= 0
        return _joined("WAV files") if endless else ""
    start, stated = place
    there = max(0, size - start)
    slack = _SLACK_BYTES if head[:4] == b"RIFF" else 0
    if there + slack < stated:
        return f"is cut: {there} of {stated} bytes of audio"
    if head[:4] in (b"RIFF", b"RF64") and stated == 0:
        return _joined("WAV files") if _search(file, _WHOLE_HEADER, start) >= 0 else ""
    return _joined("files of its kind") if _begins_again(file, head, start + stated) else ""


def audio_start(file: Opened) -> int:
    """Offset of the first byte that is neither zero nor tag, in files whose audio begins behind zeros; else 0.

    Recorders and download tools leave zeros there, which libsndfile takes for no format. Behind a tag alone MP3 frames
    are found by all; a file of another kind begins where its own header does.
    """
    at, zeros = 0, 0
    for _ in range(_MOST_TAGS):
        block = read_at(file, at, _HEADER_LIMIT)
        tag = id3_bytes(block)
        if tag:
            at += tag
            continue
        blank = len(block) - len(block.lstrip(b"\0"))
        if not blank:
            break
        at, zeros = at + blank, zeros + blank
    begins = read_at(file, at, 4)
    known = begins in (b"RIFF", b"RIFX", b"RF64", b"FORM", b"OggS", b"fLaC", b"caff", b".snd")
    return at if known or (zeros and begins_with_frames(file, at)) else 0


def length_patch(file: Opened) -> dict[int, bytes]:
    """The bytes to be read in place of a header's own, by offset: a length for a WAV that was never finished.

    A recorder that writes to a pipe may leave the size of the audio at 0. libsndfile would find none there.
    """
    head, size = read_at(file, 0, 4), file.seek(0, os.SEEK_END)
    place = _chunk(file, size, b"data", "<") if head == b"RIFF" else None
    if place is not None and place[1] == 0 and place[0] < size and not _only_chunks(file, place[0], size):
        return {place[0] - 4: b"\xff" * 4}
    return {}


def _joined(kind: str) -> str:
    return f"holds several {kind} one after the other; write it anew as one"


def _begins_again(file: Opened, head: bytes, end: int) -> bool:
    """True where behind the audio a file of the same kind begins: at once, or after padding and other chunks."""
    magic, size = head[:4], file.seek(0, os.SEEK_END)
    if magic in (b"riff", b"NIST"):
        return read_at(file, end, 16) == head
    order = "<" if magic in (b"RIFF", b"RF64") else ">"
    for at in (end, end + end % 2):
        for _ in range(_CHUNK_LIMIT):
            chunk = read_at(file, at, 8)
            if len(chunk) < 8 or chunk[:4] == magic:
                return len(chunk) == 8
            if magic in (b".snd", b"dns.", b"caff") or not chunk[:4].decode("latin-1").isprintable():
                break
            length = struct.unpack(f"{order}I", chunk[4:])[0]
            at += 8 + length + length % 2
            if at >= size:
                break
    return False


def _only_chunks(file: Opened, at: int, size: int) -> bool:
    """True if chunks, and no audio, fill the rest of a RIFF file."""
    for _ in range(_CHUNK_LIMIT):
        head = read_at(file, at, 8)
        if len(head) < 8:
            return at >= size
        if not head[:4].decode("latin-1").isprintable():
            return False
        length = struct.unpack("<I", head[4:])[0]
        at += 8 + length + length % 2
    return False


def _stated_place(file: Opened, head: bytes, size: int) -> tuple[int, int] | None:
    """Place at which the audio begins, and how many bytes the header states it has; None where that is not stated."""
    kind, place = head[:4], None
    if kind in (b"RIFF", b"RIFX", b"RF64"):
        place = _chunk(file, size, b"data", ">" if kind == b"RIFX" else "<")
        if place is not None and kind == b"RF64" and place[1] == 0xFFFF_FFFF:
            start = (_chunk(file, size, b"ds64", "<") or (size, 0))[0]
            sizes = read_at(file, start, 16)
            place = (place[0], struct.unpack("<8xQ", sizes)[0]) if len(sizes) == 16 else None
        elif place is not None and place[1] >= _ENDLESS:
            place = None
    elif kind == b"FORM":
        place = _chunk(file, size, b"SSND", ">")
    elif kind in (b".snd", b"dns."):
        start, stated = struct.unpack(">II" if kind == b".snd" else "<II", head[4:12].ljust(8, b"\0"))
        place = (start, stated) if stated < _ENDLESS else None
    elif kind == b"caff":
        place = _caf_data(file, size)
    elif head[:16] == b"riff.\x91\xcf\x11\xa5\xd6(\xdb\x04\xc1\x00\x00":
        place = _w64_data(file, size)
    elif head[:7] == b"NIST_1A":
        place = _sphere_data(file)
    return place


def _chunk(file: Opened, size: int, name: bytes, order: str) -> tuple[int, int] | None:
    """Place at which the body of a chunk begins, and its stated size."""
    at = 12
    for _ in range(_CHUNK_LIMIT):
        if at + 8 > size:
            break
        found, length = struct.unpack(f"{order}4sI", read_at(file, at, 8))
        if found == name:
            return at + 8, length
        at += 8 + length + length % 2
    return None


def _caf_data(file: Opened, size: int) -> tuple[int, int] | None:
    at = 8
    for _ in range(_CHUNK_LIMIT):
        if at + 12 > size:
            break
        name, length = struct.unpack(">4sq", read_at(file, at, 12))
        if length < 0:
            return None  # -1: up to the end of the file
        if name == b"data":
            return at + 12, length
        at += 12 + length
    return None


def _w64_data(file: Opened, size: int) -> tuple[int, int] | None:
    at = 40
    for _ in range(_CHUNK_LIMIT):
        if at + 24 > size:
            break
        name, length = struct.unpack("<4s12xQ", read_at(file, at, 24))
        if name == b"data":
            return at + 24, length - 24
        at += max(24, length + -length % 8)
    return None


def _sphere_data(file: Opened) -> tuple[int, int] | None:
    lines = read_at(file, 0, 1024).split(b"\n")
    size = lines[1].strip() if len(lines) > 1 else b""
    start = int(size) if size.isdigit() and len(size) <= _DIGITS else 0
    header = read_at(file, 0, min(start, _HEADER_LIMIT)).decode("latin-1")
    found = re.findall(r"^(\w+) -i (\d+)$", header, re.ASCII | re.MULTILINE)
    facts = {name: int(value) for name, value in found if len(value) <= _DIGITS}
    if "shorten" in header or not {"sample_count", "sample_n_bytes"} <= facts.keys():
        return None
    return start, facts["sample_count"] * facts["sample_n_bytes"] * facts.get("channel_count", 1)


def _damaged_ogg(file: Opened) -> str:
    """In words, which page of an Ogg file is damaged or missing; bytes between pages are passed over.

    A decoder takes no page whose checksum is wrong, and goes on behind it.
    """
    following: dict[bytes, int] = {}
    unfinished: set[bytes] = set()
    all_begun, at = False, _find(file, _PAGE, 0)
    while at >= 0:
        page = _ogg_page(file, at)
        if not page:
            return "is cut: its last Ogg page is not whole"
        if page[22:26] != _ogg_checksum(page):
            return f"is damaged: its Ogg page at byte {at} does not match its checksum"
        flags, serial, number = struct.unpack_from("<5xB8x4sI", page)
        if flags & 2:
            if all_begun:
                return _joined("Ogg streams")
            following[serial] = number
            unfinished.add(serial)
        else:
            all_begun = True
        if following.get(serial) != number:
            return f"is damaged: Ogg pages are missing before byte {at}"
        following[serial] = (number + 1) & 0xFFFF_FFFF
        if flags & 4:
            unfinished.discard(serial)
        at = _find(file, _PAGE, at + len(page))
    if unfinished:
        return (
            "has no end mark in its last Ogg page, so it may be cut; if it is complete, write it anew "
            "(ffmpeg -i FILE -c copy NEW)"
        )
    return ""


def _ogg_page(file: Opened, at: int) -> bytes:
    """The page that begins there; empty if the file ends before it does."""
    header = read_at(file, at, _PAGE_HEADER + 255)
    lengths = header[_PAGE_HEADER : _PAGE_HEADER + header[26]] if len(header) >= _PAGE_HEADER else b""
    if len(header) < _PAGE_HEADER or len(lengths) < header[26]:
        return b""
    length = _PAGE_HEADER + len(lengths) + sum(lengths)
    page = read_at(file, at, length)
    return page if len(page) == length else b""


def _ogg_checksum(page: bytes) -> bytes:
    """The checksum in bytes 22 to 25 of a page: a CRC-32 of the rest, of zlib's polynomial, from the highest bit."""
    mirrored = (page[:22] + bytes(4) + page[26:]).translate(_MIRRORED)
    return (zlib.crc32(mirrored, 0xFFFF_FFFF) ^ 0xFFFF_FFFF).to_bytes(4, "big").translate(_MIRRORED)


def _find(file: Opened, wanted: bytes, at: int) -> int:
    """Next offset of these bytes; -1 if they do not come."""
    if read_at(file, at, len(wanted)) == wanted:
        return at
    return _search(file, re.compile(re.escape(wanted)), at)


def _search(file: Opened, wanted: re.Pattern[bytes], at: int) -> int:
    """Next offset that matches a pattern of fewer than 32 bytes; -1 if none does."""
    while block := read_at(file, at, _BLOCK):
        found = wanted.search(block)
        if found:
            return at + found.start()
        if len(block) < _BLOCK:
            break
        at += len(block) - 32
    return -1
