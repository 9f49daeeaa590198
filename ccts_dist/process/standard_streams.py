"""Standard streams that the caller closed: daemons and job systems start commands without them."""

import os
import sys

_STREAMS = ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w"))


def complete_streams() -> None:
    """Lead each closed standard stream to the null device, for this process and those that it starts.

    Otherwise Python has no object to write to. The next file that is opened would take the free number, and remarks of
    C libraries would go into it.
    """
    for number, name, mode in _STREAMS:
        is_free = not _is_open(number)
        if is_free:
            null = os.open(os.devnull, os.O_RDWR)
            if null == number:
                os.set_inheritable(number, True)
            else:
                os.dup2(null, number)
                os.close(null)
        if getattr(sys, name) is None:
            place = number if is_free else os.devnull
            stream = open(place, mode, encoding="utf-8", errors="backslashreplace", closefd=not is_free)  # noqa: SIM115 - kept
            setattr(sys, name, stream)


def _is_open(number: int) -> bool:
    try:
        os.fstat(number)
    except OSError:
        return False
    return True
