"""Events on disk, in order, until a server has taken them: what was given is lost by no SIGKILL.

    events-000000000001.jsonl    a segment: the steps so far of every metric, then an event a line (see ``events``)
    events-sent.json             the number of the last event that the server has, and the steps up to it
    events-refused.jsonl         what the server will never take, with its reason
    events-lock                  held by the one process that sends

A segment is written by one process only, in whole lines; each start begins another. The newest is kept, others go once
all of theirs is sent: a server that is there bounds the files, and one that is away does not. ``sent`` may lag behind
the truth after a kill: events are then sent again, and server or sender has to know them.
"""

import errno
import json
import logging
import os
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import final

from ccts_dist.files.locking import lock
from ccts_dist.tracking.events import ALONE, Event, MetricEvent, from_line, in_words, to_line

log = logging.getLogger(__name__)

SEGMENT_BYTES = 1 << 20
_MOST_IN_MEMORY = 2_000
_NONE = -1


@final
class Spool:
    """A queue of events in files. Any thread may call any method; none raises because of the disk.

    What the disk does not take is kept in memory, after a warning, and written as soon as it does.
    """

    def __init__(self, folder: Path, name: str, *, segment_bytes: int = SEGMENT_BYTES) -> None:
        """Go on with what is there.

        Args:
            folder: is there.
            name: that the files begin with.
            segment_bytes: size from which a new segment is begun.
        """
        self._folder, self._name, self._segment_bytes = folder, name, segment_bytes
        self._guard = threading.RLock()
        self._ahead: deque[tuple[int, Event]] = deque()  # the next to be sent
        self._unwritten: deque[tuple[int, Event]] = deque()
        self._sent, self._sent_steps = self._read_sent()
        self._read = self._sent  # the last event that has come to _ahead
        self._place = (0, 0)  # where reading goes on: a segment by its first number, and a byte
        self._last, self._steps = self._read_newest()
        self._file = _NONE
        self._first, self._size = 0, 0
        self._lock = _NONE
        self._in_trouble = False
        self.num_refused = 0
        """Events that were put aside by this process."""

    @property
    def num_waiting(self) -> int:
        """Events that are not sent yet."""
        with self._guard:
            return max(0, self._last - self._sent)

    @property
    def last(self) -> int:
        """Number of the last event that was put."""
        return self._last

    @property
    def sent(self) -> int:
        """Number of the last event that was sent."""
        return self._sent

    @property
    def num_at_risk(self) -> int:
        """Events that are in memory alone, because the disk does not take them."""
        return len(self._unwritten)

    def put(self, *events: Event) -> int:
        """Add events; the number of the last. A metric at or below the last step of its key is dropped."""
        with self._guard:
            before = self._last
            for event in events:
                if isinstance(event, MetricEvent):
                    if event.step <= self._steps.get(event.key, -1):
                        continue
                    self._steps[event.key] = event.step
                self._last += 1
                self._unwritten.append((self._last, event))
            new = [entry for entry in self._unwritten if entry[0] > before]
            self._write()
            if self._read == before and len(self._ahead) < _MOST_IN_MEMORY:
                self._ahead.extend(new)
                self._read, self._place = self._last, (self._first, self._size)
            return self._last

    def forget_steps(self) -> None:
        """From now on any step may come again: they go to another run."""
        with self._guard:
            self._steps, self._sent_steps = {}, {}

    def head(self, most: int) -> list[Event]:
        """The next events to send, of one kind; at most so many, and only one of the kinds that are sent alone."""
        with self._guard:
            if not self._ahead:
                self._read_on()
            batch: list[Event] = []
            for _, event in self._ahead:
                if len(batch) == most or (batch and (type(event) is not type(batch[0]) or type(event) in ALONE)):
                    break
                batch.append(event)
            return batch

    def done(self, count: int) -> None:
        """The server has the next ``count`` events."""
        with self._guard:
            for _ in range(count):
                self._sent, event = self._ahead.popleft()
                if isinstance(event, MetricEvent):
                    self._sent_steps[event.key] = event.step
            while self._unwritten and self._unwritten[0][0] <= self._sent:
                self._unwritten.popleft()
            state = json.dumps({"sent": self._sent, "steps": self._sent_steps})
            try:
                partial = self._path("sent.partial")
                partial.write_text(state, encoding="utf-8")
                partial.replace(self._path("sent.json"))
            except OSError as error:
                self._warn(error)
                return  # what was sent according to the disk stays there
            self._compact()

    def refuse(self, reason: str) -> None:
        """The server will never take the next event: put it aside."""
        with self._guard:
            event = self._ahead[0][1]
            log.warning("tracking: the server refuses %s for good: %s", in_words(event), reason)
            try:
                with self._path("refused.jsonl").open("a", encoding="utf-8") as file:
                    file.write(json.dumps([reason, to_line(self._ahead[0][0], event)], ensure_ascii=False) + "\n")
            except OSError as error:
                self._warn(error)
            self.num_refused += 1
            self.done(1)

    def take(self) -> bool:
        """Become the process that sends, until ``close``; False while another one is."""
        with self._guard:
            if self._lock != _NONE:
                return True
            try:
                file = os.open(self._path("lock"), os.O_WRONLY | os.O_CREAT, 0o666)
            except OSError as error:  # without a disk there is nobody else who could send this
                self._warn(error)
                return True
            if not lock(file):
                os.close(file)
                return False
            self._lock = file
            sent, steps = self._read_sent()
            if sent > self._sent:  # another process has sent meanwhile
                self._sent, self._sent_steps, self._read = sent, steps, max(sent, self._read)
                while self._ahead and self._ahead[0][0] <= sent:
                    self._ahead.popleft()
            return True

    def sync(self) -> None:
        """Make what was put outlive a power cut, too."""
        with self._guard, suppress(OSError):
            if self._file != _NONE:
                os.fsync(self._file)

    def close(self) -> None:
        """Let files and lock go."""
        with self._guard:
            for file in (self._file, self._lock):
                if file != _NONE:
                    os.close(file)
            self._file = self._lock = _NONE

    def _path(self, end: str) -> Path:
        return self._folder / f"{self._name}-{end}"

    def _segments(self) -> list[int]:
        """First numbers of the segments that are there, rising."""
        names = [path.stem.removeprefix(f"{self._name}-") for path in self._folder.glob(f"{self._name}-*.jsonl")]
        return sorted(int(name) for name in names if name.isdecimal())

    def _segment(self, first: int) -> Path:
        return self._path(f"{first:012d}.jsonl")

    def _read_sent(self) -> tuple[int, dict[str, int]]:
        try:
            stored = json.loads(self._path("sent.json").read_text(encoding="utf-8"))
            return int(stored["sent"]), {key: int(step) for key, step in stored["steps"].items()}
        except FileNotFoundError:
            return 0, {}
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            log.warning(
                "tracking: %s is not readable and all events are sent again: %r", self._path("sent.json"), error
            )
            return 0, {}

    def _read_newest(self) -> tuple[int, dict[str, int]]:
        """Number of the last event, and the last step of every metric, as far as files report."""
        last, steps = self._sent, dict(self._sent_steps)
        for first in self._segments()[-1:]:
            for _, line in self._lines(first, 0):
                with suppress(ValueError):
                    head = json.loads(line)
                    if isinstance(head, dict):
                        steps |= head["steps"]
                        continue
                    number, event = from_line(line)
                    last = max(last, number)
                    if isinstance(event, MetricEvent):
                        steps[event.key] = event.step
            last = max(last, first - 1)
        return last, steps

    def _lines(self, first: int, start: int) -> Iterator[tuple[int, str]]:
        """Whole lines of a segment from a byte on, with the byte after each."""
        try:
            with self._segment(first).open("rb") as file:
                file.seek(start)
                for line in file:
                    if not line.endswith(b"\n"):  # being written, or cut off by a kill
                        return
                    start += len(line)
                    yield start, line.decode(errors="replace")
        except OSError as error:
            self._warn(error)

    def _read_on(self) -> None:
        """Bring more events to memory: from the files, then those that no file took."""
        for first in self._segments():
            if first < self._place[0]:
                continue
            for end, line in self._lines(first, self._place[1] if first == self._place[0] else 0):
                self._place = (first, end)
                if line.startswith("{"):
                    continue
                try:
                    number, event = from_line(line)
                except ValueError as error:
                    log.warning("tracking: %s has a damaged line, which is omitted: %s", self._segment(first), error)
                    continue
                if number > self._read:
                    self._ahead.append((number, event))
                    self._read = number
                    self._last = max(number, self._last)  # another process may have put it
                if len(self._ahead) >= _MOST_IN_MEMORY:
                    return
        more = [entry for entry in self._unwritten if entry[0] > self._read]
        self._ahead.extend(more)
        if more:
            self._read = more[-1][0]
        elif not self._ahead and not self._in_trouble and self._folder.is_dir():
            self._sent = self._read = self._last  # what is missing was lost with damaged lines

    def _write(self) -> None:
        """Write what is not written, in one piece or not at all."""
        if not self._unwritten:
            return
        data = "".join(to_line(number, event) for number, event in self._unwritten).encode()
        try:
            if self._file == _NONE or self._size > self._segment_bytes:
                self._begin_segment(data)
            else:
                _write_whole(self._file, data, self._size)
        except OSError as error:
            self._warn(error)
            return
        self._size += len(data)
        self._unwritten.clear()
        if self._in_trouble:
            log.warning("tracking: %s takes events again; nothing was lost", self._folder)
            self._in_trouble = False

    def _begin_segment(self, data: bytes) -> None:
        first = self._unwritten[0][0]
        head = (json.dumps({"steps": self._steps_before(first)}) + "\n").encode()
        file = os.open(self._segment(first), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        try:
            _write_whole(file, head + data, 0)
        except OSError:
            os.close(file)
            self._segment(first).unlink(missing_ok=True)
            raise
        if self._file != _NONE:
            os.close(self._file)
        self._file, self._first, self._size = file, first, len(head)
        self._compact()

    def _steps_before(self, number: int) -> dict[str, int]:
        """The last step of every metric before an event; those that the lines from it on report are left to them."""
        later = {event.key for n, event in self._unwritten if n >= number and isinstance(event, MetricEvent)}
        return {key: step for key, step in self._steps.items() if key not in later}

    def _compact(self) -> None:
        segments = self._segments()
        for first, following in pairwise(segments):
            if following <= self._sent + 1:
                with suppress(OSError):
                    self._segment(first).unlink()

    def _warn(self, error: OSError) -> None:
        if not self._in_trouble:
            log.warning("tracking: the disk fails; training goes on, events are kept in memory: %s", error)
        self._in_trouble = True


def _write_whole(file: int, data: bytes, size: int) -> None:
    """Append to an open file of ``size`` bytes, or leave it as it is.

    Raises:
        OSError: the disk takes none of it, or not all.
    """
    try:
        if os.write(file, data) != len(data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    except OSError:
        with suppress(OSError):
            os.ftruncate(file, size)
        raise
