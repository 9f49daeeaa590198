"""What runs in a loader worker, and the server that workers are forked from."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing import forkserver, resource_tracker
from multiprocessing.context import ForkServerContext

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils.data import Dataset, Sampler, get_worker_info

from ccts_dist.distributed import Ranks
from ccts_dist.errors import CctsError
from ccts_dist.loader.collate import EncodeText, TeacherSource, read_batch
from ccts_dist.loader.cut import Part, cut
from ccts_dist.loader.plan import Plan
from ccts_dist.records import Batch, TeacherBatch
from ccts_dist.shards.read import ShardSet

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)

_WATCH_S = 1.0

Position = tuple[int, int, int]
"""Epoch, step, pass."""


@dataclass(frozen=True, slots=True)
class Failure:
    """An error that a worker hands to the training process, which raises it at the step it belongs to."""

    error: CctsError


@dataclass(frozen=True, slots=True)
class Parcel:
    """A batch on its way from a worker: audio in shared memory, the small rest in the message itself.

    Each tensor in shared memory costs a connection to the worker, so only the large one goes that way.
    """

    audio: Float[Tensor, "batch samples"]
    keys: tuple[str, ...]
    small: Mapping[str, np.ndarray]

    def unpack(self) -> Batch:
        """The batch as it was packed."""
        small = {name: torch.from_numpy(array) for name, array in self.small.items()}
        teacher = None
        if "teacher.embedding" in small:
            teacher = TeacherBatch(embedding=small.pop("teacher.embedding"), prediction=small.pop("teacher.prediction"))
        return Batch(keys=self.keys, audio=self.audio, teacher=teacher, **small)


def pack(batch: Batch) -> Parcel:
    """Make a batch ready to leave a worker."""
    names = ("num_samples", "labels", "weight", "tokens", "num_tokens")
    small = {name: getattr(batch, name).numpy() for name in names if getattr(batch, name) is not None}
    if batch.teacher is not None:
        small["teacher.embedding"] = batch.teacher.embedding.numpy()
        small["teacher.prediction"] = batch.teacher.prediction.numpy()
    return Parcel(batch.audio.share_memory_(), batch.keys, small)


@dataclass(kw_only=True)
class PartReader(Dataset[Batch | Parcel | Failure]):
    """This rank's micro-batches by position. Pickled into workers; each keeps the plan's window for itself."""

    plan: Plan
    shards: ShardSet
    ranks: Ranks
    passes: int
    micro: int
    targets: Sequence[str]
    encode_text: EncodeText | None
    teacher: TeacherSource | None

    def parts(self, epoch: int, step: int) -> list[list[Part]]:
        """The global batch of one step, cut for all passes and ranks."""
        return cut(self.plan.global_batch(epoch, step), self.ranks.num_ranks, self.passes, self.micro)

    def __getitem__(self, position: Position) -> Batch | Parcel | Failure:
        epoch, step, number = position
        try:
            batch = read_batch(
                self.parts(epoch, step)[number][self.ranks.rank],
                self.plan.window(epoch, step),
                self.shards,
                targets=self.targets,
                encode_text=self.encode_text,
                teacher=self.teacher,
            )
        except CctsError as error:
            return Failure(error)
        return batch if get_worker_info() is None else pack(batch)


class Positions(Sampler[Position]):
    """The positions that workers are sent to: the rest of an epoch, which can be set anew between epochs."""

    def __init__(self, steps: int, passes: int) -> None:
        self._steps = steps
        self._passes = passes
        self.epoch = 0
        self.start_step = 0

    def __iter__(self) -> Iterator[Position]:
        epoch = self.epoch
        for step in range(self.start_step, self._steps):
            for number in range(self._passes):
                yield epoch, step, number


def worker_context() -> ForkServerContext:
    """Where workers come from: a server without threads, that has imported torch once for all of them.

    A plain fork of the training process would copy the locks of gloo's and DeepSpeed's threads; starting each worker
    from nothing costs seconds and half a gigabyte.

    The server and its workers never see stop requests, which job managers send to every process of a job: the training
    process answers them, and needs its workers until it has.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    resource_tracker.ensure_running()  # it unblocks signals when it starts, so it must have started before
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        forkserver.ensure_running()  # inherits the blocked signals; a request that comes meanwhile waits for us
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return context


def end_with_trainer(_worker: int) -> None:
    """In a worker: end when the training process says so or has gone, however it went, and for nobody else.

    torch's workers watch their parent process, which is the fork server here; and the server lives while any worker
    does. Without this both would outlive a training process that was killed.
    """
    threading.Thread(target=_watch_trainer, name="trainer-watch", daemon=True).start()


def _watch_trainer() -> None:
    trainer = multiprocessing.parent_process()
    assert trainer is not None, "a worker has a parent"
    while trainer.is_alive():
        request = signal.sigtimedwait(STOP_SIGNALS, _WATCH_S)  # they are blocked, so they wait to be taken here
        if request is not None and request.si_signo == signal.SIGTERM and request.si_pid == trainer.pid:
            break
    os._exit(1)
