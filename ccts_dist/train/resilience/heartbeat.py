"""Signs of life: each rank keeps a small file in the run folder that its peers can read, whatever has become of it.

Files rather than the process group's store: that store lives in rank 0 and falls silent with it, while the run folder
is on storage that all ranks share.
"""

import json
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from ccts_dist.train.resilience.launcher_watch import Process, read_process

_SIZE_BYTES = 2048
"""Size of a file: written in one piece and never shortened, so that a reader meets the old text or the new one."""

LOST_A_PEER = "lost a peer"
"""The reason of a rank that leaves because of another one; nobody's fault."""

STOPPED_BY_SIGNAL = "is stopped (SIGSTOP)"
"""State of a rank that may still go on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Heartbeat:
    """Last report of a rank."""

    rank: int
    host: str
    pid: int
    started: int
    """See ``launcher_watch.Process``."""

    number: int = 0
    """Rises with every beat."""

    place: str = ""
    """Current phase, for people: "epoch 1/5, step 12: reading"."""

    place_number: int = 0
    """How many places it has been at. All ranks come by the same places, so a lower number is behind."""

    waiting: bool = False
    """Inside a collective, that is waiting for peers."""

    line: str = ""
    """Line in the source."""

    asked: bool = False
    """A request to stop has reached it."""

    left: str = ""
    """Why it has left; "" while it is at work."""

    reported: bool = False
    """It has printed why it left: no peer needs to."""

    def words(self) -> str:
        """Who and where, for people."""
        line = f" ({self.line})" if self.line else ""
        return f"rank {self.rank} on {self.host} (process {self.pid}), last seen at {self.place or 'its start'}{line}"


def heartbeats_folder(output: Path) -> Path:
    """Folder of a run's signs of life."""
    return output / ".ranks"


def clear_heartbeats(folder: Path) -> None:
    """Remove those of an earlier start. A new one that goes with them is written again in a moment."""
    with suppress(OSError):
        folder.mkdir(exist_ok=True)
        for path in folder.glob("*.json"):
            path.unlink()


def write_heartbeat(folder: Path, heartbeat: Heartbeat) -> None:
    """Report it to whoever looks; a folder that cannot be written is no reason to stop."""
    text = json.dumps(asdict(heartbeat)).encode()[:_SIZE_BYTES].ljust(_SIZE_BYTES)
    with suppress(OSError):
        # Opened and closed each time: that is what makes it visible to other hosts on NFS.
        file = os.open(folder / f"{heartbeat.rank}.json", os.O_WRONLY | os.O_CREAT, 0o666)
        try:
            os.pwrite(file, text, 0)
        finally:
            os.close(file)


def read_heartbeats(folder: Path, num_ranks: int) -> dict[int, Heartbeat]:
    """The last beat of each rank that has a readable one."""
    heartbeats = {}
    for rank in range(num_ranks):
        with suppress(OSError, ValueError, TypeError):
            heartbeats[rank] = Heartbeat(**json.loads((folder / f"{rank}.json").read_text(encoding="utf-8")))
    return heartbeats


def plainly_lost(
    heartbeats: Mapping[int, Heartbeat], *, host: str, read: Callable[[int], Process | None] = read_process
) -> dict[int, str]:
    """Ranks that have certainly gone or are held, with what became of each: they reported so, or this host's system
    does.

    Args:
        heartbeats: what is known of each rank.
        host: this host; other hosts' processes cannot be seen.
        read: gives a process by number.
    """
    lost = {}
    for rank, heartbeat in heartbeats.items():
        if heartbeat.left:
            if heartbeat.left != LOST_A_PEER:
                lost[rank] = f"left: {heartbeat.left}"
        elif heartbeat.host == host:
            process = read(heartbeat.pid)
            if process is None or process.started != heartbeat.started or process.state in "ZX":
                lost[rank] = "has ended"
            elif process.state in "Tt":
                lost[rank] = STOPPED_BY_SIGNAL
    return lost


def silent_ranks(before: Mapping[int, Heartbeat], now: Mapping[int, Heartbeat], num_ranks: int) -> dict[int, str]:
    """Ranks of which nothing new was seen between two looks that lie several beats apart."""
    lost = {}
    for rank in range(num_ranks):
        heartbeat = now.get(rank)
        if heartbeat is None:
            lost[rank] = "has never given a sign of life"
        elif not heartbeat.left and rank in before and before[rank].number == heartbeat.number:
            lost[rank] = "gives no sign of life"
    return lost


def stuck_ranks(heartbeats: Mapping[int, Heartbeat]) -> dict[int, str]:
    """Ranks that keep the others waiting: outside a collective, and ahead of nobody. Empty when it is not known."""
    at_work = {rank: heartbeat for rank, heartbeat in heartbeats.items() if not heartbeat.left}
    first = min((heartbeat.place_number for heartbeat in at_work.values()), default=0)
    stuck = {
        rank: "is stuck"
        for rank, heartbeat in at_work.items()
        if heartbeat.place_number == first and not heartbeat.waiting
    }
    return stuck if len(stuck) < len(heartbeats) else {}
