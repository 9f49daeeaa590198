"""Rank facts: this process's place among all, its host and its GPU."""

import hashlib
import json
import os
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from datetime import timedelta
from itertools import groupby
from socket import gethostname

import torch
import torch.distributed as dist
from torch.distributed.distributed_c10d import Store
from torch.distributed.rendezvous import rendezvous

from ccts_dist.errors import ConfigError, LauncherError, PeerLostError, PortTakenError
from ccts_dist.process.launched import adopt_launcher, launcher_conflict

BACKEND = "CCTS_BACKEND"
"""Environment variable: "gloo" lets ranks share a GPU, slowly; "nccl" is the default where there are GPUs."""

_OWN_LOCAL_RANK = "CCTS_LOCAL_RANK"
"""Environment variable: this rank's number on its host, where LOCAL_RANK is the GPU that libraries are to take."""

_READ_S = 10.0
"""Longest time that rank 0 keeps a refusal's facts for peers that are still reading them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranks:
    """This process's place among all."""

    rank: int = 0
    num_ranks: int = 1
    local_rank: int = 0
    num_nodes: int = 1
    """Hosts that have equally many ranks, in a row; 1 where they have not. See ``agree_on_nodes``."""

    gpu: int | None = None
    """Number of its GPU among those that it sees; None for that of ``local_rank``."""

    @property
    def is_first(self) -> bool:
        """True on the one rank that prints, tracks and writes shared files."""
        return self.rank == 0


_LAST_PORT = 65_535


def rank_facts() -> Ranks:
    """This process's ranks by the launcher's environment; one rank when there was no launcher.

    Raises:
        LauncherError: a variable that holds no number, or variables that would let each rank train alone.
    """
    adopt_launcher()
    conflict = launcher_conflict()
    if conflict:
        raise LauncherError(conflict)
    number = number_from_environment
    rank, num_ranks = number("RANK", default=0), number("WORLD_SIZE", default=1)
    if not 0 <= rank < num_ranks:
        raise LauncherError(
            f"environment variables RANK = {rank} and WORLD_SIZE = {num_ranks}: the rank must be below the number of "
            "ranks. Launchers set both; unset both to start one rank."
        )
    port = number("MASTER_PORT", default=0)
    if not 0 <= port <= _LAST_PORT:
        raise LauncherError(
            f"environment variable MASTER_PORT = {port}: must be 0 to {_LAST_PORT}. Unset it to start one rank."
        )
    local_rank = number(_OWN_LOCAL_RANK, "LOCAL_RANK", default=0)
    # DeepSpeed's launcher, then torch's: how many hosts, and how many ranks on this one.
    num_nodes = number("CROSS_SIZE", "GROUP_WORLD_SIZE", default=1)
    on_this_node = max(1, number("LOCAL_SIZE", "LOCAL_WORLD_SIZE", default=num_ranks))
    even = num_nodes * on_this_node == num_ranks and rank % on_this_node == local_rank
    return Ranks(rank=rank, num_ranks=num_ranks, local_rank=local_rank, num_nodes=num_nodes if even else 1)


def number_from_environment(*names: str, default: int) -> int:
    """The number in the first of these variables that is set.

    Raises:
        LauncherError: it is none.
    """
    for name in names:
        if name in os.environ:
            try:
                return int(os.environ[name])
            except ValueError:
                raise LauncherError(
                    f"environment variable {name} = {os.environ[name]!r} is no whole number. Launchers set it; "
                    "unset it to start one rank."
                ) from None
    return default


def ranks_of_this_host(ranks: Ranks) -> int:
    """Number of ranks on this host by the launcher's word; all of them without it."""
    return number_from_environment("LOCAL_SIZE", "LOCAL_WORLD_SIZE", default=ranks.num_ranks)


def chosen_backend() -> str:
    """The backend of tensors: "nccl" or "gloo".

    Raises:
        ConfigError: ``CCTS_BACKEND`` names another, or NCCL where there is no GPU.
    """
    has_gpu = torch.cuda.is_available()
    chosen = os.environ.get(BACKEND) or ("nccl" if has_gpu else "gloo")
    if chosen not in ("gloo", "nccl"):
        raise ConfigError(f'{BACKEND} = {chosen!r}: must be "gloo" or "nccl". Unset it for the usual one.')
    if chosen == "nccl" and not has_gpu:
        raise ConfigError(f"{BACKEND} = 'nccl': torch sees no GPU, and NCCL needs one for each rank. Unset it.")
    return chosen


@dataclass(frozen=True, slots=True, kw_only=True)
class Seat:
    """Facts that only the rank itself knows before all have met: its host, and the GPUs that it sees there."""

    host: str
    local_rank: int | None
    """By the launcher's word; None without."""

    local_size: int | None
    num_nodes: int | None
    num_gpus: int
    gpu: str = ""
    """UUID of the only GPU that it sees; "" where it sees none or several."""


def own_seat() -> Seat:
    """This rank's."""
    variables = {
        "local_rank": (_OWN_LOCAL_RANK, "LOCAL_RANK"),
        "local_size": ("LOCAL_SIZE", "LOCAL_WORLD_SIZE"),
        "num_nodes": ("CROSS_SIZE", "GROUP_WORLD_SIZE"),
    }
    numbers = {what: number_from_environment(*names, default=-1) for what, names in variables.items()}
    num_gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return Seat(
        host=gethostname(),
        **{what: None if number < 0 else number for what, number in numbers.items()},
        num_gpus=num_gpus,
        gpu=str(torch.cuda.get_device_properties(0).uuid) if num_gpus == 1 else "",
    )


def take_seats(ranks: Ranks, seats: Sequence[Seat], *, backend: str) -> tuple[Ranks, int]:
    """This rank's facts once those of all are known, and the number of ranks on its host.

    Hosts differ by their names where the launcher does not name which ranks share one. Every rank computes the
    same, so that what is refused is refused on all.

    Args:
        ranks: this process's, as its environment has them.
        seats: of all ranks, in their order.
        backend: of tensors; under "gloo" ranks may share a GPU.

    Raises:
        ConfigError: more ranks on a host than GPUs, or ranks without one beside ranks with one.
    """
    if any(seat.local_rank is None or seat.local_size is None for seat in seats):
        seats = _counted(seats, keep_nodes=False)
    elif any(seat.num_nodes is None for seat in seats):
        seats = _counted(seats, keep_nodes=True)
    gpus = [_choose_gpu(rank, seats, backend) for rank in range(len(seats))]
    seat = seats[ranks.rank]
    assert seat.local_rank is not None
    assert seat.local_size is not None
    assert seat.num_nodes is not None
    even = seat.num_nodes * seat.local_size == ranks.num_ranks and ranks.rank % seat.local_size == seat.local_rank
    num_nodes = seat.num_nodes if even else 1
    own = replace(ranks, local_rank=seat.local_rank, num_nodes=num_nodes, gpu=gpus[ranks.rank])
    return own, seat.local_size


def _counted(seats: Sequence[Seat], *, keep_nodes: bool) -> list[Seat]:
    """With numbers of hosts, and of ranks on each, by the names of the hosts.

    Args:
        keep_nodes: the launcher's numbers of ranks on a host stay.
    """
    sizes = Counter(seat.host for seat in seats)
    in_a_row = len(list(groupby(seat.host for seat in seats))) == len(sizes)
    num_nodes = len(sizes) if in_a_row and len(set(sizes.values())) == 1 else 1
    if keep_nodes:
        return [replace(seat, num_nodes=num_nodes) for seat in seats]
    before: Counter[str] = Counter()
    counted = []
    for seat in seats:
        counted.append(replace(seat, local_rank=before[seat.host], local_size=sizes[seat.host], num_nodes=num_nodes))
        before[seat.host] += 1
    return counted


def _choose_gpu(rank: int, seats: Sequence[Seat], backend: str) -> int | None:
    """The number of a rank's GPU among those that it sees; None without any."""
    seat = seats[rank]
    assert seat.local_rank is not None
    assert seat.local_size is not None
    if seat.num_gpus == 0:
        other = next((number for number, seat in enumerate(seats) if seat.num_gpus), None)
        if other is not None:
            raise ConfigError(
                f"rank {rank} on {seat.host} sees no GPU, and rank {other} on {seats[other].host} does. Give each rank "
                "one, or hide them from all (CUDA_VISIBLE_DEVICES=)."
            )
        return None
    if backend == "gloo":
        return seat.local_rank % seat.num_gpus
    if seat.num_gpus >= seat.local_size:
        return seat.local_rank
    if seat.num_gpus == 1 and sum(other.gpu == seat.gpu for other in seats) == 1:
        return 0  # --gpus-per-task=1, or a container for each rank: it sees its own
    raise ConfigError(
        f"{seat.host} has {seat.local_size} ranks and {seat.num_gpus} GPU{'s' * (seat.num_gpus != 1)}, and each rank "
        f"needs one. Start {seat.num_gpus} on it (deepspeed --num_gpus {seat.num_gpus}, srun --ntasks-per-node="
        f"{seat.num_gpus}), or set {BACKEND}=gloo to let ranks share a GPU."
    )


def meet(ranks: Ranks, *, backend: str, timeout_s: float) -> tuple[Ranks, Store]:
    """Settle the rank facts with all ranks, before any process group; the store to make one by comes along.

    Afterwards the environment has what libraries go by: LOCAL_RANK is the number of the GPU that they are to take.

    Raises:
        ConfigError: on all ranks alike: as ``take_seats``.
        LauncherError: nobody names where the ranks are to meet.
        PortTakenError: on some ranks alone: another job meets at the same port.
        PeerLostError: a rank did not come in time.
    """
    if "MASTER_ADDR" not in os.environ:
        raise LauncherError(
            f"nothing names where {ranks.num_ranks} ranks are to meet: set MASTER_ADDR to a name of rank 0's host, for "
            "all of them (mpirun -x MASTER_ADDR=..., srun --export=ALL,MASTER_ADDR=...)."
        )
    os.environ.setdefault("MASTER_PORT", "29500")
    timeout = timedelta(seconds=timeout_s)
    try:
        store, _, _ = next(rendezvous("env://", ranks.rank, ranks.num_ranks, timeout=timeout))
        store.set_timeout(timeout)
        _check_own(store, ranks)
        seats = _exchange_seats(store, ranks)
    except dist.DistError as error:
        where = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        what = " ".join(str(error).split())[:200]
        if "EADDRINUSE" in what or "address already in use" in what:
            raise _port_taken(ranks) from error
        raise PeerLostError(
            f"rank {ranks.rank} of {ranks.num_ranks}: not all ranks have met at {where} within {timeout_s:g} s "
            f"({what}). See whether each was started, and reaches that address."
        ) from error
    try:
        own, local_size = take_seats(ranks, seats, backend=backend)
    except ConfigError:
        _exit_together(store, ranks)
        raise
    _set_up_libraries(own, local_size)
    return own, store


def _check_own(store: Store, ranks: Ranks) -> None:
    """Refuse the store of another job: its facts would be those of strangers.

    Rank 0's job is known by its command, and this rank's place may be taken by a rank of that job.
    """
    if not ranks.is_first and _are_strangers(_Job(**json.loads(store.get("ccts/job"))), _own_job()):
        raise _port_taken(ranks)
    if store.add(f"ccts/arrived/{ranks.rank}", 1) > 1:
        raise _port_taken(ranks)
    if ranks.is_first:
        store.set("ccts/job", json.dumps(asdict(_own_job())))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Job:
    """Facts by which ranks of two jobs that begin at the same moment are distinguished."""

    host: str
    parent: int
    """Process that started the rank: one launcher for all ranks of a job on a host."""

    options: str
    """SHA-256 of the command's options, less the launcher's."""


def _own_job() -> _Job:
    options = [word for word in sys.argv[1:] if not word.startswith("--local_rank")]
    digest = hashlib.sha256("\0".join(options).encode(errors="surrogateescape")).hexdigest()
    return _Job(host=gethostname(), parent=os.getppid(), options=digest)


def _are_strangers(one: _Job, other: _Job) -> bool:
    """True for ranks of one host that differ in both launcher and options; by hand each may be started from a shell."""
    return one.host == other.host and one.parent != other.parent and one.options != other.options


def _port_taken(ranks: Ranks) -> PortTakenError:
    port = os.environ["MASTER_PORT"]
    return PortTakenError(
        f"rank {ranks.rank} of {ranks.num_ranks}: port {port} at {os.environ['MASTER_ADDR']} is another job's. Give "
        "each job on a host a port of its own: deepspeed --master_port N, torchrun --master_port N, or MASTER_PORT=N."
    )


def _exchange_seats(store: Store, ranks: Ranks) -> list[Seat]:
    store.set(f"ccts/seat/{ranks.rank}", json.dumps(asdict(own_seat())))
    names = [f"ccts/seat/{rank}" for rank in range(ranks.num_ranks)]
    return [Seat(**json.loads(text)) for text in store.multi_get(names)]


def _exit_together(store: Store, ranks: Ranks) -> None:
    """Have rank 0, in which the store lives, stay until the others have read what they refuse."""
    with suppress(dist.DistError):
        store.set(f"ccts/left/{ranks.rank}", "")
        if ranks.is_first:
            store.wait([f"ccts/left/{rank}" for rank in range(ranks.num_ranks)], timedelta(seconds=_READ_S))


def _set_up_libraries(ranks: Ranks, local_size: int) -> None:
    """Put the facts where Accelerate and DeepSpeed read them."""
    for_libraries = ranks.local_rank if ranks.gpu is None else ranks.gpu
    variables: Mapping[str, int] = {
        _OWN_LOCAL_RANK: ranks.local_rank,
        "LOCAL_RANK": for_libraries,
        # DeepSpeed wants these two to be the same.
        **({"OMPI_COMM_WORLD_LOCAL_RANK": for_libraries} if "OMPI_COMM_WORLD_LOCAL_RANK" in os.environ else {}),
    }
    os.environ.update({name: str(number) for name, number in variables.items()})
    if "LOCAL_SIZE" not in os.environ:
        os.environ.setdefault("LOCAL_WORLD_SIZE", str(local_size))
