"""Readers of audio under changed files, for seconds of CPU time: ``python -m tests.helpers.faults.fuzz_audio SECONDS
SEED FOLDER``.

Each input is a file of a known format, changed by one to four strokes. It is decoded from memory and from a file, as a
whole and in blocks, and a piece of it is read as augmentation does. An answer is audio or words; anything else ends
the process, as does a gigabyte of memory. The input at fault stays in FOLDER.
"""

import io
import random
import signal
import struct
import sys
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import numpy as np
import soundfile

from ccts_dist.audio.blocks import decode_blocks
from ccts_dist.audio.convert import Decoded, decode_audio
from ccts_dist.audio.decode import UNREADABLE, open_audio
from ccts_dist.audio.limits import AudioLimits
from ccts_dist.train.memory.peak import peak_resident_bytes

MOST_BYTES = 1_000_000_000
LONGEST_S = 60
"""CPU time of one input; ten times as long for one that waits."""

_NUMBERS = (0, 1, 2, 0x7F, 0xFF, 0x7FFF, 0xFFFF, 0x7FFF_FFFF, 0x8000_0000, 0xFFFF_FFFF, 1 << 62, (1 << 64) - 1)


def seeds() -> list[bytes]:
    """A short file of each container and encoding, and headers of text."""
    noise = np.random.default_rng(0).uniform(-0.3, 0.3, 6_000)
    found = []
    for form, subtype, rate, channels in (
        ("WAV", "PCM_16", 16_000, 1), ("WAV", "FLOAT", 44_100, 2), ("WAV", "IMA_ADPCM", 8_000, 1),
        ("WAV", "MS_ADPCM", 8_000, 1), ("WAV", "GSM610", 8_000, 1), ("WAV", "ULAW", 8_000, 1),
        ("WAVEX", "PCM_24", 48_000, 6),
        ("RF64", "PCM_16", 16_000, 1), ("FLAC", "PCM_16", 16_000, 1), ("FLAC", "PCM_24", 48_000, 2),
        ("OGG", "VORBIS", 44_100, 1), ("OGG", "OPUS", 48_000, 2), ("MP3", "MPEG_LAYER_III", 44_100, 1),
        ("MP3", "MPEG_LAYER_III", 16_000, 2), ("NIST", "PCM_16", 16_000, 1), ("AIFF", "PCM_16", 16_000, 1),
        ("AU", "PCM_16", 8_000, 1), ("W64", "PCM_16", 16_000, 1), ("CAF", "ALAC_16", 44_100, 2),
    ):  # fmt: skip
        file = io.BytesIO()
        samples = np.stack([noise] * channels, axis=1)
        soundfile.write(file, samples, rate, format=form, subtype=subtype)
        found.append(file.getvalue())
    facts = b"channel_count -i 1\nsample_count -i 900\nsample_n_bytes -i 2\nsample_rate -i 16000\nend_head\n"
    found.append((b"NIST_1A\n   1024\n" + facts).ljust(1024, b"\n") + bytes(1800))
    mp3 = found[12]
    found.append(mp3[mp3.find(mp3[:2], 4) :])
    return found


def changed(draw: random.Random, known: list[bytes]) -> bytes:
    """One of the files after a few strokes."""
    data = bytearray(draw.choice(known))
    for _ in range(draw.randint(1, 4)):
        draw.choice(_STROKES)(draw, data, known)
    return bytes(data[: 4 << 20])


def _place(draw: random.Random, data: bytearray) -> int:
    """Mostly within the headers."""
    most = len(data) if draw.random() < 0.3 else min(len(data), 120)
    return draw.randrange(max(1, most))


def _flip(draw: random.Random, data: bytearray, _: list[bytes]) -> None:
    for _ in range(draw.randint(1, 8)):
        if data:
            data[_place(draw, data)] = draw.randrange(256)


def _number(draw: random.Random, data: bytearray, _: list[bytes]) -> None:
    at, size = _place(draw, data), draw.choice("BHIQ")
    packed = struct.pack(draw.choice("<>") + size, draw.choice(_NUMBERS) & (1 << 8 * struct.calcsize(f"<{size}")) - 1)
    data[at : at + len(packed)] = packed


def _cut(draw: random.Random, data: bytearray, _: list[bytes]) -> None:
    del data[draw.randrange(len(data) + 1) :]


def _join(draw: random.Random, data: bytearray, known: list[bytes]) -> None:
    between = bytes(draw.choice((0, 0, 1, 700)))
    data += between + draw.choice(known)


def _insert(draw: random.Random, data: bytearray, _: list[bytes]) -> None:
    at = draw.choice((0, _place(draw, data)))
    data[at:at] = draw.choice(
        (bytes(draw.randint(1, 5_000)), draw.randbytes(200), b"ID3\x03\0\0\0\0\x02\0" + bytes(256))
    )


def _digits(draw: random.Random, data: bytearray, _: list[bytes]) -> None:
    """A number of a text header grows."""
    places = [at for at in range(min(len(data), 400)) if 48 <= data[at] < 58]
    if places:
        at = draw.choice(places)
        data[at:at] = b"9" * draw.choice((1, 10, 20, 5_000))


def _repeat(draw: random.Random, data: bytearray, _: list[bytes]) -> None:
    at, size = _place(draw, data), draw.randint(1, 400)
    data[at:at] = data[at : at + size] * draw.randint(1, 200)


_STROKES: tuple[Callable[[random.Random, bytearray, list[bytes]], None], ...] = (
    _flip, _flip, _number, _number, _cut, _join, _insert, _digits, _repeat,
)  # fmt: skip


def read_every_way(data: bytes, path: Path) -> None:
    """Decode as every command does."""
    path.write_bytes(data)
    for answer in (decode_audio(io.BytesIO(data), max_duration_s=60.0), decode_audio(path, max_duration_s=60.0)):
        assert isinstance(answer, Decoded) or (answer and answer.isprintable()), answer
    for block in islice(decode_blocks(path), 20):
        assert isinstance(block, np.ndarray) or block.isprintable(), block
    try:
        with open_audio(path, AudioLimits()) as file:
            piece = file.piece(min(100, file.num_frames // 2), 20_000)
    except UNREADABLE:
        return
    assert piece.ndim == 1


def main(seconds: float, first: int, folder: Path) -> int:
    """The number of inputs that were read until the time was over."""
    known, path, end, count = seeds(), folder / "input.audio", time.process_time() + seconds, 0
    while time.process_time() < end:
        signal.setitimer(signal.ITIMER_PROF, LONGEST_S)
        signal.alarm(10 * LONGEST_S)
        read_every_way(changed(random.Random(first + count), known), path)
        taken = peak_resident_bytes()
        assert taken < MOST_BYTES, f"{taken} bytes of memory"
        count += 1
    return count


if __name__ == "__main__":
    num_inputs = main(float(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
    print(f"{num_inputs} inputs, {peak_resident_bytes() >> 20} MiB")
