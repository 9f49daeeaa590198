"""The thread between a spool and a server: order, patience, and what stays."""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ccts_dist.tracking.events import Event, MetricEvent, ParamEvent, StatusEvent
from ccts_dist.tracking.spooling.delivery import RejectedByServerError, ServerUnavailableError, deliver
from ccts_dist.tracking.spooling.outbox import Outbox
from ccts_dist.tracking.spooling.spool import Spool
from tests.tiers import examples


def _metrics(count: int, key: str = "loss") -> list[MetricEvent]:
    return [MetricEvent(key, float(step), step, 0) for step in range(count)]


class Server:
    """Takes events, or does not: each call consumes one verdict, and without any left it takes what comes."""

    def __init__(self, verdicts: Sequence[str] = ()) -> None:
        self.taken: list[Event] = []
        self.calls: list[int] = []
        self.refuses: set[Event] = set()
        self._verdicts = list(verdicts)

    def __call__(self, events: Sequence[Event]) -> None:
        self.calls.append(len(events))
        verdict = self._verdicts.pop(0) if self._verdicts else "takes"
        if verdict == "away":
            raise ServerUnavailableError("connection refused")
        if any(event in self.refuses for event in events):
            raise RejectedByServerError("not in this form")
        self.taken += events


@pytest.fixture
def spool(tmp_path: Path) -> Spool:
    return Spool(tmp_path, "events")


@contextmanager
def _outbox(server: Server, spool: Spool, *, batch_events: int = 500) -> Iterator[Outbox]:
    outbox = Outbox(
        server, spool, interval_s=60.0, batch_events=batch_events, first_pause_s=0.001, longest_pause_s=0.002
    )
    try:
        yield outbox
    finally:
        outbox.close(0.0)


def _wait(until: Callable[[], object]) -> None:
    deadline = time.monotonic() + 5
    while not until() and time.monotonic() < deadline:
        time.sleep(0.001)


def _left(folder: Path) -> list[Event]:
    """What another start finds in the spool."""
    return Spool(folder, "events").head(1000)


@given(verdicts=st.lists(st.sampled_from(["takes", "away"]), max_size=12), count=st.integers(1, 20))
@examples(25)
def test_whatever_fails_on_the_way_events_arrive_once_and_in_order(verdicts: list[str], count: int) -> None:
    server = Server(verdicts)
    events = _metrics(count)
    with TemporaryDirectory() as folder:
        with _outbox(server, Spool(Path(folder), "events"), batch_events=3) as outbox:
            for event in events:
                outbox.put(event)
            assert outbox.close(5.0) == 0
        assert _left(Path(folder)) == []
    assert server.taken == events


def test_no_call_carries_more_than_the_batch_or_two_kinds(spool: Spool) -> None:
    server = Server()
    with _outbox(server, spool, batch_events=4) as outbox:
        outbox.put(*_metrics(9), ParamEvent("a", "1"), ParamEvent("b", "2"), StatusEvent("FINISHED", 0))
        assert outbox.flush(5.0)
    assert sorted(server.calls) == sorted([4, 4, 1, 2, 1])


def test_events_wait_for_company_until_the_interval_is_over(spool: Spool) -> None:
    server = Server()
    outbox = Outbox(server, spool, interval_s=0.05)
    outbox.put(*_metrics(3))
    assert server.calls == []
    _wait(lambda: server.calls)
    assert server.calls == [3]
    outbox.close(1.0)


def test_a_full_batch_is_sent_before_the_interval_is_over(spool: Spool) -> None:
    server = Server()
    with _outbox(server, spool, batch_events=3) as outbox:
        outbox.put(*_metrics(3))
        _wait(lambda: server.taken)
    assert len(server.taken) == 3


def test_what_an_earlier_start_has_left_is_sent_first_and_at_once(tmp_path: Path) -> None:
    earlier, later = _metrics(3), [MetricEvent("loss", 9.0, 9, 0)]
    Spool(tmp_path, "events").put(*earlier)
    server = Server()
    outbox = Outbox(server, Spool(tmp_path, "events"), interval_s=60.0)
    _wait(lambda: server.taken)
    assert server.taken == earlier
    outbox.put(*later)
    assert outbox.close(5.0) == 0
    assert server.taken == earlier + later


def test_flush_returns_at_once_while_the_server_is_away(spool: Spool, caplog: pytest.LogCaptureFixture) -> None:
    outbox = Outbox(Server(["away"] * 1000), spool, interval_s=60.0, first_pause_s=30.0)
    outbox.put(*_metrics(2))
    began = time.monotonic()
    assert not outbox.flush(10.0)
    assert not outbox.flush(10.0)
    assert time.monotonic() - began < 8, "it waited out its 10 s"
    outbox.close(0.0)
    assert len([record for record in caplog.records if "server is away" in record.message]) == 1


def test_putting_events_never_waits_for_a_slow_server(spool: Spool) -> None:
    release = threading.Event()

    def slow(events: Sequence[Event]) -> None:
        release.wait(5.0)

    outbox = Outbox(slow, spool, interval_s=0.0, batch_events=1)
    began = time.monotonic()
    for event in _metrics(100):
        outbox.put(event)
    assert time.monotonic() - began < 4, "it waited for the 5 s of the server"
    release.set()
    assert outbox.close(30.0) == 0


def test_an_event_that_is_refused_is_put_aside_and_its_neighbours_arrive(
    spool: Spool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    server = Server()
    events = _metrics(5)
    server.refuses = {events[2]}
    with _outbox(server, spool) as outbox:
        outbox.put(*events)
        assert outbox.close(5.0) == 0
    assert server.taken == [events[0], events[1], events[3], events[4]]
    assert "refuses MetricEvent(key='loss', value=2.0" in caplog.text
    assert '["not in this form", "[3, \\"metric\\", \\"loss\\", 2.0' in (tmp_path / "events-refused.jsonl").read_text()


def test_a_server_that_leaves_while_events_are_tried_one_by_one_gets_the_rest_later(spool: Spool) -> None:
    events = _metrics(4)
    server = Server(["takes", "takes", "away"])
    server.refuses = {events[3]}
    with _outbox(server, spool) as outbox:
        outbox.put(*events)
        assert outbox.close(5.0) == 0
    assert server.taken == events[:3]


def test_what_a_dead_server_did_not_take_by_the_end_stays_in_order(spool: Spool, tmp_path: Path) -> None:
    events = _metrics(7)
    with _outbox(Server(["away"] * 100_000), spool, batch_events=2) as outbox:
        outbox.put(*events)
        began = time.monotonic()
        assert outbox.close(0.2) == 7
        assert time.monotonic() - began < 10, "it went on trying"
    assert _left(tmp_path) == events


def test_close_tries_at_once_although_the_pause_is_long(spool: Spool) -> None:
    server = Server(["away"])
    outbox = Outbox(server, spool, interval_s=60.0, first_pause_s=600.0, longest_pause_s=600.0)
    outbox.put(*_metrics(2))
    outbox.flush(1.0)
    assert outbox.close(5.0) == 0
    assert len(server.taken) == 2


def test_of_two_processes_that_send_one_waits_and_sends_nothing_twice(tmp_path: Path) -> None:
    server, events = Server(), _metrics(3)
    one, two = Spool(tmp_path, "events"), Spool(tmp_path, "events")
    one.put(*events)
    assert two.take()
    two = _reopened(two, tmp_path)
    with pytest.raises(ServerUnavailableError, match="another process sends"):
        deliver(one, server, 10)
    deliver(two, server, 10)
    two.close()
    one.put(MetricEvent("loss", 9.0, 9, 0))
    deliver(one, server, 10)
    assert server.taken == [*events, MetricEvent("loss", 9.0, 9, 0)]


def _reopened(spool: Spool, folder: Path) -> Spool:
    """One that has seen what others put; it holds the lock."""
    spool.close()
    spool = Spool(folder, "events")
    assert spool.take()
    return spool


def test_what_waits_on_a_disk_that_is_gone_is_no_reason_to_call_it_sent(tmp_path: Path) -> None:
    folder = tmp_path / "spool"
    folder.mkdir()
    Spool(folder, "events").put(*_metrics(3))
    spool = Spool(folder, "events")
    assert spool.take()
    folder.rename(tmp_path / "moved")
    with pytest.raises(ServerUnavailableError, match="cannot be read back"):
        deliver(spool, Server(), 10)
    assert spool.num_waiting == 3
