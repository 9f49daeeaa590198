"""Small tensors that never change, made once for each device.

A tensor that is made of Python numbers on a GPU, or copied there from pageable memory, has the host wait for the GPU.
"""

from collections.abc import Sequence
from functools import lru_cache

import torch
from jaxtyping import Float64
from torch import Tensor
from torch._guards import detect_fake_mode
from torch.utils.weak import WeakTensorKeyDictionary

_moved: "WeakTensorKeyDictionary" = WeakTensorKeyDictionary()


def constant(numbers: Sequence[float] | Tensor, device: torch.device) -> Float64[Tensor, " dim"]:
    """The numbers in float64 on a device; must not be written to. A tensor is taken there as it is."""
    if isinstance(numbers, Tensor):
        return numbers.to(device, non_blocking=True)
    if detect_fake_mode() is not None:  # one that has a shape and no memory is of no use to anybody else
        return torch.tensor(tuple(numbers), dtype=torch.float64, device=device)
    return _made(tuple(map(float, numbers)), device)


@lru_cache(maxsize=256)
def _made(numbers: tuple[float, ...], device: torch.device) -> Tensor:
    with torch.inference_mode(False):  # else no later graph could hold it
        return torch.tensor(numbers, dtype=torch.float64, device=device)


def moved(tensor: Tensor, like: Tensor) -> Tensor:
    """A constant tensor in the type and on the device of ``like``; copied once as long as it lives."""
    if tensor.dtype == like.dtype and tensor.device == like.device:
        return tensor
    if detect_fake_mode() is not None:
        return tensor.to(like.device, like.dtype)
    copies: dict[tuple[torch.device, torch.dtype], Tensor] | None = _moved.get(tensor)
    if copies is None:
        _moved[tensor] = copies = {}
    place = (like.device, like.dtype)
    if place not in copies:
        with torch.inference_mode(False):
            copies[place] = tensor.to(like.device, like.dtype)
    return copies[place]


def forget_constants() -> None:
    """Make them anew from now on."""
    _made.cache_clear()
    _moved.clear()
