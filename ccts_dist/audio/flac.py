"""Decoding the ``flac`` member: for the loader into its batch, and for who only wants to know whether it is sound."""

import hashlib

import numpy as np
from jaxtyping import Float32
from miniaudio import ffi, lib

_BLOCK_SAMPLES = 65_536
"""Decoded at a time by who keeps nothing: a hostile file of a few bytes may unfold to hours."""


def decode_flac(payload: bytes, out: Float32[np.ndarray, " samples"]) -> tuple[int, int, int] | None:
    """Decode into ``out``, on -1..1, if the file holds as many samples as that, in one channel.

    Returns:
        Number of samples, sample rate and number of channels; of the samples that could be decoded, when the file
        states as many as were asked for. None when it is no FLAC file.
    """
    # dr_flac: about twice as fast as libsndfile, to the same samples (tests/bench/loader/decoder.py). Its samples come
    # as 32-bit floats, which hold 16 bits exactly, straight into the batch.
    flac = lib.ma_dr_flac_open_memory(payload, len(payload), ffi.NULL)
    if flac == ffi.NULL:
        return None
    try:
        stated, rate, channels = flac.totalPCMFrameCount, flac.sampleRate, flac.channels
        if (stated, channels) != (len(out), 1):
            return stated, rate, channels
        # It leaves out frames that are damaged, and reports so by the count alone.
        return lib.ma_dr_flac_read_pcm_frames_f32(flac, len(out), ffi.from_buffer("float[]", out)), rate, channels
    finally:
        lib.ma_dr_flac_close(flac)


def flac_samples(payload: bytes, most: int) -> tuple[int, bytes]:
    """How many samples can be decoded of a file of one channel and 16 bit, and their MD5 as STREAMINFO has it.

    Args:
        most: no more than these are decoded.
    """
    digest, found = hashlib.md5(usedforsecurity=False), 0
    flac = lib.ma_dr_flac_open_memory(payload, len(payload), ffi.NULL)
    if flac == ffi.NULL:
        return 0, digest.digest()
    try:
        block = np.empty(min(most, _BLOCK_SAMPLES), "<i2")
        while found < most:
            wanted = min(most - found, len(block))
            came = lib.ma_dr_flac_read_pcm_frames_s16(flac, wanted, ffi.from_buffer("ma_int16[]", block))
            if came == 0:
                break
            found += came
            digest.update(block[:came].data)
    finally:
        lib.ma_dr_flac_close(flac)
    return found, digest.digest()
