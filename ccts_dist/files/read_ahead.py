"""Jobs done ahead by threads, their results in order."""

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Executor, Future
from typing import TypeVar

Key = TypeVar("Key")
Result = TypeVar("Result")


def read_ahead(
    pool: Executor, jobs: Iterable[tuple[Key, Callable[[], Result]]], depth: int
) -> Generator[tuple[Key, Result], None, None]:
    """Each job's key and result, in the order of the jobs; what a job raises is raised in its turn.

    Args:
        pool: that does them.
        jobs: are drawn as they are needed.
        depth: most that are begun beyond the one whose result is wanted.
    """
    waiting: deque[tuple[Key, Future[Result]]] = deque()
    try:
        for key, job in jobs:
            waiting.append((key, pool.submit(job)))
            if len(waiting) > depth:
                key, future = waiting.popleft()
                yield key, future.result()
        while waiting:
            key, future = waiting.popleft()
            yield key, future.result()
    finally:
        for _, future in waiting:
            future.cancel()
