"""Which decoder the loader uses, and why: time, one thread and two, exactness, and what each makes of damage.

    python tests/bench/loader/decoder.py
    python tests/bench/loader/decoder.py --utterances 60 --repeats 3

16 kHz mono FLAC of noise shaped like speech, in memory. Times are the best of the repeats, the decoders taking turns.
Decoders that are not installed are omitted with the reason. Prints Markdown; nothing passes or fails on a time.
"""

import argparse
import importlib
import io
import threading
import time
import zlib
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import soundfile
import speech
from miniaudio import ffi, lib

Decode = Callable[[bytes, np.ndarray], int]
"""Fill a float32 row with a payload's samples; the number of samples that came."""

_DAMAGES_EACH = 300


def soundfile_float32(payload: bytes, out: np.ndarray) -> int:
    """libsndfile, floats straight into the row: the floor's way."""
    with soundfile.SoundFile(io.BytesIO(payload)) as file:
        return len(file.read(dtype="float32", out=out)) if file.frames == len(out) else file.frames


def soundfile_int16(payload: bytes, out: np.ndarray) -> int:
    """libsndfile, whole numbers, scaled into the row."""
    with soundfile.SoundFile(io.BytesIO(payload)) as file:
        samples = file.read(dtype="int16")
    np.multiply(samples, np.float32(1 / 32768), out=out[: len(samples)])
    return len(samples)


def miniaudio_float32(payload: bytes, out: np.ndarray) -> int:
    """dr_flac, floats straight into the row: the loader's way."""
    return _dr_flac(payload, out, lib.ma_dr_flac_read_pcm_frames_f32, "float[]")


def miniaudio_int16(payload: bytes, out: np.ndarray) -> int:
    """dr_flac, whole numbers, scaled into the row."""
    samples = np.empty(len(out), np.int16)
    got = _dr_flac(payload, samples, lib.ma_dr_flac_read_pcm_frames_s16, "ma_int16[]")
    np.multiply(samples, np.float32(1 / 32768), out=out)
    return got


def _dr_flac(payload: bytes, out: np.ndarray, read: Any, kind: str) -> int:
    flac = lib.ma_dr_flac_open_memory(payload, len(payload), ffi.NULL)
    if flac == ffi.NULL:
        raise ValueError("cannot be opened")
    try:
        return read(flac, len(out), ffi.from_buffer(kind, out))
    finally:
        lib.ma_dr_flac_close(flac)


def pyav(payload: bytes, out: np.ndarray) -> int:
    """FFmpeg through PyAV."""
    av = importlib.import_module("av")
    got = 0
    with av.open(io.BytesIO(payload)) as container:
        for frame in container.decode(audio=0):
            samples = frame.to_ndarray()[0]
            np.multiply(samples, np.float32(1 / 32768), out=out[got : got + len(samples)])
            got += len(samples)
    return got


def torchcodec(payload: bytes, out: np.ndarray) -> int:
    """FFmpeg through torchcodec."""
    samples = importlib.import_module("torchcodec.decoders").AudioDecoder(payload).get_all_samples().data[0].numpy()
    out[:] = samples
    return len(samples)


DECODERS: dict[str, Decode] = {
    "libsndfile, float32": soundfile_float32,
    "libsndfile, int16 and scaled": soundfile_int16,
    "dr_flac (miniaudio), float32": miniaudio_float32,
    "dr_flac (miniaudio), int16 and scaled": miniaudio_int16,
    "FFmpeg (PyAV)": pyav,
    "FFmpeg (torchcodec)": torchcodec,
}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--utterances", type=int, default=200, metavar="N")
    parser.add_argument("--repeats", type=int, default=7, metavar="N")
    options = parser.parse_args()
    samples = [speech.utterance(float(s), n) for n, s in enumerate(speech.durations(options.utterances))]
    payloads = [speech.flac(one) for one in samples]
    share = sum(map(len, payloads)) / sum(one.nbytes for one in samples)
    print(
        f"{len(samples)} utterances of {np.mean([len(one) for one in samples]) / 16_000:.1f} s on average, "
        f"FLAC {share:.0%} of 16 bit PCM, best of {options.repeats} turns.\n"
    )
    _print_times(samples, payloads, options.repeats)
    _print_checksums(payloads, options.repeats)
    _print_damage(samples, payloads)


def _print_times(samples: Sequence[np.ndarray], payloads: Sequence[bytes], repeats: int) -> None:
    right, absent = {}, {}
    for name, decode in DECODERS.items():
        try:
            right[name] = _exact(decode, samples, payloads)
        except (ImportError, OSError, RuntimeError) as error:
            absent[name] = (str(error).strip().splitlines() or [type(error).__name__])[0][:100]
    best: dict[str, list[float]] = {name: [np.inf] * 3 for name in right}
    for _ in range(repeats):
        for name, seconds in best.items():
            for number, taken in enumerate(_times(DECODERS[name], samples, payloads)):
                seconds[number] = min(seconds[number], taken)
    print("| decoder | ms per utterance, one thread | CPU ms | two threads | libsndfile's samples, bit by bit |")
    print("|---|---|---|---|---|")
    for name, seconds in best.items():
        one, cpu, two = (1000 * taken / len(samples) for taken in seconds)
        print(f"| {name} | {one:.2f} | {cpu:.2f} | {two:.2f} (x {one / two:.1f}) | {'yes' if right[name] else 'NO'} |")
    for name, reason in absent.items():
        print(f"| {name} | not here: {reason} | | | |")


def _exact(decode: Decode, samples: Sequence[np.ndarray], payloads: Sequence[bytes]) -> bool:
    exact = True
    for whole, payload in zip(samples, payloads, strict=True):
        out = np.full(len(whole), 7.0, np.float32)
        reference, _ = soundfile.read(io.BytesIO(payload), dtype="float32")
        reference_int16, _ = soundfile.read(io.BytesIO(payload), dtype="int16")
        exact &= decode(payload, out) == len(out) and np.array_equal(out, reference)
        exact &= np.array_equal((out * 32768).astype(np.int16), reference_int16) and np.array_equal(
            reference_int16, whole
        )
    return exact


def _times(decode: Decode, samples: Sequence[np.ndarray], payloads: Sequence[bytes]) -> tuple[float, float, float]:
    rows = [np.zeros(len(one), np.float32) for one in samples]

    def decode_every(step: int, first: int) -> None:
        for payload, row in zip(payloads[first::step], rows[first::step], strict=True):
            decode(payload, row)

    start, cpu_start = time.perf_counter(), time.process_time()
    decode_every(1, 0)
    one, cpu = time.perf_counter() - start, time.process_time() - cpu_start
    threads = [threading.Thread(target=decode_every, args=(2, first)) for first in (0, 1)]
    start = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return one, cpu, time.perf_counter() - start


def _print_checksums(payloads: Sequence[bytes], repeats: int) -> None:
    """The checksum alone, and what it does to the decoding that follows: wide registers left dirty slow it down."""
    print("\n| CRC-32 | us per utterance, alone | us, checksum and dr_flac in turn |\n|---|---|---|")
    checks: dict[str, Callable[[bytes], int]] = {"none": lambda _: 0, "zlib": zlib.crc32}
    for name in ("zlib_ng.zlib_ng", "isal.isal_zlib"):
        try:
            checks[name.split(".")[0]] = importlib.import_module(name).crc32
        except ImportError:
            print(f"| {name.split('.')[0]} | not here | |")
    alone = dict.fromkeys(checks, np.inf)
    both = dict.fromkeys(checks, np.inf)
    row = np.zeros(16_000 * 12, np.float32)
    for _ in range(repeats):
        for name, check in checks.items():
            start = time.process_time()
            for payload in payloads:
                check(payload)
            alone[name] = min(alone[name], time.process_time() - start)
            start = time.process_time()
            for payload in payloads:
                check(payload)
                miniaudio_float32(payload, row)
            both[name] = min(both[name], time.process_time() - start)
    for name in checks:
        print(f"| {name} | {1e6 * alone[name] / len(payloads):.0f} | {1e6 * both[name] / len(payloads):.0f} |")


def _print_damage(samples: Sequence[np.ndarray], payloads: Sequence[bytes]) -> None:
    names = ("libsndfile, float32", "dr_flac (miniaudio), float32")
    found: dict[str, Counter[str]] = {name: Counter() for name in names}
    rng = np.random.default_rng(0)
    kinds = ("cut", "512 zero bytes", "a flipped bit")
    for kind in kinds:
        for number in range(_DAMAGES_EACH):
            damaged = bytearray(payloads[number % len(payloads)])
            at = int(rng.integers(200, len(damaged) - 600))
            if kind == "cut":
                del damaged[at:]
            elif kind == "512 zero bytes":
                damaged[at : at + 512] = bytes(512)
            else:
                damaged[at] ^= 1 << int(rng.integers(8))
            for name in names:
                found[name][_outcome(DECODERS[name], bytes(damaged), samples[number % len(payloads)])] += 1
    print(f"\nOf {_DAMAGES_EACH} payloads each with {', '.join(kinds)}:\n")
    for name, counts in found.items():
        print(f"- {name}: " + ", ".join(f"{count} {outcome}" for outcome, count in counts.most_common()))


def _outcome(decode: Decode, payload: bytes, whole: np.ndarray) -> str:
    out = np.zeros(len(whole), np.float32)
    try:
        got = decode(payload, out)
    except (soundfile.SoundFileError, ValueError):
        return "raised"
    if got != len(out):
        return "gave too few samples, without an error"
    return "hidden" if not np.array_equal(out, whole / np.float32(32768)) else "unharmed"


if __name__ == "__main__":
    main()
