"""Access to each parameter's float32 weight and optimizer state on this rank, for every ZeRO stage.

The other half of ``train.zero.engine``: that one drives DeepSpeed, this one knows how its optimizers are laid out. What
comes out of ``gather`` and goes into ``restore`` knows neither stages nor ranks: whole tensors by the parameter's name.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from ccts_dist.distributed import Ranks, broadcast_object
from ccts_dist.files.safetensors_stream import Entry

WEIGHTS = "weights"
"""The kind of tensor that every parameter has; other kinds are the optimizer's: exp_avg, exp_avg_sq, step."""

AVERAGE = "average"
"""The kind that is the exponential moving average of each trained parameter, where there is one."""

STEP = "step"
"""The kind that is one number per parameter, and that the optimizer keeps once for all it steps together."""

_PIECE = 1 << 20
"""Elements that are exchanged at a time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """The run of one parameter's elements that this rank keeps; it may be none."""

    flat: Tensor
    """The tensor that holds it, among others'; of a trained parameter, the one that the torch optimizer steps."""

    offset: int
    """Start of the run in ``flat``."""

    start: int
    """Start in the parameter, as if that were flat."""

    count: int

    def of(self, tensor: Tensor) -> Tensor:
        """The run's part of a tensor that is laid out like ``flat``, as a view."""
        return tensor.detach().view(-1)[self.offset : self.offset + self.count]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Value:
    """One name of the model's state dict."""

    entry: Entry
    piece: Piece
    trained: bool
    spread: bool
    """False when every rank has the whole of it: then rank 0's is taken."""


class ZeroState:
    """The weights and optimizer state of a model under DeepSpeed. Every rank must make it, after ``prepare``."""

    def __init__(self, engine: Any, optimizer: torch.optim.Optimizer, ranks: Ranks, device: torch.device) -> None:
        """
        Args:
            engine: DeepSpeed's.
            optimizer: torch's own, which DeepSpeed steps.
            device: where collectives take place.
        """
        self._zero, self._optimizer, self._ranks, self._device = engine.optimizer, optimizer, ranks, device
        self._averages: dict[Tensor, Tensor] = {}
        """Averages of each tensor that the optimizer moves, laid out like it."""
        trained = dict(_trained_pieces(engine.optimizer, ranks.rank))
        self._values: dict[str, _Value] = {}
        # With parameters as such: under ZeRO-3 their data is elsewhere, and one parameter may have several names.
        for name, tensor in engine.module.state_dict(keep_vars=True).items():
            shape = tuple(getattr(tensor, "ds_shape", tensor.shape))
            dtype = torch.float32 if tensor.is_floating_point() else tensor.dtype
            spread = hasattr(tensor, "ds_id") or (id(tensor) in trained and engine.zero_optimization())
            self._values[name] = _Value(
                entry=Entry(shape=shape, dtype=dtype),
                piece=trained.get(id(tensor)) or _resting_piece(tensor, ranks.rank),
                trained=id(tensor) in trained,
                spread=spread and ranks.num_ranks > 1,
            )

    def kinds(self) -> dict[str, dict[str, Entry]]:
        """State to save: for each kind, the entries by name. Alike on every rank; every rank must call it.

        The optimizer's kinds are those it has by now: none before the first step, and none at all for plain SGD.
        """
        found = {kind for state in self._optimizer.state.values() for kind in state if isinstance(state[kind], Tensor)}
        kinds = {WEIGHTS: {name: value.entry for name, value in self._values.items()}}
        for kind in (*broadcast_object(sorted(found)), *([AVERAGE] if self._averages else [])):
            kinds[kind] = {
                name: Entry(shape=()) if kind == STEP else value.entry
                for name, value in self._values.items()
                if value.trained
            }
        return kinds

    def gather(self, kind: str, names: Iterable[str]) -> Iterator[tuple[str, Tensor | None]]:
        """Each whole tensor of a kind in turn: on rank 0, and None on the others. Every rank must take all of them.

        No rank holds more than one of them at a time.
        """
        for name in names:
            value = self._values[name]
            own = self._own_part(kind, value.piece.flat)
            if kind == STEP:  # one for all parameters that are stepped together
                whole = own if self._ranks.is_first else None
            elif value.spread:
                whole = self._assemble(value.piece.of(own), value)
            else:
                whole = value.piece.of(own).view(value.entry.shape) if self._ranks.is_first else None
            yield name, None if whole is None else whole.detach().to("cpu", value.entry.dtype)

    def _own_part(self, kind: str, flat: Tensor) -> Tensor:
        """Part that this rank keeps of a kind, laid out like ``flat``."""
        if kind == WEIGHTS:
            return flat
        if kind == AVERAGE:
            return self._averages[flat]
        found = self._optimizer.state.get(flat, {}).get(kind)
        if found is None:  # never stepped
            return torch.zeros(()) if kind == STEP else torch.zeros_like(flat)
        return found

    def _assemble(self, part: Tensor, value: _Value) -> Tensor | None:
        """The whole tensor on rank 0, of which each rank has a part."""
        # Summed as integers: zero plus a bit pattern is that pattern, also where it means -0 or not a number.
        piece, shape = value.piece, value.entry.shape
        whole = torch.zeros(prod(shape), dtype=torch.int32, device=self._device)
        whole[piece.start : piece.start + piece.count] = part.to(self._device, torch.float32).view(torch.int32)
        dist.reduce(whole, 0)
        return whole.view(torch.float32).view(shape) if self._ranks.is_first else None

    def restore(self, stored: Mapping[str, Callable[[str, tuple[int, ...]], Tensor]]) -> None:
        """Take up a state that was gathered on any number of ranks under any stage; reads what this rank keeps.

        What the model computes with must have been loaded before it was prepared: this is about the float32 weights
        that the optimizer moves, and about the optimizer's state.

        Args:
            stored: for each kind, what gives the tensor of a name and shape.
        """
        for name, value in self._values.items():
            if not value.trained:
                continue
            piece, shape = value.piece, value.entry.shape
            _copy_part(piece.of(piece.flat), stored[WEIGHTS](name, shape), piece)
            for kind in stored.keys() - {WEIGHTS}:
                if kind == AVERAGE:
                    average = self._averages.setdefault(piece.flat, torch.zeros_like(piece.flat.detach()))
                    _copy_part(piece.of(average), stored[kind](name, shape), piece)
                    continue
                state = self._optimizer.state[piece.flat]
                if kind == STEP:
                    # A tensor of its own for each: the optimizer counts in place.
                    state.setdefault(kind, stored[kind](name, ()).clone().to(self._counts_on(piece.flat)))
                else:
                    _copy_part(
                        piece.of(state.setdefault(kind, torch.zeros_like(piece.flat.detach()))),
                        stored[kind](name, shape),
                        piece,
                    )

    @torch.no_grad()
    def update_average(self, decay: float) -> None:
        """Move the average by (1 - decay) of its distance to the weights; the first time it begins with these."""
        if not self._averages:
            flats = dict.fromkeys(value.piece.flat for value in self._values.values() if value.trained)
            self._averages = {flat: flat.detach().clone() for flat in flats}
            return
        for flat, average in self._averages.items():
            average.lerp_(flat.detach(), 1.0 - decay)

    @torch.no_grad()
    def exchange(self) -> None:
        """Exchange weights and average, also in the model that computes; done twice, nothing has changed.

        Every rank must call it. Does nothing before the first ``update_average``.
        """
        for flat, average in self._averages.items():
            for one, other in zip(flat.detach().split(_PIECE), average.split(_PIECE), strict=True):
                former = one.clone()
                one.copy_(other)
                other.copy_(former)
        if self._averages:
            take_up_weights(self._zero)

    def _counts_on(self, flat: Tensor) -> torch.device:
        """Device on which torch's optimizer counts its steps: beside the weights if it is fused, else on the CPU.

        Every group states the same. Which one ``flat`` is in is not to be had: ZeRO-3 hands its pieces over as it
        steps.
        """
        group = self._optimizer.param_groups[0]
        return flat.device if group.get("fused") or group.get("capturable") else torch.device("cpu")


def _copy_part(into: Tensor, stored: Tensor, piece: Piece) -> None:
    into.copy_(stored.reshape(-1)[piece.start : piece.start + piece.count])


def _resting_piece(tensor: Tensor, rank: int) -> Piece:
    """This rank's piece of what is not trained: frozen parameters, of which ZeRO-3 gives each rank a part, and
    buffers."""
    if not hasattr(tensor, "ds_id"):
        return Piece(flat=tensor, offset=0, start=0, count=tensor.numel())
    parameter: Any = tensor
    return _partition(parameter, parameter.ds_tensor, 0, rank)


def _partition(parameter: Any, flat: Tensor, offset: int, rank: int) -> Piece:
    """ZeRO-3 cuts each parameter into equal parts, the last of which may be partly or wholly padding."""
    size = parameter.partition_numel()
    start = min(rank * size, parameter.ds_numel)
    return Piece(flat=flat, offset=offset, start=start, count=min(size, parameter.ds_numel - start))


def _trained_pieces(zero: Any, rank: int) -> Iterator[tuple[int, Piece]]:
    """For each parameter that is optimized, its id and this rank's piece of its float32 weights.

    Args:
        zero: the optimizer that DeepSpeed has put around torch's; under stage 0 in float32 it is torch's.
    """
    if hasattr(zero, "fp32_partitioned_groups_flat"):  # stage 3
        for number, group in enumerate(zero.fp16_groups):
            offset = 0
            for parameter in group:
                yield id(parameter), _partition(parameter, zero.fp32_partitioned_groups_flat[number], offset, rank)
                offset += parameter.partition_numel()
    elif hasattr(zero, "single_partition_of_fp32_groups"):  # stages 1 and 2: a group's parameters in a row, cut evenly
        for number, group in enumerate(zero.round_robin_bit16_groups):
            size = zero.partition_size[number]
            for parameter, begins in zip(group, zero.round_robin_bit16_offsets[number], strict=True):
                low = max(begins, rank * size)
                high = max(low, min(begins + parameter.numel(), (rank + 1) * size))
                flat = zero.single_partition_of_fp32_groups[number]
                offset = min(low - rank * size, size)
                yield id(parameter), Piece(flat=flat, offset=offset, start=low - begins, count=high - low)
    elif hasattr(zero, "fp32_groups"):  # stage 0 in bf16: a float32 copy of each parameter
        for parameters, copies in zip(zero.fp16_groups, zero.fp32_groups, strict=True):
            for parameter, copy in zip(parameters, copies, strict=True):
                yield id(parameter), _whole(copy)
    else:
        assert isinstance(zero, torch.optim.Optimizer), f"no ds_config that is allowed leads to {type(zero).__name__}"
        for group in zero.param_groups:
            for parameter in group["params"]:
                yield id(parameter), _whole(parameter)


def _whole(tensor: Tensor) -> Piece:
    return Piece(flat=tensor, offset=0, start=0, count=tensor.numel())


def take_up_weights(zero: Any) -> None:
    """Have the model compute with the float32 weights as they are now, as after DeepSpeed's own step."""
    if hasattr(zero, "fp32_partitioned_groups_flat"):  # stage 3
        zero._partition_all_parameters()
        for number in range(len(zero.fp16_groups)):
            zero._reassign_or_swap_out_partitioned_parameters(number)
        if zero.persistent_parameters:
            zero.persistent_parameters[0].all_gather(zero.persistent_parameters)
    elif hasattr(zero, "single_partition_of_fp32_groups"):  # stages 1 and 2
        zero.update_lp_params()
    elif hasattr(zero, "fp32_groups"):  # stage 0 in bf16
        for parameters, copies in zip(zero.fp16_groups, zero.fp32_groups, strict=True):
            for parameter, copy in zip(parameters, copies, strict=True):
                parameter.detach().copy_(copy.detach())


def undo_first_step(zero: Any, optimizer: torch.optim.Optimizer) -> None:
    """Take back the step on zero gradients that DeepSpeed takes under stage 0 in bf16 when it sets itself up.

    It would leave Adam's count one ahead, and AdamW's weights decayed.
    """
    if hasattr(zero, "fp32_groups"):
        optimizer.state.clear()
        for parameters, copies in zip(zero.fp16_groups, zero.fp32_groups, strict=True):
            for parameter, copy in zip(parameters, copies, strict=True):
                copy.detach().copy_(parameter.detach())
