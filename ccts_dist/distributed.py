"""Rank facts, seeds, sums over ranks, and "all agree or all raise".

Works without a process group too: then there is one rank. Knows neither Accelerate nor DeepSpeed.
"""

import hashlib
import os
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any, Generic, TypeVar, cast

import numpy as np
import torch
import torch.distributed as dist
from jaxtyping import Float64
from torch import Tensor
from torch.distributed import distributed_c10d

from ccts_dist.arithmetic import avoid_plans_per_shape
from ccts_dist.errors import CctsError, ConfigError

Answer = TypeVar("Answer")


_NCCL_LATER_S = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranks:
    """Where this process stands among all."""

    rank: int = 0
    num_ranks: int = 1
    local_rank: int = 0
    num_nodes: int = 1
    """Hosts that have equally many ranks, in a row; 1 where they have not. See ``agree_on_nodes``."""

    @property
    def is_first(self) -> bool:
        """True on the one rank that prints, tracks and writes shared files."""
        return self.rank == 0


def rank_facts() -> Ranks:
    """This process's ranks as the launcher's environment says; one rank when there was no launcher."""
    number = _from_environment
    rank, local_rank = number("RANK", default=0), number("LOCAL_RANK", default=0)
    num_ranks = number("WORLD_SIZE", default=1)
    # DeepSpeed's launcher, then torch's: how many hosts, and how many ranks on this one.
    num_nodes = number("CROSS_SIZE", "GROUP_WORLD_SIZE", default=1)
    on_this_node = number("LOCAL_SIZE", "LOCAL_WORLD_SIZE", default=num_ranks)
    even = num_nodes * on_this_node == num_ranks and rank % on_this_node == local_rank
    return Ranks(rank=rank, num_ranks=num_ranks, local_rank=local_rank, num_nodes=num_nodes if even else 1)


def _from_environment(*names: str, default: int) -> int:
    """The number in the first of these variables that is set."""
    return next((int(os.environ[name]) for name in names if name in os.environ), default)


def agree_on_nodes(ranks: Ranks) -> Ranks:
    """The same facts, as if all were one host where the hosts have not equally many ranks.

    Each rank sees its own host only, and some of uneven ones look even from within. Every rank must call it.
    """
    return ranks if len(set(gather_objects(ranks.num_nodes))) == 1 else replace(ranks, num_nodes=1)


def best_device(ranks: Ranks) -> torch.device:
    """This rank's GPU when there is one, else the CPU."""
    return torch.device("cuda", ranks.local_rank) if torch.cuda.is_available() else torch.device("cpu")


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

    Launchers say nothing about it, and every rank would start a thread per core, all of which wait for each other.
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


def ranks_of_this_host(ranks: Ranks) -> int:
    """How many ranks the launcher says this host has; all of them when it says nothing."""
    return _from_environment("LOCAL_SIZE", "LOCAL_WORLD_SIZE", default=ranks.num_ranks)


@contextmanager
def process_group(ranks: Ranks, *, timeout_s: float = 600.0) -> Iterator[None]:
    """A process group over all ranks, which share the cores, for the duration of the block; nothing for one rank."""
    if ranks.num_ranks == 1:
        yield
        return
    share_cores(ranks)
    backend = "nccl" if torch.cuda.is_available() else "gloo"
    timeout = timedelta(seconds=_group_timeout_s(timeout_s))
    dist.init_process_group(backend, rank=ranks.rank, world_size=ranks.num_ranks, timeout=timeout)
    try:
        yield
    finally:
        dist.destroy_process_group()


def limit_waiting(timeout_s: float) -> None:
    """Give all process groups this time-out, also those that a library has made.

    A group that is made without one does not take the first group's: it waits for torch's default, up to half an hour.
    """
    if _grouped():
        for group in list(distributed_c10d._world.pg_map):
            distributed_c10d._set_pg_timeout(timedelta(seconds=_group_timeout_s(timeout_s)), group)


def _group_timeout_s(timeout_s: float) -> float:
    # NCCL's own watchdog aborts the process without a word of who is missing; ours is to come first.
    return timeout_s + (_NCCL_LATER_S if torch.cuda.is_available() else 0.0)


def is_lost_connection(error: RuntimeError) -> bool:
    """Whether a collective failed because a rank has gone or did not come in time, rather than by a mistake."""
    # Gloo raises plain RuntimeErrors, each with the place in its source.
    return isinstance(error, dist.DistError) or "gloo" in str(error).lower()


def _grouped() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def _collective_device() -> torch.device:
    if dist.get_backend() == "nccl":
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")


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
        dist.barrier()


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
class Ballot(Generic[Answer]):
    """What came of an action on this rank, and whether the rank has a wish; the others do not know of it yet.

    ``agree_or_raise`` and ``together`` tell them at once. Where ranks add numbers up soon anyway, ``votes`` may ride
    along: every rank adds its own, and hands the sums to ``settle``.
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


def attempt(action: Callable[[], Answer], *, wish: bool = False) -> Ballot[Answer]:
    """Do what only this rank knows the outcome of; what it raises is kept for all."""
    try:
        return Ballot(action(), None, wish)
    except CctsError as raised:
        return Ballot(None, raised, wish)


def agree_or_raise(error: CctsError | None) -> None:
    """Raise on every rank if any rank brings an error; the lowest failing rank's error is the one raised everywhere.

    A rank that raises alone leaves its peers waiting in their next collective. Call this where ranks meet anyway.
    """
    _settle_now(Ballot(None, error))


def together(action: Callable[[], Answer]) -> Answer:
    """What ``action`` gives on this rank, once it has gone well on all; raises on all what it raised on any.

    Every rank must call it; ``action`` itself must not wait for other ranks.
    """
    return _settle_now(attempt(action))


def _settle_now(ballot: Ballot[Answer]) -> Answer:
    # Two numbers first: objects are gathered only when there is something to tell.
    failed, wished = sum_over_ranks(ballot.votes).tolist()
    return ballot.settle(failed, wished)[0]


def in_step(source: Iterator[Answer], count: int, *, check: Callable[[], object] = lambda: None) -> Iterator[Answer]:
    """The next ``count`` things of this rank's ``source``; what one rank's source raises is raised on all ranks.

    Every rank must take equally many. ``check`` is called before each is given; what it raises counts as the source's.
    """

    def take() -> Answer:
        answer = next(source)
        check()
        return answer

    for _ in range(count):
        yield together(take)


def derive_seed(*parts: int | str) -> int:
    """A 63-bit seed that depends on every part, in order; the same on every machine and version."""
    digest = hashlib.blake2b("\x1f".join(str(part) for part in parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def seed_everything(seed: int) -> None:
    """Seed Python, numpy and torch (all devices) from one number.

    numpy's global generator too: SpecAugment inside transformers draws from it.
    """
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
