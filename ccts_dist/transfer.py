"""Copies between the host and its device: queued like any other work, and waited for only where they must be."""

from collections.abc import Sequence

import torch
from torch import Tensor


def queued(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor of the host on a device: the copy is queued behind what the device has to do, and not waited for.

    The copy is from pinned memory, since CUDA makes one of pageable memory only once it has a copy of its own.
    """
    if tensor.device.type == "cpu" and device.type == "cuda" and torch.cuda.is_available() and not tensor.is_pinned():
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


def fetched(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Flat tensors on the host, by one copy of those that are on a device; the host waits for it.

    All that are on a device are of one type and on the same device.
    """
    away = [tensor for tensor in tensors if tensor.device.type != "cpu"]
    if not away:
        return list(tensors)
    arrived = iter(torch.cat(away).cpu().split([len(tensor) for tensor in away]))
    return [tensor if tensor.device.type == "cpu" else next(arrived) for tensor in tensors]
