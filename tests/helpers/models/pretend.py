"""CUDA pretended on the CPU: what would mix devices raises, and what would have the host wait for the GPU is counted.

Tensors are marked as being on the GPU or not, by their storage. Their numbers are those of the CPU all the while.
"""

import traceback
import weakref
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ccts_dist.losses.constants import forget_constants

CUDA = torch.device("cuda", 0)

_on_gpu: set[int] = set()
_NUMBERS = ("tolist", "item", "__float__", "__int__", "__bool__", "__index__")
_LOOKS = ("nonzero", "masked_select", "unique", "_local_scalar_dense", "equal", "is_nonzero", "repeat_interleave")
_NEW = ("new_zeros", "new_ones", "new_full", "new_empty", "new_tensor")


class HostWaits(Counter[str]):
    """How often the host waited, by reason and place in the source."""

    def note(self, reason: str) -> None:
        self[f"{reason} at {_place()}"] += 1

    def __str__(self) -> str:
        lines = [f"{count:4d}  {what}" for what, count in sorted(self.items())]
        return "\n".join([f"{self.total()} host waits", *lines])


@contextmanager
def pretended_gpu(parts: Iterable[Tensor]) -> Iterator[HostWaits]:
    """Within the block ``parts`` are on the GPU, and what is made there or copied there; the waits so far.

    Raises:
        AssertionError: an operator was given tensors of both devices.
    """
    for tensor in parts:
        _mark(tensor)
    waits = HostWaits()
    forget_constants()
    try:
        with _Function(waits), _Dispatch(waits):
            yield waits
    finally:
        forget_constants()


def _key(tensor: Tensor) -> int:
    with torch._C.DisableTorchFunction():
        return tensor.untyped_storage()._cdata


def _is_marked(tensor: Tensor) -> bool:
    return _key(tensor) in _on_gpu


def _mark(tensor: Tensor) -> Tensor:
    key = _key(tensor)
    if key not in _on_gpu:
        _on_gpu.add(key)
        with torch._C.DisableTorchFunction():
            weakref.finalize(tensor.untyped_storage(), _on_gpu.discard, key)
    return tensor


def _place() -> str:
    frames = [frame for frame in traceback.extract_stack() if "ccts_dist" in Path(frame.filename).parts]
    return f"{Path(frames[-1].filename).name}:{frames[-1].lineno} {frames[-1].name}" if frames else "?"


class _Dispatch(TorchDispatchMode):
    """Operators: those that mix devices, and those whose shape the host has to ask for."""

    def __init__(self, waits: HostWaits) -> None:
        super().__init__()
        self._waits = waits

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        tensors = [leaf for leaf in tree_leaves((args, kwargs or {})) if isinstance(leaf, Tensor)]
        marked = [_is_marked(tensor) for tensor in tensors]
        name = str(func).removeprefix("aten.").partition(".")[0]
        if any(marked):
            self._look_at(name, args, tensors, marked)
        out = func(*args, **(kwargs or {}))
        if any(marked):
            for leaf in tree_leaves(out):
                if isinstance(leaf, Tensor):
                    _mark(leaf)
        return out

    def _look_at(self, name: str, args: Any, tensors: list[Tensor], marked: list[bool]) -> None:
        indexes = name in ("index", "index_put", "index_put_", "_index_put_impl_")
        # Single numbers of the CPU are handed to the operator as numbers.
        foreign = [tuple(t.shape) for t, m in zip(tensors, marked, strict=True) if not m and t.dim() > 0]
        if foreign and (name == "copy_" or indexes):
            self._waits.note("copy between devices" if name == "copy_" else "index of the other device")
        else:
            assert not foreign, f"{name} mixes devices: {foreign} are on the CPU, at {_place()}"
        if name in _LOOKS:
            self._waits.note(name)
        # One number for all chosen places is written without counting them.
        counts = indexes and (name == "index" or args[2].numel() != 1)
        if counts and any(index is not None and index.dtype == torch.bool for index in args[1]):
            self._waits.note("index of a mask")


class _Function(TorchFunctionMode):
    """Python's view of tensors: devices, copies, and numbers."""

    def __init__(self, waits: HostWaits) -> None:
        super().__init__()
        self._waits = waits

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        name = getattr(func, "__name__", "")
        of_gpu = bool(args) and isinstance(args[0], Tensor) and _is_marked(args[0])
        if name == "__get__":
            about = getattr(getattr(func, "__self__", None), "__name__", "")
            if about in ("device", "is_cuda"):
                return of_gpu if about == "is_cuda" else CUDA if of_gpu else torch.device("cpu")
        elif of_gpu and name in _NUMBERS:
            self._waits.note(f".{name}()")
            with torch._C.DisableTorchFunction(), torch._C._DisableTorchDispatch():
                return func(*args, **kwargs)
        elif of_gpu and name == "numpy":
            raise AssertionError(f"numpy() of a tensor on the GPU, at {_place()}")
        elif name in ("to", "cpu", "cuda") and args and isinstance(args[0], Tensor):
            return self._moved(func, name, args, kwargs, of_gpu=of_gpu)
        elif kwargs.get("device") is not None and torch.device(kwargs["device"]).type == "cuda":
            if name in ("tensor", "as_tensor", "from_numpy"):
                self._waits.note(f"torch.{name}(..., device)")
            return _mark(func(*args, **{**kwargs, "device": "cpu"}))
        elif of_gpu and name in _NEW and kwargs.get("device") is None:
            if name == "new_tensor":
                self._waits.note("new_tensor")
            return _mark(func(*args, **kwargs))
        return func(*args, **kwargs)

    def _moved(self, func: Any, name: str, args: Any, kwargs: Any, *, of_gpu: bool) -> Any:
        """A tensor's ``to``, ``cpu`` or ``cuda``: the change of type is real, that of the device a change of marks."""
        target = {"cuda": CUDA, "cpu": torch.device("cpu")}.get(name)
        rest: list[Any] = []
        for given in args[1:]:
            if isinstance(given, torch.device | str):
                target = torch.device(given)
            elif isinstance(given, Tensor):
                target = CUDA if _is_marked(given) else torch.device("cpu")
                rest.append(given.dtype)
            else:
                rest.append(given)
        if "device" in kwargs:
            target = torch.device(kwargs.pop("device"))
        queued = kwargs.pop("non_blocking", False)
        typed = [*rest, *([kwargs["dtype"]] if kwargs.get("dtype") is not None else [])]
        out = args[0].to(*typed) if name == "to" and typed else args[0]
        wanted = of_gpu if target is None else target.type == "cuda"
        if wanted == of_gpu:
            return out
        if not (wanted and queued):  # from pinned memory the host goes on at once
            self._waits.note("copy to the GPU" if wanted else "copy to the host")
        return _Copy.apply(out, wanted)


class _Copy(torch.autograd.Function):
    """A copy on the other device."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, to_gpu: bool) -> Tensor:
        with torch._C._DisableTorchDispatch():
            out = tensor.detach().clone()
        return _mark(out) if to_gpu else out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        return gradients[0], None
