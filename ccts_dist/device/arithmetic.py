"""How a GPU computes: float32 as it is or in TF32, and which attention kernels may be taken.

TF32 rounds what enters a matrix product or a convolution to ten bits. It is several times as fast, and torch takes it
for convolutions and GRUs unless a flag forbids it: float32 would then mean one thing in a product and another in a
convolution, and no command would agree with the next beyond three digits.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock

import torch

_lock = Lock()
_within = 0
_before = (False, False)


@contextmanager
def exact_float32() -> Iterator[None]:
    """Products and convolutions of float32 numbers are not rounded to TF32 within the block, in any thread.

    Blocks may lie within each other and in several threads at a time: the last to end puts back what was.
    """
    global _within, _before
    with _lock:
        if _within == 0:
            _before = _flags()
        _within += 1
        _set_flags(False, False)
    try:
        yield
    finally:
        with _lock:
            _within -= 1
            if _within == 0:
                _set_flags(*_before)


@contextmanager
def tf32() -> Iterator[None]:
    """Products and convolutions of float32 numbers are in TF32 within the block, less any ``exact_float32`` in it."""
    before = _flags()
    _set_flags(True, True)
    try:
        yield
    finally:
        _set_flags(*before)


def tf32_is_on() -> bool:
    """True if products of float32 matrices would be in TF32; convolutions are, unless somebody has turned it off."""
    return _flags()[0]


def avoid_plans_per_shape() -> None:
    """Take no attention of cuDNN's: it makes a plan for every number of rows and frames, half a second each."""
    torch.backends.cuda.enable_cudnn_sdp(False)


def _flags() -> tuple[bool, bool]:
    return bool(torch.backends.cuda.matmul.allow_tf32), bool(torch.backends.cudnn.allow_tf32)


def _set_flags(products: bool, convolutions: bool) -> None:
    torch.backends.cuda.matmul.allow_tf32 = products
    torch.backends.cudnn.allow_tf32 = convolutions
