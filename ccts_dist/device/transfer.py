"""Copies between the host and its device: queued like any other work, and waited for only where they must be."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import TypeVar

import torch
from torch import Tensor

Answer = TypeVar("Answer")


def queued(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor of the host on a device: the copy is queued behind what the device has to do, and not waited for.

    The copy is from pinned memory, since CUDA makes one of pageable memory only once it has a copy of its own.
    """
    if tensor.device.type == "cpu" and device.type == "cuda" and torch.cuda.is_available() and not tensor.is_pinned():
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


class SideStream:
    """A stream for copies that run beside what the device is computing; where there is no GPU they are made at once."""

    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" and torch.cuda.is_available() else None

    def run(self, copy: Callable[[], Answer]) -> Callable[[], Answer]:
        """Queue copies now. The result takes them up: what is queued afterwards waits for them, and the host does not.

        Args:
            copy: queues them, and gives a dataclass whose tensors they fill, or a tuple of such.
        """
        stream = self._stream
        if stream is None:
            answer = copy()
            return lambda: answer
        with torch.cuda.stream(stream):
            copied = copy()
            done = stream.record_event()

        def take() -> Answer:
            current = torch.cuda.current_stream(stream.device)
            current.wait_event(done)
            for tensor in tensors_of(copied):
                if tensor.is_cuda:
                    tensor.record_stream(current)  # else its memory could be given away while it is in use
            return copied

        return take


def tensors_of(value: object) -> Iterator[Tensor]:
    """All tensors in a dataclass, and in those, tuples and mappings that it holds."""
    if isinstance(value, Tensor):
        yield value
    elif is_dataclass(value) and not isinstance(value, type):
        for field in fields(value):
            yield from tensors_of(getattr(value, field.name))
    elif isinstance(value, tuple | list):
        for one in value:
            yield from tensors_of(one)
    elif isinstance(value, Mapping):
        yield from tensors_of(tuple(value.values()))


def fetched(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Flat tensors on the host, by one copy of those that are on a device; the host waits for it.

    All that are on a device are of one type and on the same device.
    """
    on_device = [tensor for tensor in tensors if tensor.device.type != "cpu"]
    if not on_device:
        return list(tensors)
    arrived = iter(torch.cat(on_device).cpu().split([len(tensor) for tensor in on_device]))
    return [tensor if tensor.device.type == "cpu" else next(arrived) for tensor in tensors]
