"""What DeepSpeed compiles at its first start, and a kill in the middle of that."""

import os
import time
from pathlib import Path

from ccts_dist.distributed import Ranks, barrier
from ccts_dist.progress import say

OLDEST_BUILD_S = 600.0
"""A build takes under a minute."""


def compiled_folder() -> Path:
    """Where torch keeps what it compiles for this user."""
    # Imported late: it looks for compilers.
    from torch.utils.cpp_extension import get_default_build_root

    return Path(os.environ.get("TORCH_EXTENSIONS_DIR") or get_default_build_root())


def forget_dead_builds(folder: Path, ranks: Ranks) -> None:
    """Remove the locks that builds of DeepSpeed's libraries left when they were killed.

    Torch marks a build under way by a file that says nothing of whose it is, and waits for its end for ever: a start
    that was killed while it compiled would stop all later ones. Every rank must call it, before anything is compiled.
    """
    if ranks.local_rank == 0:
        for lock in [*folder.glob("deepspeed_*/lock"), *folder.glob("*/deepspeed_*/lock")]:
            try:
                if time.time() - lock.stat().st_mtime > OLDEST_BUILD_S:
                    lock.unlink()
                    say(f"{lock}: removed, a build that was killed had left it")
            except OSError:
                continue  # another host's rank was first, or it is another user's
    barrier()
