"""MP3 frames: how many there are, whether one is cut or damaged, and whether several files were joined end to end.

libsndfile reads as many frames as the first file's header states, or as many as it guesses from the first frame.
"""

import os
import struct
from dataclasses import dataclass

from ccts_dist.audio.views import Opened, read_at

_KBITS_1 = (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320)
_KBITS_2 = (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160)
_RATES = (44_100, 48_000, 32_000)
"""Layer III of MPEG 1 and of MPEG 2 and 2.5 (ISO 11172-3, 13818-3)."""

_PAGE = 1 << 18
_LYRICS = 1 << 17
"""Bytes read at a time, and of the longest Lyrics3 tag."""

_MORE_FRAMES = 3
_MORE_SHARE = 0.02
"""Frames beyond the stated number that writers of headers miscount; more are another file's."""

_JOINED = "holds several MP3 streams one after the other; write it anew as one"


@dataclass(frozen=True, slots=True, kw_only=True)
class Mp3Frames:
    """The frames of an MP3."""

    samples: int
    """Per channel, in a file that does not state their number; 0 in one that does."""

    fault: str
    """In words, why its audio would not be decoded as a whole; "" if it would."""


@dataclass(frozen=True, slots=True)
class _Frame:
    size: int
    samples: int
    kind: tuple[int, bool]
    """Sample rate in Hz, and whether it is mono: equal for all frames of a stream."""

    side_bytes: int
    """Between its header and its audio."""


class _Paged:
    """Random access to a file, a page at a time."""

    def __init__(self, file: Opened) -> None:
        self._file, self._page, self._first = file, b"", 0
        self.size = file.seek(0, os.SEEK_END)

    def at(self, at: int, size: int) -> bytes:
        """So many bytes, fewer at the end."""
        first = at - self._first
        if not 0 <= first <= len(self._page) - size:
            self._first, first = at, 0
            self._page = read_at(self._file, at, max(size, _PAGE))
        return self._page[first : first + size]


def is_mp3(head: bytes) -> bool:
    """True for a file that begins with an ID3v2 tag or a frame of layer III."""
    return head[:3] == b"ID3" or (len(head) > 1 and head[0] == 0xFF and head[1] & 0xE6 == 0xE2)


def begins_with_frames(file: Opened, at: int) -> bool:
    """True where two frames of one kind, one after the other, begin at an offset."""
    first = _frame(read_at(file, at, 4))
    second = _frame(read_at(file, at + first.size, 4)) if first else None
    return first is not None and second is not None and first.kind == second.kind


def look_at_mp3(file: Opened) -> Mp3Frames:
    """Walk the frames of an MP3. Where no frame is found at all, nothing is reported."""
    data = _Paged(file)
    at, end = id3_bytes(data.at(0, 10)), _end_of_frames(data)
    first = data.at(at, 200)
    if _has_tag(first):
        stated, tag = _stated_frames(first), _frame(first)
        if _is_joined(data, at, end, stated):
            return Mp3Frames(samples=0, fault=_JOINED)
        if stated is not None or tag is None:
            return Mp3Frames(samples=0, fault="")
        at += tag.size  # the decoder guesses then as it does without a tag
    samples, fault = _walk(data, at, end)
    return Mp3Frames(samples=samples, fault=fault)


def id3_bytes(data: bytes) -> int:
    """Length of an ID3v2 tag that data begins with; its size field has 7 bits a byte (ID3v2, section 3.1)."""
    if data[:3] != b"ID3" or len(data) < 10:
        return 0
    return 10 + sum((byte & 0x7F) << shift for byte, shift in zip(data[6:10], (21, 14, 7, 0), strict=True))


def _walk(data: _Paged, at: int, end: int) -> tuple[int, str]:
    """Samples of an MP3 that does not state their number, and which frame is cut, damaged or of another stream."""
    samples, length, kind = 0, 0, None
    while at + 4 <= end:
        frame = _frame(data.at(at, 4))
        if frame is None:
            tag = _tag_between(data, at) if samples else 0
            if tag:
                at += tag
                continue
            lost = samples and end - at >= length  # less than a frame at the end is no audio
            return samples, f"is damaged: no MP3 frame at byte {at}, where one should begin" if lost else ""
        kind = kind or frame.kind
        if frame.kind != kind:
            return samples, _JOINED
        length = frame.size
        if at + length > end:
            return samples, f"is cut: its last MP3 frame has {end - at} of {length} bytes" if samples else ""
        at, samples = at + length, samples + frame.samples
    return samples, ""


def _is_joined(data: _Paged, at: int, end: int, stated: int | None) -> bool:
    """True if another file follows the one whose first frame, at an offset, states its number of frames.

    Damage is left to the decoder, which holds what it finds against that number.
    """
    first = _frame(data.at(at, 4))
    if first is None:
        return False
    at, frames = at + first.size, 0
    most = None if stated is None else stated + max(_MORE_FRAMES, int(_MORE_SHARE * stated))
    while at + 4 <= end:
        frame = _frame(data.at(at, 4))
        if frame is None:
            at = _next_frames(data, at, end)
            if at < 0:
                break
            continue
        if _begins_stream(data.at(at, 64), frame):
            return True
        at, frames = at + frame.size, frames + 1
    return most is not None and frames > most


def _next_frames(data: _Paged, at: int, end: int) -> int:
    """Next offset at which two frames of one kind begin; -1 if nowhere."""
    tag = _tag_between(data, at)
    if tag:
        return at + tag
    at += 1
    while at + 4 <= end:
        block = data.at(at, min(_PAGE, end - at))
        found = block.find(b"\xff")
        if found < 0:
            at += len(block)
            continue
        at += found
        frame = _frame(data.at(at, 4))
        following = _frame(data.at(at + frame.size, 4)) if frame else None
        if frame and following and frame.kind == following.kind:
            return at
        at += 1
    return -1


def _tag_between(data: _Paged, at: int) -> int:
    """Length of an ID3 tag, of either version, that begins at an offset; 0 for none."""
    tag = id3_bytes(data.at(at, 10))
    return tag or (128 if data.at(at, 3) == b"TAG" and _frame(data.at(at + 128, 4)) else 0)


def _end_of_frames(data: _Paged) -> int:
    """Place at which the tags behind the frames begin: ID3v1 last, APE and Lyrics3 before it; ID3v2 is met on the
    way."""
    end = data.size - 128 if data.at(max(0, data.size - 128), 3) == b"TAG" and data.size >= 128 else data.size
    before = -1
    while end != before:
        before, footer = end, data.at(max(0, end - 32), min(end, 32))
        if footer[:8] == b"APETAGEX" and len(footer) == 32:
            # The size is that of items and footer; the highest flag states that there is a header too.
            size, flags = struct.unpack("<12xI4xI8x", footer)
            end -= size + (32 if flags >> 31 else 0)
        elif footer.endswith((b"LYRICS200", b"LYRICSEND")):
            first = max(0, end - _LYRICS)
            found = data.at(first, end - first).rfind(b"LYRICSBEGIN")
            end = first + found if found >= 0 else -1
        if end < 0:
            return before  # no tag after all
    return end


def _has_tag(frame: bytes) -> bool:
    """True for a frame, or its beginning, that states the number of frames in place of audio."""
    return any(name in frame[4:64] for name in (b"Xing", b"Info", b"VBRI"))


def _begins_stream(data: bytes, frame: _Frame) -> bool:
    """True for a frame with such a header at its very place, which audio has there once in 10^18 frames."""
    at = 4 + frame.side_bytes
    xing = data[at : at + 4] in (b"Xing", b"Info") and data[at + 4 : at + 7] == bytes(3)
    return xing or data[36:42] == b"VBRI\0\1"


def _stated_frames(frame: bytes) -> int | None:
    """The number of frames that such a frame states; None if it leaves that out, or never learned it (0)."""
    at = frame.find(b"VBRI", 4)
    if at >= 0:
        return int.from_bytes(frame[at + 14 : at + 18], "big") or None if len(frame) >= at + 18 else None
    at = max(frame.find(b"Xing", 4), frame.find(b"Info", 4))
    flags = int.from_bytes(frame[at + 4 : at + 8], "big")
    return int.from_bytes(frame[at + 8 : at + 12], "big") or None if flags & 1 and len(frame) >= at + 12 else None


def _frame(header: bytes) -> _Frame | None:
    """A frame of layer III, from its first four bytes; None if this is none."""
    if len(header) < 4:
        return None
    version, layer = header[1] >> 3 & 3, header[1] >> 1 & 3
    rate, kbits = header[2] >> 2 & 3, header[2] >> 4
    if header[0] != 0xFF or header[1] & 0xE0 != 0xE0 or version == 1 or layer != 1 or rate == 3 or not 0 < kbits < 15:
        return None
    samples = 1152 if version == 3 else 576
    rate_hz = _RATES[rate] >> {3: 0, 2: 1, 0: 2}[version]
    bits = 1000 * (_KBITS_1 if version == 3 else _KBITS_2)[kbits]
    size = samples // 8 * bits // rate_hz + (header[2] >> 1 & 1)
    mono = header[3] >> 6 == 3
    side_bytes = (17 if mono else 32) if version == 3 else (9 if mono else 17)
    return _Frame(size, samples, (rate_hz, mono), side_bytes)
