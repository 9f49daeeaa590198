"""What an audio file says of its own length, to find the ones that were cut.

libsndfile reads a WAV, AIFF, AU or W64 that ends early as a shorter file, an Ogg stream that lacks any of its pages
too, and an MP3 without a count of its frames as long as it guesses. So the structure is looked at before: headers and
pages, no audio.
"""

import io
import os
import re
import struct
import zlib

Opened = io.BufferedReader | io.BytesIO

_SLACK_BYTES = 44
"""Some writers of WAV count their own header (44 bytes) into the audio's size; that much may be missing, 1.4 ms."""

_ENDLESS = 0x7FFF_0000
"""Writers to a pipe state this size or a larger one (FFmpeg 2^32 - 1, SoX 2^31 - 4096): the length is not known."""

_PAGE = b"OggS\0"
_PAGE_HEADER = 27
"""How a page of an Ogg stream begins, and bytes before the list of its parts' lengths (RFC 3533, section 6)."""

_BLOCK = 65_536

_MIRRORED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))
"""Each byte with its bits in the other order."""

_HEADER_LIMIT = 1 << 20
_CHUNK_LIMIT = 10_000
_WHOLE_LIMIT = 1 << 28
"""Bytes and chunks that are looked at, whatever a header says."""

_KBITS_1 = (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320)
_KBITS_2 = (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160)
_RATES = (44_100, 48_000, 32_000)
"""Layer III of MPEG 1 and of MPEG 2 and 2.5 (ISO 11172-3, 13818-3)."""


def missing_audio(file: Opened) -> str:
    """In words, that the file's structure says audio is missing; "" if it does not say so.

    Knows RIFF (WAV, RF64), AIFF, AU, W64, CAF, NIST SPHERE, Ogg and MP3; FLAC is left to its decoder. A header that
    states no length, as written to a pipe, is taken at its word.
    """
    size = file.seek(0, os.SEEK_END)
    if size == 0:
        return "is an empty file"
    head = _read_at(file, 0, 16)
    if head[:4] == b"OggS":
        return _damaged_ogg(file)
    if _is_mp3(head):
        _, missing = _walk_mp3(file, size)
        return missing
    place = _stated_place(file, head, size)
    if place is None:
        return ""
    start, stated = place
    there = max(0, size - start)
    slack = _SLACK_BYTES if head[:4] == b"RIFF" else 0
    return f"is cut: {there} of {stated} bytes of audio" if there + slack < stated else ""


def mp3_samples(file: Opened) -> int:
    """Samples per channel of an MP3 that does not state their number; 0 for any other file.

    libsndfile then guesses from the first frame, and reads no further than its guess.
    """
    if not _is_mp3(_read_at(file, 0, 16)):
        return 0
    samples, _ = _walk_mp3(file, file.seek(0, os.SEEK_END))
    return samples


def with_length(file: Opened) -> Opened:
    """The file, or a copy in memory whose header states a length: that of a WAV which was never finished.

    A recorder that writes to a pipe may leave the size of the audio at 0. libsndfile would find none there.
    """
    head, size = _read_at(file, 0, 4), file.seek(0, os.SEEK_END)
    place = _chunk(file, size, b"data", "<") if head == b"RIFF" and size <= _WHOLE_LIMIT else None
    if place is not None and place[1] == 0 and place[0] < size and not _only_chunks(file, place[0], size):
        whole = bytearray(_read_at(file, 0, size))
        whole[place[0] - 4 : place[0]] = b"\xff" * 4
        return io.BytesIO(whole)
    file.seek(0)
    return file


def _only_chunks(file: Opened, at: int, size: int) -> bool:
    """Whether chunks, and no audio, fill the rest of a RIFF file."""
    for _ in range(_CHUNK_LIMIT):
        head = _read_at(file, at, 8)
        if len(head) < 8:
            return at >= size
        if not head[:4].decode("latin-1").isprintable():
            return False
        length = struct.unpack("<I", head[4:])[0]
        at += 8 + length + length % 2
    return False


def _stated_place(file: Opened, head: bytes, size: int) -> tuple[int, int] | None:
    """Where the audio begins, and how many bytes the header says it has; None where that is not said."""
    kind, place = head[:4], None
    if kind in (b"RIFF", b"RIFX", b"RF64"):
        place = _chunk(file, size, b"data", ">" if kind == b"RIFX" else "<")
        if place is not None and kind == b"RF64" and place[1] == 0xFFFF_FFFF:
            start = (_chunk(file, size, b"ds64", "<") or (size, 0))[0]
            sizes = _read_at(file, start, 16)
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
    """Where the body of a chunk begins, and its stated size."""
    at = 12
    for _ in range(_CHUNK_LIMIT):
        if at + 8 > size:
            break
        found, length = struct.unpack(f"{order}4sI", _read_at(file, at, 8))
        if found == name:
            return at + 8, length
        at += 8 + length + length % 2
    return None


def _caf_data(file: Opened, size: int) -> tuple[int, int] | None:
    at = 8
    for _ in range(_CHUNK_LIMIT):
        if at + 12 > size:
            break
        name, length = struct.unpack(">4sq", _read_at(file, at, 12))
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
        name, length = struct.unpack("<4s12xQ", _read_at(file, at, 24))
        if name == b"data":
            return at + 24, length - 24
        at += max(24, length + -length % 8)
    return None


def _sphere_data(file: Opened) -> tuple[int, int] | None:
    lines = _read_at(file, 0, 1024).split(b"\n")
    start = int(lines[1]) if len(lines) > 1 and lines[1].strip().isdigit() else 0
    header = _read_at(file, 0, min(start, _HEADER_LIMIT)).decode("latin-1")
    facts = {name: int(value) for name, value in re.findall(r"^(\w+) -i (\d+)$", header, re.MULTILINE)}
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
                return "holds several Ogg streams one after the other; write it anew as one"
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
    return "is cut: its last Ogg page is not the end of the stream" if unfinished else ""


def _ogg_page(file: Opened, at: int) -> bytes:
    """The page that begins there; empty if the file ends before it does."""
    header = _read_at(file, at, _PAGE_HEADER + 255)
    lengths = header[_PAGE_HEADER : _PAGE_HEADER + header[26]] if len(header) >= _PAGE_HEADER else b""
    if len(header) < _PAGE_HEADER or len(lengths) < header[26]:
        return b""
    length = _PAGE_HEADER + len(lengths) + sum(lengths)
    page = _read_at(file, at, length)
    return page if len(page) == length else b""


def _ogg_checksum(page: bytes) -> bytes:
    """What a page must have in its bytes 22 to 25: a CRC-32 of the rest, of zlib's polynomial, from the highest bit."""
    mirrored = (page[:22] + bytes(4) + page[26:]).translate(_MIRRORED)
    return (zlib.crc32(mirrored, 0xFFFF_FFFF) ^ 0xFFFF_FFFF).to_bytes(4, "big").translate(_MIRRORED)


def _find(file: Opened, wanted: bytes, at: int) -> int:
    """Where these bytes come next; -1 if they do not."""
    while len(block := _read_at(file, at, len(wanted))) == len(wanted):
        if block == wanted:
            return at
        found = (block := _read_at(file, at, _BLOCK)).find(wanted)
        if found >= 0:
            return at + found
        at += max(1, len(block) - len(wanted) + 1)
    return -1


def _is_mp3(head: bytes) -> bool:
    return head[:3] == b"ID3" or (len(head) > 1 and head[0] == 0xFF and head[1] & 0xE6 == 0xE2)


def _walk_mp3(file: Opened, size: int) -> tuple[int, str]:
    """Samples of an MP3 that does not state their number, and in words which frame was cut or damaged.

    An MP3 that does is held against its number when it is decoded. Where no frame is found at all, nothing is said.
    """
    if size > _WHOLE_LIMIT:
        return 0, ""
    data = _read_at(file, 0, size)
    at, end, samples, length = _id3_bytes(data), _mp3_end(data), 0, 0
    if any(name in data[at : at + 200] for name in (b"Xing", b"Info", b"VBRI")):
        return 0, ""
    while at + 4 <= end:
        frame = _mp3_frame(data[at : at + 4])
        if frame is None and samples and (tag := _id3_bytes(data[at : at + 10])):
            at += tag
            continue
        if frame is None:
            lost = samples and end - at >= length  # less than a frame at the end is no audio
            return samples, f"is damaged: no MP3 frame at byte {at}, where one should begin" if lost else ""
        length, per_frame = frame
        if at + length > end:
            return samples, f"is cut: its last MP3 frame has {end - at} of {length} bytes" if samples else ""
        at, samples = at + length, samples + per_frame
    return samples, ""


def _id3_bytes(data: bytes) -> int:
    """Length of the tag in front; its size field has 7 bits a byte (ID3v2, section 3.1)."""
    if data[:3] != b"ID3" or len(data) < 10:
        return 0
    return 10 + sum((byte & 0x7F) << shift for byte, shift in zip(data[6:10], (21, 14, 7, 0), strict=True))


def _mp3_end(data: bytes) -> int:
    """Where the tags behind the frames begin: ID3v1 last, APE and Lyrics3 before it; ID3v2 is met on the way."""
    end = len(data) - 128 if data[-128:-125] == b"TAG" else len(data)
    before = -1
    while end != before:
        before, footer = end, data[max(0, end - 32) : end]
        if footer[:8] == b"APETAGEX" and len(footer) == 32:
            # The size is that of items and footer; the highest flag says that there is a header too.
            size, flags = struct.unpack("<12xI4xI8x", footer)
            end -= size + (32 if flags >> 31 else 0)
        elif footer.endswith((b"LYRICS200", b"LYRICSEND")):
            end = data.rfind(b"LYRICSBEGIN", 0, end)
        if end < 0:
            return before  # no tag after all
    return end


def _mp3_frame(header: bytes) -> tuple[int, int] | None:
    """Bytes and samples of a frame of layer III, from its first four bytes; None if this is none."""
    version, layer = header[1] >> 3 & 3, header[1] >> 1 & 3
    rate, kbits = header[2] >> 2 & 3, header[2] >> 4
    if header[0] != 0xFF or header[1] & 0xE0 != 0xE0 or version == 1 or layer != 1 or rate == 3 or not 0 < kbits < 15:
        return None
    samples = 1152 if version == 3 else 576
    rate_hz = _RATES[rate] >> {3: 0, 2: 1, 0: 2}[version]
    bits = 1000 * (_KBITS_1 if version == 3 else _KBITS_2)[kbits]
    return samples // 8 * bits // rate_hz + (header[2] >> 1 & 1), samples


def _read_at(file: Opened, at: int, size: int) -> bytes:
    file.seek(at)
    return file.read(size)
