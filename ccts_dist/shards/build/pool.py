"""Work spread over processes that never outlive the one that started them."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from multiprocessing import forkserver
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext
from typing import Any, TypeVar

import torch

from ccts_dist.errors import ShardError

Task = TypeVar("Task")
Result = TypeVar("Result")

Work = Callable[[Task, Callable[[int], object]], Result]

_SECONDS_BETWEEN_LOOKS = 0.2
"""At the counters of what has been done, for the progress that people see."""

_counter: Any = None
"""In a worker: the number of utterances that all workers have dealt with."""


def warm_up(num_processes: int) -> None:
    """Start what other processes will need, and return at once: it takes seconds, in which a corpus can be read."""
    if num_processes > 1:
        _context()
        forkserver.ensure_running()


def run_tasks(
    work: Work[Task, Result], tasks: Sequence[Task], *, num_processes: int, progress: Callable[[int], object]
) -> list[Result]:
    """The result of ``work`` for each task, in the order of the tasks. The calling process is one of those at work.

    When a task fails or the caller is interrupted, all work ends at the next call of a counter, in the other processes
    at once. So does theirs when the caller is killed.

    Args:
        work: a function of a module, or a ``partial`` of one; gets a task and a counter to call.
        tasks: the largest first keeps all processes at work until the end.
        progress: called with what the counters were called with.

    Raises:
        ShardError: a process died.
    """
    num_others = min(num_processes, len(tasks)) - 1
    with _one_thread():
        if num_others < 1:
            return [work(task, progress) for task in tasks]
        return _run_beside(work, tasks, num_others, progress)


def _run_beside(
    work: Work[Task, Result], tasks: Sequence[Task], num_others: int, progress: Callable[[int], object]
) -> list[Result]:
    context = _context()
    counter, own_counter = context.Value("q", 0), _OwnCounter()
    watched, held = context.Pipe(duplex=False)
    own = ThreadPoolExecutor(1, initializer=torch.set_num_threads, initargs=(1,))
    others = ProcessPoolExecutor(num_others, mp_context=context, initializer=_enter, initargs=(watched, counter))
    places = (_Place(own, 1, work, own_counter), _Place(others, num_others, work, None))
    try:
        results = _collect(places, tasks, _Looker(counter, own_counter, progress))
        others.shutdown()
        return results
    except BrokenProcessPool as error:
        raise ShardError(
            "a process that makes shards died (killed, or out of memory?). What is finished is kept: run the same "
            "command again, with fewer --processes."
        ) from error
    finally:
        held.close()  # ends the workers, where the tasks have not all been done
        own_counter.stop()
        own.shutdown(cancel_futures=True)
        others.shutdown(cancel_futures=True)
        watched.close()


class _Place:
    """A worker for tasks: a thread of this process, or the other processes."""

    def __init__(
        self, executor: Executor, capacity: int, work: Callable[..., Any], counter: Callable[[int], object] | None
    ) -> None:
        self._executor, self._capacity, self._work, self._counter = executor, capacity, work, counter
        self._futures: set[Future[Any]] = set()

    @property
    def is_free(self) -> bool:
        """True if a task given now would be begun now."""
        self._futures = {future for future in self._futures if not future.done()}
        return len(self._futures) < self._capacity

    def submit(self, task: Any) -> Future[Any]:
        """Begin a task."""
        if self._counter is None:
            future = self._executor.submit(_work_counted, self._work, task)
        else:
            future = self._executor.submit(self._work, task, self._counter)
        self._futures.add(future)
        return future


class _OwnCounter:
    """Counter of this process's own tasks; ends its work when it should stop."""

    def __init__(self) -> None:
        self.done, self._stopped = 0, False

    def __call__(self, more: int) -> None:
        if self._stopped:
            raise ShardError("stopped, because another shard failed.")
        self.done += more

    def stop(self) -> None:
        """At the next call."""
        self._stopped = True


class _Looker:
    """Passes on what the counters have gained since the last look."""

    def __init__(self, counter: Any, own: _OwnCounter, progress: Callable[[int], object]) -> None:
        self._counter, self._own, self._progress, self._seen = counter, own, progress, 0

    def __call__(self) -> None:
        # Without the shared counter's lock, which a killed worker may hold.
        now = self._counter.get_obj().value + self._own.done
        if now > self._seen:
            self._progress(now - self._seen)
        self._seen = now


def _collect(places: Sequence[_Place], tasks: Sequence[Any], look: Callable[[], None]) -> list[Any]:
    results: list[Any] = [None] * len(tasks)
    numbers: dict[Future[Any], int] = {}
    upcoming = 0
    while upcoming < len(tasks) or numbers:
        for place in places:
            while upcoming < len(tasks) and place.is_free:
                numbers[place.submit(tasks[upcoming])] = upcoming
                upcoming += 1
        for future in wait(numbers, timeout=_SECONDS_BETWEEN_LOOKS, return_when=FIRST_COMPLETED).done:
            results[numbers.pop(future)] = future.result()
        look()
    return results


def _context() -> ForkServerContext:
    """Workers are forked from a server that has imported everything: they start at once, and share its memory."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        ["ccts_dist.shards.build.make_shard", "webdataset.writer"]
    )  # the latter imports late
    return context


def _work_counted(work: Callable[..., Any], task: Any) -> Any:
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
