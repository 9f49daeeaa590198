"""The queue between training and a server: order, patience, and what is handed back."""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ccts_dist.tracking.outbox import AwayError, Event, MetricEvent, Outbox, ParamEvent, RefusedError, StatusEvent


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
            raise AwayError("connection refused")
        if any(event in self.refuses for event in events):
            raise RefusedError("not in this form")
        self.taken += events


@contextmanager
def _outbox(server: Server, *, batch_events: int = 500) -> Iterator[Outbox]:
    outbox = Outbox(server, interval_s=60.0, batch_events=batch_events, first_pause_s=0.001, longest_pause_s=0.002)
    try:
        yield outbox
    finally:
        outbox.close(0.0)


def _wait(until: Callable[[], object]) -> None:
    deadline = time.monotonic() + 5
    while not until() and time.monotonic() < deadline:
        time.sleep(0.001)


@given(verdicts=st.lists(st.sampled_from(["takes", "away"]), max_size=12), count=st.integers(1, 20))
@settings(max_examples=25, deadline=None)
def test_whatever_fails_on_the_way_events_arrive_once_and_in_order(verdicts: list[str], count: int) -> None:
    server = Server(verdicts)
    events = _metrics(count)
    with _outbox(server, batch_events=3) as outbox:
        for event in events:
            outbox.put(event)
        assert outbox.close(5.0) == []
    assert server.taken == events


def test_no_call_carries_more_than_the_batch_or_two_kinds() -> None:
    server = Server()
    with _outbox(server, batch_events=4) as outbox:
        outbox.put(*_metrics(9), ParamEvent("a", "1"), ParamEvent("b", "2"), StatusEvent("FINISHED"))
        assert outbox.flush(5.0)
    assert sorted(server.calls) == sorted([4, 4, 1, 2, 1])


def test_events_wait_for_company_until_the_interval_is_over() -> None:
    server = Server()
    outbox = Outbox(server, interval_s=0.05)
    outbox.put(*_metrics(3))
    assert server.calls == []
    _wait(lambda: server.calls)
    assert server.calls == [3]
    outbox.close(1.0)


def test_a_full_batch_is_sent_before_the_interval_is_over() -> None:
    server = Server()
    with _outbox(server, batch_events=3) as outbox:
        outbox.put(*_metrics(3))
        _wait(lambda: server.taken)
    assert len(server.taken) == 3


def test_flush_returns_at_once_while_the_server_is_away(caplog: pytest.LogCaptureFixture) -> None:
    outbox = Outbox(Server(["away"] * 1000), interval_s=60.0, first_pause_s=30.0)
    outbox.put(*_metrics(2))
    began = time.monotonic()
    assert not outbox.flush(10.0)
    assert not outbox.flush(10.0)
    assert time.monotonic() - began < 8, "it waited out its 10 s"
    outbox.close(0.0)
    assert len([record for record in caplog.records if "server is away" in record.message]) == 1


def test_putting_events_never_waits_for_a_slow_server() -> None:
    release = threading.Event()

    def slow(events: Sequence[Event]) -> None:
        release.wait(5.0)

    outbox = Outbox(slow, interval_s=0.0, batch_events=1)
    began = time.monotonic()
    for event in _metrics(1000):
        outbox.put(event)
    assert time.monotonic() - began < 4, "it waited for the 5 s of the server"
    release.set()
    assert outbox.close(5.0) == []


def test_an_event_that_is_refused_is_put_aside_and_its_neighbours_arrive(caplog: pytest.LogCaptureFixture) -> None:
    server = Server()
    events = _metrics(5)
    server.refuses = {events[2]}
    with _outbox(server) as outbox:
        outbox.put(*events)
        assert outbox.close(5.0) == [events[2]]
    assert server.taken == [events[0], events[1], events[3], events[4]]
    assert "refuses MetricEvent(key='loss', value=2.0" in caplog.text


def test_a_server_that_leaves_while_events_are_tried_one_by_one_gets_the_rest_later() -> None:
    events = _metrics(4)
    server = Server(["takes", "takes", "away"])
    server.refuses = {events[3]}
    with _outbox(server) as outbox:
        outbox.put(*events)
        assert outbox.close(5.0) == [events[3]]
    assert server.taken == events[:3]


def test_close_hands_back_in_order_what_a_dead_server_did_not_take() -> None:
    events = _metrics(7)
    with _outbox(Server(["away"] * 100_000), batch_events=2) as outbox:
        outbox.put(*events)
        began = time.monotonic()
        assert outbox.close(0.2) == events
        assert time.monotonic() - began < 10, "it went on trying"


def test_close_tries_at_once_although_the_pause_is_long() -> None:
    server = Server(["away"])
    outbox = Outbox(server, interval_s=60.0, first_pause_s=600.0, longest_pause_s=600.0)
    outbox.put(*_metrics(2))
    outbox.flush(1.0)
    assert outbox.close(5.0) == []
    assert len(server.taken) == 2
