"""Libraries that DeepSpeed compiles at its first start, and a kill in the middle of that."""

import fcntl
import os
import platform
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ccts_dist.errors import BuildError
from ccts_dist.progress import log

OLDEST_BUILD_S = 600.0
"""A build takes a minute, on a busy machine some."""

_HERE = platform.node().encode()


def extension_folder() -> Path:
    """Folder in which torch keeps what it compiles for this user."""
    # Imported late: it looks for compilers.
    from torch.utils.cpp_extension import get_default_build_root

    return Path(os.environ.get("TORCH_EXTENSIONS_DIR") or get_default_build_root())


def compile_once(name: str, load: Callable[[], object]) -> None:
    """Have a library on this host that DeepSpeed compiles when it is first loaded.

    Any number of processes may call it at once: one of them compiles, the others wait for it.

    Args:
        name: of the library.
        load: loads it, compiled before if it must be.

    Raises:
        BuildError: the compiler is missing or fails.
    """
    folder = extension_folder()
    with one_build_at_a_time(folder):
        if not any(folder.rglob(f"{name}.so")):
            log(f"compiling {name} into {folder}: a minute, once")
        try:
            load()
        except (RuntimeError, OSError, ImportError) as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise BuildError(
                f"{folder}: DeepSpeed's library {name} cannot be compiled or loaded: {reason}. It needs g++ (on "
                "Debian: apt-get install g++) and a folder that can be written: TORCH_EXTENSIONS_DIR names another."
            ) from error


@contextmanager
def one_build_at_a_time(folder: Path) -> Iterator[None]:
    """Hold this host's turn to compile; what builds left that were killed is removed first.

    Torch marks a build under way by a file that states nothing of whose it is, and waits for its end for ever: a start
    that was killed while it compiled would stop all later ones. The lock here ends with its process, and what stands in
    it states that the last holder did not finish.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        turn = (folder / "deepspeed.turn").open("a+b", buffering=0)
    except OSError:
        yield  # read-only: compiled by somebody else, or torch will report so
        return
    with turn:
        locked = False
        with suppress(OSError):  # a file system without locks
            fcntl.flock(turn, fcntl.LOCK_EX)
            locked = True
        turn.seek(0)
        # Of another host's mark this host cannot state that it is dead: locks of some shared folders end at the host.
        dead = locked and turn.read() == _HERE
        _forget_dead_builds(folder, age_s=0.0 if dead else OLDEST_BUILD_S)
        turn.truncate(0)
        turn.write(_HERE)
        try:
            yield
        finally:
            turn.truncate(0)


def _forget_dead_builds(folder: Path, age_s: float) -> None:
    """Remove builds of DeepSpeed's libraries whose mark is older than that.

    With all that is in them: a compiler that lives on after its build was killed then has no place to write to. Where
    the holder was killed while it loaded a library that was there, only the mark goes.
    """
    for lock in [*folder.glob("deepspeed_*/lock"), *folder.glob("*/deepspeed_*/lock")]:
        with suppress(OSError):  # another host's rank was first, or it is another user's
            if time.time() - lock.stat().st_mtime < age_s:
                continue
            if _was_only_loaded(lock):
                lock.unlink()
            else:
                shutil.rmtree(lock.parent)
                log(f"{lock.parent}: removed, a build that was killed had left it")


def _was_only_loaded(lock: Path) -> bool:
    """True if the library was there when the mark was set, and nothing was written after."""
    others = [path.stat().st_mtime_ns for path in lock.parent.iterdir() if path != lock]
    return any(lock.parent.glob("*.so")) and max(others) < lock.stat().st_mtime_ns
