"""Events on disk: what a kill leaves, what a full disk leaves, how large it grows."""

import json
import logging
import os
import resource
import signal
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ccts_dist.tracking.events import (
    Event,
    FileEvent,
    MetricEvent,
    ParamEvent,
    StatusEvent,
    TagEvent,
    TextEvent,
    from_line,
    to_line,
)
from ccts_dist.tracking.spooling.spool import Spool
from tests.tiers import examples

EVENTS: tuple[Event, ...] = (
    ParamEvent("a.b", "ü\n\u2028"),
    MetricEvent("loss", 0.1 + 0.2, 3, 1_700_000_000_000),
    TagEvent("note", ""),
    FileEvent(Path("plots/a b.png"), "plots"),
    TextEvent("two\nlines", "inputs/data.json"),
    StatusEvent("FINISHED", 7),
)


def _metric(step: int, key: str = "loss") -> MetricEvent:
    return MetricEvent(key, float(step), step, 0)


def _open(folder: Path, **settings: int) -> Spool:
    return Spool(folder, "events", **settings)


def _take_all(spool: Spool, most: int = 7) -> list[Event]:
    taken: list[Event] = []
    while batch := spool.head(most):
        taken += batch
        spool.done(len(batch))
    return taken


@pytest.mark.parametrize("event", EVENTS, ids=lambda event: type(event).__name__)
def test_a_line_gives_back_its_event(event: Event) -> None:
    line = to_line(12, event)
    assert line.count("\n") == 1
    assert from_line(line) == (12, event)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 5e-324])
def test_a_line_gives_back_any_number(value: float) -> None:
    _, event = from_line(to_line(1, MetricEvent("loss", value, 1, 0)))
    assert isinstance(event, MetricEvent)
    assert str(event.value) == str(value)


@pytest.mark.parametrize("line", ["", "[]", "[1]", '[1, "pickle", "x"]', '[1, "tag", "only a key"]', "{}", "7"])
def test_a_line_of_another_kind_is_no_event(line: str) -> None:
    with pytest.raises(ValueError, match=r"event|Expecting|unpack"):
        from_line(line)


def test_what_was_put_is_there_in_order_for_another_start(tmp_path: Path) -> None:
    _open(tmp_path).put(*EVENTS)
    assert _take_all(_open(tmp_path)) == list(EVENTS)
    assert _open(tmp_path).num_waiting == 0


def _in_child(work: Callable[[], None]) -> int:
    """Do it in a copy of this process; how that ended, negative for a signal."""
    child = os.fork()
    if child == 0:
        try:
            work()
            os._exit(0)
        finally:
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def test_what_was_put_is_there_after_a_sigkill(tmp_path: Path) -> None:
    def work() -> None:
        spool = _open(tmp_path)
        for step in range(500):
            spool.put(_metric(step))
        os.kill(os.getpid(), signal.SIGKILL)

    assert _in_child(work) == -signal.SIGKILL
    assert _take_all(_open(tmp_path)) == [_metric(step) for step in range(500)]


def test_half_a_line_at_the_end_is_left_out_and_nothing_after_it_is_lost(tmp_path: Path) -> None:
    _open(tmp_path).put(_metric(1), _metric(2))
    (segment,) = tmp_path.glob("events-0*.jsonl")
    whole = segment.read_bytes()
    segment.write_bytes(whole[:-5])
    spool = _open(tmp_path)
    spool.put(_metric(2), _metric(3))
    assert _take_all(_open(tmp_path)) == [_metric(1), _metric(2), _metric(3)]


def test_a_damaged_line_costs_itself_alone(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    _open(tmp_path).put(_metric(1), _metric(2), _metric(3))
    (segment,) = tmp_path.glob("events-0*.jsonl")
    lines = segment.read_bytes().splitlines(keepends=True)
    segment.write_bytes(b"".join([*lines[:2], b"\0" * 20 + b"\n", lines[3]]))
    spool = _open(tmp_path)
    assert _take_all(spool) == [_metric(1), _metric(3)]
    assert spool.num_waiting == 0
    assert "has a damaged line, which is omitted" in caplog.text


def test_a_lost_count_of_what_was_sent_sends_again_rather_than_never(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    spool = _open(tmp_path)
    spool.put(_metric(1), _metric(2))
    spool.head(1)
    spool.done(1)
    (tmp_path / "events-sent.json").write_text("{", encoding="utf-8")
    assert _take_all(_open(tmp_path)) == [_metric(1), _metric(2)]
    assert "events-sent.json is not readable and all events are sent again" in caplog.text


def test_a_step_that_comes_again_after_a_restart_is_dropped_whether_sent_or_not(tmp_path: Path) -> None:
    spool = _open(tmp_path)
    spool.put(*(_metric(step) for step in range(1, 11)), _metric(5, "valid"))
    spool.head(6)
    spool.done(6)
    spool = _open(tmp_path)
    spool.put(*(_metric(step) for step in range(4, 13)), _metric(5, "valid"), _metric(10, "valid"))
    taken = _take_all(spool)
    assert taken == [*(_metric(step) for step in range(7, 11)), _metric(5, "valid"), _metric(11), _metric(12),
                     _metric(10, "valid")]  # fmt: skip


def test_steps_may_come_again_once_they_go_to_another_run(tmp_path: Path) -> None:
    spool = _open(tmp_path)
    spool.put(_metric(5))
    _take_all(spool)
    spool.forget_steps()
    spool.put(_metric(2))
    assert _take_all(_open(tmp_path)) == [_metric(2)]


@given(
    actions=st.lists(st.sampled_from(["put", "take", "restart"]), max_size=40),
    segment_bytes=st.sampled_from([1, 200, 100_000]),
)
@examples(60)
def test_whatever_the_order_of_puts_sends_and_restarts_each_event_comes_once_and_in_order(
    actions: list[str], segment_bytes: int
) -> None:
    with TemporaryDirectory() as folder:
        spool = _open(Path(folder), segment_bytes=segment_bytes)
        taken: list[Event] = []
        step = 0
        for action in actions:
            if action == "put":
                spool.put(*(_metric(step + more) for more in range(3)))
                step += 3
            elif action == "take":
                batch = spool.head(2)
                taken += batch
                spool.done(len(batch))
            else:
                spool = _open(Path(folder), segment_bytes=segment_bytes)
            assert spool.num_waiting == step - len(taken)
        taken += _take_all(spool)
    assert taken == [_metric(number) for number in range(step)]


def test_more_than_memory_holds_comes_back_from_disk_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ccts_dist.tracking.spooling.spool._MOST_IN_MEMORY", 10)
    spool = _open(tmp_path, segment_bytes=400)
    for step in range(100):
        spool.put(_metric(step))
    assert len(spool._ahead) == 10
    assert [event.step for event in _take_all(spool) if isinstance(event, MetricEvent)] == list(range(100))


def test_what_is_sent_leaves_the_disk(tmp_path: Path) -> None:
    spool = _open(tmp_path, segment_bytes=2_000)
    largest = 0
    for step in range(300):
        spool.put(_metric(step))
        spool.head(10)
        spool.done(1)
        largest = max(largest, sum(path.stat().st_size for path in tmp_path.iterdir()))
    assert largest < 10_000
    assert len(list(tmp_path.glob("events-0*.jsonl"))) <= 2


def test_steps_are_known_when_the_segments_that_reported_of_them_are_gone(tmp_path: Path) -> None:
    spool = _open(tmp_path, segment_bytes=100)
    spool.put(_metric(7, "early"))
    for step in range(50):
        spool.put(_metric(step))
    _take_all(spool)
    spool = _open(tmp_path, segment_bytes=100)
    spool.put(_metric(7, "early"), _metric(8, "early"))
    assert _take_all(spool) == [_metric(8, "early")]


def test_a_disk_that_is_full_for_a_while_is_warned_of_once_and_costs_nothing(tmp_path: Path) -> None:
    words = tmp_path / "words"

    def work() -> None:
        """A file may grow by a line and a half, and later by any number."""
        logging.basicConfig(filename=words, force=True)
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        spool = _open(tmp_path)
        spool.put(_metric(0))
        (segment,) = tmp_path.glob("events-0*.jsonl")
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (max(1_000, segment.stat().st_size + 45), hard))
        for step in range(1, 100):
            spool.put(_metric(step))
        assert spool.num_at_risk >= 40, spool.num_at_risk
        assert spool.head(20) == [_metric(step) for step in range(20)]
        spool.done(20)
        assert segment.read_bytes().endswith(b"\n"), "half a line is left"
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        spool.put(_metric(100))
        assert spool.num_at_risk == 0

    assert _in_child(work) == 0, words.read_text()
    assert words.read_text().count("the disk fails; training goes on, events are kept in memory") == 1
    assert words.read_text().count("takes events again; nothing was lost") == 1
    assert _take_all(_open(tmp_path)) == [_metric(step) for step in range(20, 101)]


def test_a_folder_that_vanishes_is_not_made_anew(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = tmp_path / "spool"
    folder.mkdir()
    spool = _open(folder, segment_bytes=1)
    spool.put(_metric(1))
    folder.rename(tmp_path / "moved")
    spool.put(_metric(2))
    spool.put(_metric(3))
    assert _take_all(spool) == [_metric(1), _metric(2), _metric(3)]
    assert not folder.exists()
    assert caplog.text.count("the disk fails") == 1


def test_the_lock_ends_with_its_holder(tmp_path: Path) -> None:
    one, two = _open(tmp_path), _open(tmp_path)
    assert one.take()
    assert one.take()
    assert not two.take()
    one.close()
    assert two.take()


def test_what_is_refused_is_kept_with_its_reason_and_counted(tmp_path: Path) -> None:
    spool = _open(tmp_path)
    spool.put(TagEvent("a", "b"))
    spool.head(1)
    spool.refuse("too long")
    assert (spool.num_waiting, spool.num_refused) == (0, 1)
    (line,) = (tmp_path / "events-refused.jsonl").read_text(encoding="utf-8").splitlines()
    reason, event = json.loads(line)
    assert reason == "too long"
    assert from_line(event) == (1, TagEvent("a", "b"))
    assert os.listdir(tmp_path)
