"""Devices, process groups, sums over ranks, and "all agree or all raise".

Works without a process group too: then there is one rank. Knows neither Accelerate nor DeepSpeed.
"""

import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import timedelta
from importlib import import_module
from pathlib import Path
from threading import Thread
from typing import Any, Generic, TypeVar, cast

import torch
import torch.distributed as dist
from jaxtyping import Float64
from torch import Tensor
from torch.distributed import distributed_c10d

from ccts_dist.device.arithmetic import avoid_plans_per_shape
from ccts_dist.errors import CctsError, ConfigError, missing_extra
from ccts_dist.ranks import Ranks, chosen_backend, meet, rank_facts, ranks_of_this_host

Answer = TypeVar("Answer")


_NCCL_LATER_S = 60.0
"""NCCL may wait so much longer than everything else: its watchdog does not know who is missing, and ours does."""


def agree_on_nodes(ranks: Ranks) -> Ranks:
    """The same facts, as if all were one host where the hosts have not equally many ranks.

    Each rank sees its own host only, and some of uneven ones look even from within. Every rank must call it.
    """
    return ranks if len(set(gather_objects(ranks.num_nodes))) == 1 else replace(ranks, num_nodes=1)


def best_device(ranks: Ranks) -> torch.device:
    """This rank's GPU when there is one, else the CPU."""
    number = ranks.local_rank if ranks.gpu is None else ranks.gpu
    return torch.device("cuda", number) if torch.cuda.is_available() else torch.device("cpu")


def named_device(name: str | torch.device | None) -> torch.device:
    """The device of that name, as torch spells it; None for a GPU if there is one, else the CPU.

    Raises:
        ConfigError: torch knows no such device, or cannot compute on it.
    """
    if name is None:
        return take_device(Ranks())
    try:
        device = torch.zeros(1, device=name).device
    except (RuntimeError, AssertionError) as error:  # the latter: torch without CUDA
        what = " ".join(str(error).split())[:200]
        raise ConfigError(f"device {str(name)!r} cannot be used ({what}). Change --device, or leave it out.") from error
    if device.type == "cuda":
        avoid_plans_per_shape()
    return device


def take_device(ranks: Ranks) -> torch.device:
    """``best_device``, made torch's current one: collectives of NCCL go through that."""
    device = best_device(ranks)
    if device.type == "cuda":
        torch.cuda.set_device(device)
        avoid_plans_per_shape()
    return device


def share_cores(ranks: Ranks) -> None:
    """Let torch compute with this rank's share of the cores that the ranks of this host may use.

    Launchers state nothing about it, and every rank would start a thread per core, all of which wait for each other.
    Where a rank's share is a single core, it stays on that core.
    ``OMP_NUM_THREADS``, where it is set, has the last word: set it where each rank is bound to cores of its own.
    """
    if "OMP_NUM_THREADS" in os.environ:
        return
    cores, here = sorted(os.sched_getaffinity(0)), ranks_of_this_host(ranks)
    share = max(1, len(cores) // here)
    torch.set_num_threads(share)
    if share == 1 and 1 < here <= len(cores) and not torch.cuda.is_available():
        # Else two ranks meet on one core now and then, and all others wait for them.
        os.sched_setaffinity(0, {cores[ranks.local_rank]})


@contextmanager
def process_group(ranks: Ranks, *, timeout_s: float = 600.0, nccl_records: Path | None = None) -> Iterator[Ranks]:
    """A process group over all ranks, which share the cores, for the duration of the block; none for one rank.

    Gives the rank facts as the ranks have settled them: go by these from then on. This rank's GPU is torch's current
    device before anything else happens. Tensors on the CPU go through gloo, which all that ranks agree on uses; those
    on GPUs through NCCL.

    Args:
        ranks: as ``rank_facts`` gives them.
        timeout_s: longest time that a rank waits for its peers.
        nccl_records: folder in which NCCL leaves its record of collectives when one fails; need not exist yet.

    Raises:
        ConfigError: on all ranks alike: what their hosts have does not suffice. See ``ranks.take_seats``.
    """
    if ranks.num_ranks == 1:
        take_device(ranks)
        yield ranks
        return
    backend = chosen_backend()
    ranks, store = meet(ranks, backend=backend, timeout_s=timeout_s)
    share_cores(ranks)
    device = take_device(ranks)
    over_nccl = backend == "nccl"
    if over_nccl:
        _prepare_nccl(nccl_records)
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if over_nccl else "gloo",
        store=distributed_c10d.PrefixStore("default_pg", store),
        rank=ranks.rank,
        world_size=ranks.num_ranks,
        timeout=timedelta(seconds=timeout_s + _NCCL_LATER_S * over_nccl),
        device_id=device if over_nccl else None,
    )
    try:
        limit_waiting(timeout_s)
        yield ranks
    finally:
        dist.destroy_process_group()


def _prepare_nccl(records: Path | None) -> None:
    """Let NCCL leave a failed collective to ``Watchdog``, which knows who is lost, rather than abort the process."""
    os.environ.setdefault("TORCH_NCCL_ASYNC_ERROR_HANDLING", "0")
    os.environ.setdefault("TORCH_NCCL_DUMP_ON_TIMEOUT", "1")
    os.environ.setdefault("TORCH_FR_BUFFER_SIZE", "2000")
    if records is not None:
        os.environ.setdefault("TORCH_FR_DUMP_TEMP_FILE", f"{records.absolute()}/nccl_")


def write_nccl_record(folder: Path, rank: int, *, wait_s: float = 5.0) -> None:
    """Write NCCL's record of this rank's last collectives into a folder, if it can be had.

    For torch's ``torchfrtrace``. Never waits for long: what is wrong with NCCL may also hold this up.
    """

    def write() -> None:
        dump: Any = getattr(
            import_module("torch._C._distributed_c10d"), "_dump_nccl_trace", None
        )  # torch without CUDA has none
        with suppress(RuntimeError, OSError):
            if dump is not None:
                (folder / f"nccl_{rank}").write_bytes(dump())

    thread = Thread(target=write, name="nccl-record", daemon=True)
    thread.start()
    thread.join(wait_s)


def limit_waiting(timeout_s: float) -> None:
    """Give all process groups this time-out, also those that a library has made.

    A group that is made without one does not take the first group's: it waits for torch's default, up to half an hour.
    """
    if not _grouped():
        return
    for group in list(distributed_c10d._world.pg_map):
        for device in group._device_types:
            backend: Any = group._get_backend(device)
            if backend.name() in ("gloo", "nccl"):
                later_s = _NCCL_LATER_S if backend.name() == "nccl" else 0.0
                backend._set_default_timeout(timedelta(seconds=timeout_s + later_s))


_PLACE_IN_GLOO = re.compile(r"gloo/[\w/.-]+\.(?:cc|h):\d+|\bgloo\b.*\b(?:connect|timeout|timed out)", re.IGNORECASE)
"""Gloo raises plain RuntimeErrors, each with the place in its source."""

_LOST = re.compile(
    r"connection (?:closed|reset|refused|timed out|aborted)|closed by peer|timed? ?out|broken pipe|no route to host"
    r"|unreachable|not connected|connectfullmesh failed|pair closure|socket error|read error|write error",
    re.IGNORECASE,
)


_LOST_IN_NCCL = re.compile(
    r"remote process exited|network error|nccl(?:Remote|System)Error|watchdog|aborted|communicator was|"
    + _LOST.pattern,
    re.IGNORECASE,
)


def is_lost_connection(error: RuntimeError) -> bool:
    """True if a collective failed because a rank has gone or did not come in time, rather than by a mistake.

    Alone a rank loses nobody.
    """
    if dist.is_initialized() and dist.get_world_size() == 1:
        return False
    words = str(error)
    if isinstance(error, dist.DistBackendError):  # NCCL reports so too of a call that is a mistake, or of a broken GPU
        return bool(_LOST_IN_NCCL.search(words))
    return isinstance(error, dist.DistError) or bool(_PLACE_IN_GLOO.search(words) and _LOST.search(words))


def _grouped() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def _collective_device() -> torch.device:
    """Device of tensors in collectives between ranks' programs: the CPU, if the group has it."""
    if "cpu" in {device.type for device in distributed_c10d._get_default_group()._device_types}:
        return torch.device("cpu")
    return torch.device("cuda", torch.cuda.current_device())


def sum_over_ranks(values: Float64[Tensor, "..."]) -> Float64[Tensor, "..."]:
    """The elementwise sum over all ranks, on every rank, on the device it came from; carries no gradient.

    Every rank must call it, with the same shape. float64, so that the order of summation is lost in rounding far
    below float32.
    """
    values = values.detach()
    if not _grouped():
        return values.clone()
    total = values.to(_collective_device(), copy=True)
    dist.all_reduce(total)
    return total.to(values.device)


def barrier() -> None:
    """Wait until every rank is here."""
    if _grouped():
        # Torch's own would go by way of the GPU wherever there is one.
        dist.all_reduce(torch.zeros(1, device=_collective_device()))


def broadcast_object(value: Any) -> Any:
    """Rank 0's value, on every rank. Small Python objects only."""
    if not _grouped():
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0, device=_collective_device())
    return box[0]


def gather_objects(value: Any) -> list[Any]:
    """Every rank's value in rank order, on every rank. Small Python objects only."""
    if not _grouped():
        return [value]
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


@dataclass(frozen=True, slots=True)
class PendingResult(Generic[Answer]):
    """Outcome of an action on this rank, and whether the rank has a wish; the others do not know of it yet.

    ``agree_or_raise`` and ``run_on_all_ranks`` report them at once. Where ranks add numbers up soon anyway, ``votes``
    may ride along: every rank adds its own, and hands the sums to ``settle``.
    """

    answer: Answer | None
    error: CctsError | None
    wish: bool = False

    @property
    def votes(self) -> Float64[Tensor, "2"]:
        """To be added up over ranks."""
        return torch.tensor([self.error is not None, self.wish], dtype=torch.float64)

    def settle(self, failed: float, wished: float) -> tuple[Answer, bool]:
        """The answer, once it has gone well on all; whether any rank has the wish, the same on every rank.

        Every rank must call it, with the sums of all votes. Raises on all ranks what the lowest failing one brings.
        """
        if failed == 0:
            return cast(Answer, self.answer), wished > 0
        errors = gather_objects(self.error)
        first = next(theirs for theirs in errors if theirs is not None)
        if self.error is not None and errors.index(first) == rank_facts().rank:
            raise self.error  # keeps its traceback
        raise first from self.error


def capture(action: Callable[[], Answer], *, wish: bool = False) -> PendingResult[Answer]:
    """Do what only this rank knows the outcome of; what it raises is kept for all."""
    try:
        return PendingResult(action(), None, wish)
    except CctsError as raised:
        return PendingResult(None, raised, wish)
    except ModuleNotFoundError as raised:
        if (named := missing_extra(raised)) is None:
            raise
        return PendingResult(None, named, wish)


def agree_or_raise(error: CctsError | None) -> None:
    """Raise on every rank if any rank brings an error; the lowest failing rank's error is the one raised everywhere.

    A rank that raises alone leaves its peers waiting in their next collective. Call this where ranks meet anyway.
    """
    _settle_now(PendingResult(None, error))


def run_on_all_ranks(action: Callable[[], Answer]) -> Answer:
    """Run ``action``; its result on this rank, once it has gone well on all. Raises on all what it raised on any.

    Every rank must call it; ``action`` itself must not wait for other ranks.
    """
    return _settle_now(capture(action))


def _settle_now(ballot: PendingResult[Answer]) -> Answer:
    # Two numbers first: objects are gathered only when there is something to report.
    failed, wished = sum_over_ranks(ballot.votes).tolist()
    return ballot.settle(failed, wished)[0]


def lockstep(source: Iterator[Answer], count: int, *, check: Callable[[], object] = lambda: None) -> Iterator[Answer]:
    """The next ``count`` things of this rank's ``source``; what one rank's source raises is raised on all ranks.

    Every rank must take equally many. ``check`` is called before each is given; what it raises counts as the source's.
    """

    def take() -> Answer:
        answer = next(source)
        check()
        return answer

    for _ in range(count):
        yield run_on_all_ranks(take)
