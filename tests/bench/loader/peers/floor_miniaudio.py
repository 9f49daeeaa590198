"""The floor with the other decoder: what is left of a gap when both sides decode with dr_flac."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from material import Padded
from miniaudio import ffi, lib
from peers import floor

prepare = floor.prepare


def batches(folder: Path, workers: int) -> Iterator[Padded]:
    """One epoch."""
    return floor.loop(folder, workers, _decode)


def _decode(payload: bytes, out: np.ndarray) -> None:
    flac = lib.ma_dr_flac_open_memory(payload, len(payload), ffi.NULL)
    got = lib.ma_dr_flac_read_pcm_frames_f32(flac, len(out), ffi.cast("float *", out.ctypes.data))
    lib.ma_dr_flac_close(flac)
    assert got == len(out)
