"""Locks between processes, which end with their process."""

import fcntl
from typing import IO


def lock(file: IO[bytes] | IO[str] | int, *, wait: bool = False, shared: bool = False) -> bool:
    """Lock an open file until it is closed; False when another process holds it.

    A file system without locks lets everybody in.

    Args:
        file: opened, or its descriptor.
        wait: until it is free.
        shared: with others that share it.
    """
    kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    try:
        fcntl.flock(file, kind if wait else kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        pass
    return True
