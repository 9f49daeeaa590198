"""A thread beside training that receives requests to stop and sees to it that no process waits for ever.

These end a process from here, whatever its main thread is stuck in: a checkpoint that is not complete within the grace
period after a request to stop; peers that are lost or do not come within the time-out; memory that ran out; an exit
that takes too long.
"""

import os
import select
import sys
import threading
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from socket import gethostname
from types import FrameType, TracebackType

from ccts_dist.distributed import Ranks, is_lost_connection, write_nccl_record
from ccts_dist.errors import STOPPED, CctsError, OutOfMemoryError, PeerLostError, StopRequested
from ccts_dist.redaction import redact
from ccts_dist.train.checkpoints.checkpoint import checkpoints_folder
from ccts_dist.train.resilience.heartbeat import (
    LOST_A_PEER,
    STOPPED_BY_SIGNAL,
    Heartbeat,
    clear_heartbeats,
    heartbeats_folder,
    plainly_lost,
    read_heartbeats,
    silent_ranks,
    stuck_ranks,
    write_heartbeat,
)
from ccts_dist.train.resilience.launcher_watch import read_process
from ccts_dist.train.resilience.stop_requests import (
    LOOK_S,
    STOP_FILE,
    LauncherWatch,
    StopSignals,
    newest_complete,
)

SLACK_S = 5.0
"""Beyond the time-out: a collective that times out by itself lets the main thread end in good order."""

EXIT_S = 60.0
"""A process that is on its way out may take so long: the tracking server is waited for, threads are joined."""

_RANKS_PER_HEARTBEAT_S = 32
"""Beats of all ranks together per second: shared storage has other things to do."""

_OVERDUE_S = 10.0
"""On GPUs a rank that has waited so long for its peers looks whether one of them has gone: NCCL would not notice."""

_COLLECTIVES = os.path.join("torch", "distributed")
"""Source folder; a main thread that is in it waits for peers. DeepSpeed's wrappers end there too."""

_WAITS_ON_GPU = {
    ("engine.py", "step"),  # DeepSpeed copies the gradient's norm, which all ranks have a part in
    ("distributed.py", "sum_over_ranks"),  # copies numbers that the GPU has yet to compute, behind the last collective
    ("state.py", "gather"),
}
"""Functions of this package, by file. On GPUs collectives return at once, and these wait for what they bring."""


class Watchdog:
    """Watches over this rank from set-up to exit. Use as a context manager, in the main thread.

    Args:
        ranks: this process's.
        timeout_s: longest time that a rank waits for its peers.
        stop_grace_s: longest time from a request to stop to a complete checkpoint.
        on_gpu: ranks compute on GPUs, where a collective returns before it is done.
    """

    def __init__(self, ranks: Ranks, *, timeout_s: float, stop_grace_s: float, on_gpu: bool = False) -> None:
        self._ranks, self._timeout_s, self._stop_grace_s, self._on_gpu = ranks, timeout_s, stop_grace_s, on_gpu
        process = read_process(os.getpid())
        self._heartbeat = Heartbeat(
            rank=ranks.rank, host=gethostname(), pid=os.getpid(), started=process.started if process else 0
        )
        self.heartbeat_s = min(10.0, max(1.0, ranks.num_ranks / _RANKS_PER_HEARTBEAT_S))
        """Seconds between two beats of a rank."""

        self._signals = StopSignals()
        self._launcher = LauncherWatch()
        self._output: Path | None = None
        self._request = ""
        self._asked_at: float | None = None
        self._left = ""
        self._reported = False
        self._speaks = True
        self._place = (0, "")
        self._moved_at = self._waiting_since = time.monotonic()
        self._brief = False
        self._looked_at = self._heartbeat_at = self._counted_at = 0.0
        self._exiting: tuple[float, int] | None = None
        self._main = threading.get_ident()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)
        self._thread.start()

    def __enter__(self) -> "Watchdog":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, PeerLostError):
            self._last_words(str(error))
            # Threads of a library may still wait for the lost rank, and the interpreter would wait for them.
            self._end(error.exit_code)
        if isinstance(error, OutOfMemoryError) and self._ranks.num_ranks > 1:
            self._exit_at_once(error)
        if error is None or self._ranks.num_ranks == 1:  # nothing that one rank leaves behind can hang
            self._ended.set()
            self._thread.join()
            self._signals.restore()
            return
        # The signals stay as they are: the launcher sends SIGTERM to the ranks as soon as one of them has left.
        if not isinstance(error, CctsError):
            self._left = redact(f"{type(error).__name__}: {error}")[:300]
            self._write()
        self._exiting = (time.monotonic() + EXIT_S, error.exit_code if isinstance(error, CctsError) else 1)

    def _exit_at_once(self, error: CctsError) -> None:
        """End on this rank alone: its peers wait for it in a pass that it cannot finish, and end when it has gone."""
        self._left, self._reported = redact(str(error))[:300], True
        self._write()
        self._print(f"error: {error} All ranks end. {self._advice('Mend the cause')}")
        self._end(error.exit_code)

    def follow(self, output: Path) -> None:
        """From now on leave signs of life in the run folder, and look for a stop file there."""
        if self._ranks.is_first:
            clear_heartbeats(heartbeats_folder(output))
        self._output = output

    def at(self, place: str, *, brief: bool = False) -> None:
        """Report where training is. All ranks must come by the same places in the same order.

        Args:
            place: for people.
            brief: nobody may stay there longer than the time-out, not even at work.
        """
        self._place = (self._place[0] + 1, place)  # in one piece: the thread reads it at any moment
        self._moved_at = self._waiting_since = time.monotonic()
        self._brief = brief

    @property
    def place(self) -> str:
        """Current place of training, for people."""
        return self._place[1] or "its start"

    def check(self) -> None:
        """Raise what this rank was asked, if it was. Call it where an error of one rank becomes one of all.

        Raises:
            StopRequested: in words, by what.
        """
        if self._signals.request:
            self._ask(self._signal_words())
        if self._request:
            raise StopRequested(self._request)

    def met(self) -> None:
        """All ranks know of the request; from now on the grace period runs on each of them."""
        self._ask("another rank was asked to")

    def saved(self) -> None:
        """The checkpoint that a request asked for is complete; only leaving is left."""
        self._exiting = (time.monotonic() + EXIT_S, STOPPED)

    def explain(self, error: RuntimeError) -> PeerLostError | None:
        """Who is lost, when ``error`` is a collective that failed or timed out; None when it is anything else.

        Takes a few beats of time. Call it on every rank that has such an error.
        """
        if self._ranks.num_ranks == 1 or not is_lost_connection(error):
            return None
        self._exiting = (time.monotonic() + EXIT_S, 1)
        self._left = LOST_A_PEER
        self._write()
        words = str(error).lower()
        return PeerLostError(self._verdict(timed_out="timed out" in words or "timeout" in words))

    def _run(self) -> None:
        while not self._ended.is_set():
            ready, _, _ = select.select([self._signals.readable], [], [], 0.25)
            if ready:
                self._signals.read()
            now = time.monotonic()
            if now - self._looked_at >= LOOK_S:
                self._looked_at = now
                self._look()
            if self._signals.request:
                self._ask(self._signal_words())
            if now - self._heartbeat_at >= self.heartbeat_s:
                self._heartbeat_at = now
                self._write()
            self._limit(now)

    def _look(self) -> None:
        if self._launcher.has_gone():
            self._ask(f"the launcher of rank {self._ranks.rank} has gone")
        elif self._ranks.is_first and self._output is not None and (self._output / STOP_FILE).exists():
            self._ask(f"file {STOP_FILE}")

    def _signal_words(self) -> str:
        return f"{self._signals.request} on rank {self._ranks.rank}"

    def _ask(self, request: str) -> None:
        self._request = self._request or request
        if self._asked_at is None:
            self._asked_at = time.monotonic()

    def _write(self) -> None:
        """Look where the main thread is, and report the peers."""
        waiting, line = where(sys._current_frames().get(self._main), on_gpu=self._on_gpu)
        if not waiting:
            self._waiting_since = time.monotonic()
        place_number, place = self._place
        self._heartbeat = replace(
            self._heartbeat,
            number=self._heartbeat.number + 1,
            place=place,
            place_number=place_number,
            waiting=waiting,
            line=line,
            asked=self._asked_at is not None,
            left=self._left,
            reported=self._reported,
        )
        if self._output is not None:
            write_heartbeat(heartbeats_folder(self._output), self._heartbeat)

    def _limit(self, now: float) -> None:
        """End the process if one of its limits has passed."""
        if self._exiting is not None:
            if now > self._exiting[0]:
                self._end(self._exiting[1])
            return
        if self._asked_at is not None and now > self._asked_at + self._stop_grace_s:
            self._out_of_grace()
        allowed_s = self._timeout_s + SLACK_S
        stuck = self._brief and now - self._moved_at > allowed_s
        if self._ranks.num_ranks == 1:
            return
        if stuck or now - self._waiting_since > allowed_s:
            self._give_up(timed_out=True)
        if self._on_gpu and now - max(self._waiting_since, self._counted_at) > _OVERDUE_S:
            self._counted_at = now
            if self._has_lost_one():
                self._give_up(timed_out=False)

    def _has_lost_one(self) -> bool:
        """True if a peer has left, or has ended on this host."""
        heartbeats = (
            {} if self._output is None else read_heartbeats(heartbeats_folder(self._output), self._ranks.num_ranks)
        )
        heartbeats.pop(self._ranks.rank, None)
        gone = plainly_lost(heartbeats, host=self._heartbeat.host)
        return any(how != STOPPED_BY_SIGNAL for how in gone.values())

    def _give_up(self, *, timed_out: bool) -> None:
        """Name who is lost, and end; the peers, who look at the same time, must not take this rank for the lost one."""
        self._left = LOST_A_PEER
        self._write()
        self._last_words(self._verdict(timed_out=timed_out))
        if self._on_gpu and self._output is not None:
            write_nccl_record(heartbeats_folder(self._output), self._ranks.rank)
        self._end(1)

    def _out_of_grace(self) -> None:
        # Until the ranks have met, only those that were asked know of it.
        heartbeats = (
            {} if self._output is None else read_heartbeats(heartbeats_folder(self._output), self._ranks.num_ranks)
        )
        if self._ranks.rank == min(
            (rank for rank, heartbeat in heartbeats.items() if heartbeat.asked), default=self._ranks.rank
        ):
            self._print(
                f"error: stopping was asked for ({self._request}), and no checkpoint was complete within "
                f"train.stop_grace_s = {self._stop_grace_s:g} s; this rank was at {self._place[1] or 'its start'}. "
                f"{self._advice('Give it more time')}"
            )
        self._end(1)

    def _verdict(self, *, timed_out: bool) -> str:
        """Names the ranks that are lost, or all places when nobody can be singled out; decides also who speaks."""
        lost, heartbeats = self._find_lost(timed_out)
        speakers = [rank for rank in range(self._ranks.num_ranks) if rank not in lost] or [self._ranks.rank]
        if not lost:  # a network in two parts: one speaks on every host
            here = [rank for rank in speakers if rank in heartbeats and heartbeats[rank].host == self._heartbeat.host]
            speakers = here or [self._ranks.rank]
        has_printed = bool(lost) and all(rank in heartbeats and heartbeats[rank].reported for rank in lost)
        self._speaks = self._ranks.rank == min(speakers) and not has_printed
        advice = self._advice("Mend the cause")
        if lost:
            names = "; ".join(
                f"{heartbeats[rank].words() if rank in heartbeats else f'rank {rank}'}: {how}"
                for rank, how in sorted(lost.items())
            )
            return f"{names}. All ranks end. {advice}"
        places = "; ".join(heartbeat.words() for heartbeat in heartbeats.values()) or "no rank's place is known"
        waited = f"within train.comm_timeout_s = {self._timeout_s:g} s" if timed_out else "any more"
        alive = ", and all are alive" if self._output is not None else ""
        return f"ranks cannot reach each other {waited}{alive}: {places}. All ranks end. {advice}"

    def _find_lost(self, timed_out: bool) -> tuple[dict[int, str], dict[int, Heartbeat]]:
        if self._output is None:
            return {}, {self._heartbeat.rank: self._heartbeat}
        folder, num_ranks, lost = heartbeats_folder(self._output), self._ranks.num_ranks, {}
        heartbeats = before = read_heartbeats(folder, num_ranks)
        until = time.monotonic() + 4 * self.heartbeat_s
        while not lost and time.monotonic() < until:
            time.sleep(0.5)
            self._write()  # the peers decide at the same time
            heartbeats = read_heartbeats(folder, num_ranks)
            lost = plainly_lost(heartbeats, host=self._heartbeat.host)
            lost.pop(self._ranks.rank, None)
        if not lost:
            lost = silent_ranks(before, heartbeats, num_ranks)
            lost.pop(self._ranks.rank, None)
        if not lost and timed_out:
            lost = stuck_ranks(before)
        return lost, heartbeats | {self._ranks.rank: self._heartbeat}

    def _advice(self, what: str) -> str:
        if self._output is None:
            return "Nothing was trained yet."
        names: list[str] = []
        with suppress(OSError):
            names = os.listdir(checkpoints_folder(self._output))
        newest = newest_complete(names)
        if not newest:
            return f"There is no complete checkpoint yet. {what}, and start again."
        return f"The newest complete checkpoint is {newest}. {what}, and run the same command with --resume auto."

    def _last_words(self, words: str) -> None:
        if self._speaks:
            self._print(f"error: {words}")

    def _print(self, words: str) -> None:
        # Not through a stream or a bar: the main thread may be stuck with its lock.
        with suppress(OSError):
            os.write(2, f"{redact(' '.join(words.split()))}\n".encode())

    def _end(self, code: int) -> None:
        with suppress(OSError):
            sys.stdout.flush()
        os._exit(code)


def where(frame: FrameType | None, *, on_gpu: bool = False) -> tuple[bool, str]:
    """True if a thread at ``frame`` waits for peers in a collective, and its line in the source, for people.

    The line is the innermost one of this package, if any: what lies below it is a library's business.

    Args:
        on_gpu: it may also wait for a collective outside it, in a copy from the GPU.
    """
    waiting, line, innermost = False, "", ""
    while frame is not None:
        code = frame.f_code
        path = code.co_filename
        name, is_ours = Path(path).name, "ccts_dist" in Path(path).parts
        waiting = waiting or _COLLECTIVES in path
        waiting = waiting or (on_gpu and is_ours and (name, code.co_name) in _WAITS_ON_GPU)
        innermost = innermost or f"{name}:{frame.f_lineno} {code.co_name}"
        if not line and is_ours:
            line = f"{name}:{frame.f_lineno} {code.co_name}"
        frame = frame.f_back
    return waiting, line or innermost


def stopped_words(request: str, output: Path) -> str:
    """The last words of a run that was stopped on request, once its checkpoint is complete."""
    names: list[str] = []
    with suppress(OSError):
        names = os.listdir(checkpoints_folder(output))
    newest = newest_complete(names)
    done = f"at step {int(newest.rpartition('-')[2])}: complete checkpoint {newest}" if newest else "before any step"
    removed = f"; {STOP_FILE} is removed" if request.startswith(f"file {STOP_FILE}") else ""
    return f"stopped on request ({request}{removed}) {done}. Run the same command with --resume auto to go on."
