"""Work spread over processes that never outlive the one that started them."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from itertools import islice
from multiprocessing.connection import Connection
from typing import Any, TypeVar

import torch

from ccts_dist.errors import ShardError

Task = TypeVar("Task")
Result = TypeVar("Result")

_SECONDS_BETWEEN_LOOKS = 0.2
"""At the counter of what the processes have done, for the progress that people see."""

_counter: Any = None
"""In a worker: the number of utterances that all workers have dealt with."""


def run_tasks(
    work: Callable[[Task, Callable[[int], object]], Result],
    tasks: Sequence[Task],
    *,
    num_processes: int,
    progress: Callable[[int], object],
) -> list[Result]:
    """What ``work`` makes of each task, in the order of the tasks; one process does it itself.

    When a task fails or the caller is interrupted, the other processes end at once, within their tasks. So they do when
    the caller is killed.

    Args:
        work: a function of a module, or a ``partial`` of one; gets a task and a counter to call.
        tasks: the largest first keeps all processes at work until the end.
        progress: called with what the counters were called with.

    Raises:
        ShardError: a process died.
    """
    if num_processes == 1 or len(tasks) < 2:
        with _one_thread():
            return [work(task, progress) for task in tasks]
    # A server that has imported everything forks the workers: they start at once, and share its memory.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["ccts_dist.shards.making"])
    counter = context.Value("q", 0)
    watched, held = context.Pipe(duplex=False)
    pool = ProcessPoolExecutor(
        min(num_processes, len(tasks)), mp_context=context, initializer=_enter, initargs=(watched, counter)
    )
    try:
        results = _collect(pool, work, tasks, 2 * num_processes, _Looker(counter, progress))
        pool.shutdown()
        return results
    except BrokenProcessPool as error:
        raise ShardError(
            "a process that makes shards died (killed, or out of memory?). What is finished is kept: run the same "
            "command again, with fewer --processes."
        ) from error
    finally:
        held.close()  # ends the workers, where the tasks have not all been done
        pool.shutdown(cancel_futures=True)
        watched.close()


class _Looker:
    """Passes on what a shared counter has gained since the last look."""

    def __init__(self, counter: Any, progress: Callable[[int], object]) -> None:
        self._counter, self._progress, self._seen = counter, progress, 0

    def __call__(self) -> None:
        now = self._counter.get_obj().value  # without its lock, which a killed worker may hold
        if now > self._seen:
            self._progress(now - self._seen)
        self._seen = now


def _collect(
    pool: ProcessPoolExecutor,
    work: Callable[[Task, Callable[[int], object]], Result],
    tasks: Sequence[Task],
    most_waiting: int,
    look: Callable[[], None],
) -> list[Result]:
    results: list[Any] = [None] * len(tasks)
    numbers: dict[Future[Result], int] = {}
    upcoming = iter(enumerate(tasks))
    while True:
        # A task carries thousands of records: they are not all sent at once.
        for number, task in islice(upcoming, most_waiting - len(numbers)):
            numbers[pool.submit(_work_counted, work, task)] = number
        if not numbers:
            look()
            return results
        for future in wait(numbers, timeout=_SECONDS_BETWEEN_LOOKS, return_when=FIRST_COMPLETED).done:
            results[numbers.pop(future)] = future.result()
        look()


def _work_counted(work: Callable[[Task, Callable[[int], object]], Result], task: Task) -> Result:
    return work(task, _count)


def _count(more: int) -> None:
    with _counter.get_lock():
        _counter.value += more


def _enter(watched: Connection, counter: Any) -> None:
    """Makes a new process a worker."""
    global _counter
    _counter = counter
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the caller is interrupted too, and ends its workers
    torch.set_num_threads(1)
    threading.Thread(target=_end_with, args=(watched,), daemon=True).start()


def _end_with(watched: Connection) -> None:
    """Ends this process as soon as the other end of the pipe is closed, by the caller or by its death."""
    with suppress(EOFError, OSError):
        watched.recv_bytes()
    os._exit(1)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Tensor work on one thread: the processes share the cores, and sums on several threads may round otherwise."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
