"""Readers under inputs without end: a process of their own with little memory, a bounded time, and every input kept.

Seconds of CPU time for each reader: ``CCTS_FUZZ_S``, 1 by default, 600 for a thorough run. The first input is another
one each day; ``CCTS_FUZZ_SEED`` names one.
"""

import os
import random
import resource
import signal
import sys
import time
import traceback
from collections.abc import Callable
from datetime import date
from pathlib import Path

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from ccts_dist.errors import CctsError

SECONDS = float(os.environ.get("CCTS_FUZZ_S", "1"))
FIRST = int(os.environ.get("CCTS_FUZZ_SEED", date.today().toordinal()))
MOST_BYTES = 1 << 30
"""That a reader may take beside what its process had."""

LONGEST_S = 60
"""CPU time of a single input; ten times as long for one that waits."""

Mutate = Callable[[random.Random], bytes]


def fuzz(
    mutate: Mutate, read: Callable[[bytes], object], found: Path, *, allowed: tuple[type[Exception], ...] = ()
) -> int:
    """Give a reader other inputs until the time is over; how many they were.

    Anything but the project's own errors fails, as do a gigabyte of memory and a minute. The input at fault is in
    ``found``.

    Args:
        mutate: makes an input.
        read: the reader.
        allowed: further errors that the reader states it raises.
    """
    report, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(report)
        code = 1
        with os.fdopen(write, "w") as words:
            try:
                words.write(str(_fuzz(mutate, read, found, (CctsError, *allowed))))
                code = 0
            except BaseException:  # noqa: BLE001 - reported to the parent, whatever it is
                words.write(traceback.format_exc())
        os._exit(code)
    os.close(write)
    with os.fdopen(report) as words:
        reported = words.read()
    _, status = os.waitpid(child, 0)
    assert status == 0, f"{reported}\nthe process ended with {status}; the input is {found}"
    print(f"{reported} inputs")
    return int(reported)


def _fuzz(mutate: Mutate, read: Callable[[bytes], object], found: Path, allowed: tuple[type[Exception], ...]) -> int:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (mapped + MOST_BYTES,) * 2)
    sys.stderr = sys.stdout = open(os.devnull, "w")  # noqa: SIM115
    end, count, rounds = time.process_time() + SECONDS, 0, 0

    def one(draw: random.Random) -> None:
        nonlocal count
        data = mutate(draw)
        found.write_bytes(data)
        signal.setitimer(signal.ITIMER_PROF, LONGEST_S)
        signal.alarm(10 * LONGEST_S)
        try:
            read(data)
        except allowed:
            pass
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
            signal.alarm(0)
        count += 1
        taken = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before << 10
        assert taken < MOST_BYTES, f"{taken} bytes of memory"

    for number in (signal.SIGPROF, signal.SIGALRM):
        signal.signal(number, _too_long)
    quick = settings(
        max_examples=25,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    while time.process_time() < end:  # a busy machine tries as many
        quick(seed(FIRST + 1_000_003 * rounds)(given(st.randoms(use_true_random=True))(one)))()
        rounds += 1
    return count


def _too_long(*_: object) -> None:
    raise TimeoutError(f"took {LONGEST_S} s of CPU time, or ten times as long")
