"""Runs at a real MLflow server, with writers that are killed and a server that goes away."""

import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from ccts_dist.config import TrackingConfig
from ccts_dist.tracking.mlflow_run import open_mlflow_run
from ccts_dist.tracking.run_file import read_run_file
from ccts_dist.tracking.sync import sync
from tests.flow.tracking.faulty_proxy import FAULTS, faulty_proxy
from tests.helpers.processes.forked import Forked
from tests.helpers.processes.launching import ROOT, environment, free_port, run_forked
from tests.helpers.servers.mlflow_server import mlflow_server

WRITER = """
import sys, time
from pathlib import Path
from ccts_dist.config import TrackingConfig
from ccts_dist.tracking import open_tracking

run = open_tracking(TrackingConfig(tracking_uri=sys.argv[1]), run_name="demo", output=Path(sys.argv[2]), resume=True)
for step in range(1, 100_000):
    run.metrics({"train/loss": 1 / step, "train/norm": 2.0}, step)
    if step % 7 == 0:
        run.metrics({"valid/loss": 1 / step}, step)
    print(step, flush=True)
    if step % 50 == 0:
        run.flush()
    time.sleep(0.0005)
"""
"""A training that reports from step 1 on at every start, as if it had no checkpoint."""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    folder = tmp_path_factory.mktemp("server")
    with mlflow_server(folder, port=free_port()) as uri:
        yield uri, folder / "server.db"


@pytest.fixture(params=["server", "sqlite"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, Path]:
    """An address and the database behind it."""
    if request.param == "server":
        return request.getfixturevalue("server")
    return f"sqlite:///{tmp_path / 'mlflow.db'}", tmp_path / "mlflow.db"


def _steps(database: Path, run_id: str, key: str) -> list[int]:
    with sqlite3.connect(database, timeout=30) as connection:
        query = "select step from metrics where run_uuid = ? and key = ? order by step"
        return [step for (step,) in connection.execute(query, (run_id, key))]


@contextmanager
def _writing(uri: str, output: Path) -> Iterator[Forked]:
    command = [sys.executable, "-c", WRITER, uri, str(output)]
    writer = Forked(command, cwd=ROOT, env=environment(), stderr=subprocess.DEVNULL)
    assert writer.stdout is not None
    with writer.stdout:
        try:
            yield writer
        finally:
            writer.kill()
            writer.wait()


def _wait_for_step(writer: Forked, step: int) -> int:
    assert writer.stdout is not None
    for line in writer.stdout:
        if int(line) >= step:
            return int(line)
    raise AssertionError("the writer ended by itself")


def _kill_at(writer: Forked, step: int, *, after_s: float) -> int:
    """SIGKILL a while after a step; the last one that it had reported."""
    reached = _wait_for_step(writer, step)
    assert writer.stdout is not None
    time.sleep(after_s)
    writer.send_signal(signal.SIGKILL)
    assert writer.wait() == -signal.SIGKILL
    return max([reached, *map(int, writer.stdout.read().split())])


def _check_each_step_once(database: Path, run_id: str, *, last: int) -> None:
    for key, first, stride in (("train/loss", 1, 1), ("train/norm", 1, 1), ("valid/loss", 7, 7)):
        steps = _steps(database, run_id, key)
        assert steps == [first + stride * number for number in range(len(steps))], key
        assert steps[-1] + stride > last, f"{key}: what was reported is lost"


def test_no_reported_step_is_lost_or_there_twice_however_often_the_writer_is_killed(
    store: tuple[str, Path], tmp_path: Path
) -> None:
    uri, database = store
    output = tmp_path / "run"
    last = 0
    for step, after_s in ((110, 0.011), (260, 0.023)):
        with _writing(uri, output) as writer:
            last = max(last, _kill_at(writer, step, after_s=after_s))
    run_id = read_run_file(output).run_id
    assert len(_steps(database, run_id, "train/loss")) >= 250
    done = run_forked([sys.executable, "launch/sync.py", str(output)])
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("sent; nothing waits\n")
    assert read_run_file(output).run_id == run_id
    _check_each_step_once(database, run_id, last=last)


@pytest.mark.long
def test_no_reported_step_is_lost_or_there_twice_when_server_and_writer_are_killed(tmp_path: Path) -> None:
    port, output = free_port(), tmp_path / "run"
    with _writing(f"http://127.0.0.1:{port}", output) as writer:
        _wait_for_step(writer, 20)  # the server is not there yet
        with mlflow_server(tmp_path, port=port):
            while not (output / "tracking.json").exists():
                assert writer.poll() is None
                time.sleep(0.05)
            reached = _wait_for_step(writer, 500)
        last = _kill_at(writer, reached, after_s=0.5)  # after the server
    with mlflow_server(tmp_path, port=port) as uri:
        with _writing(uri, output) as writer:
            last = max(last, _kill_at(writer, 300, after_s=0.017))
        assert sync(output).num_refused == 0
        _check_each_step_once(tmp_path / "server.db", read_run_file(output).run_id, last=last)
        with sqlite3.connect(tmp_path / "server.db", timeout=30) as connection:
            assert connection.execute("select count(*) from runs").fetchall() == [(1,)]


def test_whatever_way_a_server_fails_each_step_arrives_once_and_files_too(
    server: tuple[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    uri, database = server
    expected = []
    with faulty_proxy(uri) as proxy:
        run = open_mlflow_run(
            TrackingConfig(tracking_uri=proxy.address), run_name="a", output=tmp_path / "run", resume=False
        )
        for number, fault in enumerate(FAULTS):
            proxy.fault = fault
            for step in range(10 * number, 10 * number + 10):
                began = time.monotonic()
                run.metrics({"loss": 1.0 / (step + 1)}, step)
                assert time.monotonic() - began < 1, "reporting waited for the server"
                expected.append(step)
            run.text(fault, f"notes/{number}.txt")
            deadline = time.monotonic() + 30
            while not proxy.seen.get(fault):  # the queue waits for longer after each failure
                run.flush()
                time.sleep(0.05)
                assert time.monotonic() < deadline, f"nothing was tried while: {fault}"
        proxy.fault = ""
        run.close("FINISHED")
        assert sync(tmp_path / "run", uri=uri).num_refused == 0
    assert _steps(database, run.run_id, "loss") == expected
    notes = {path.name: path.read_text() for path in database.parent.rglob(f"{run.run_id}/artifacts/notes/*.txt")}
    assert notes == {f"{number}.txt": fault for number, fault in enumerate(FAULTS)}


def test_a_store_of_files_that_fails_keeps_no_figure_waiting(server: tuple[str, Path], tmp_path: Path) -> None:
    uri, database = server
    run = open_mlflow_run(TrackingConfig(tracking_uri=uri), run_name="a", output=tmp_path / "run", resume=False)
    files = database.parent / "files"
    files.chmod(0o000)
    hidden = files.rename(files.with_name("away"))
    files.touch()  # where the server expects a folder
    try:
        run.text("x" * 100, "a.txt")
        run.metrics({"loss": 1.0}, 1)
        assert run._events.flush(30.0)
        assert _steps(database, run.run_id, "loss") == [1]
        assert run._files._spool.num_waiting == 1
    finally:
        files.unlink()
        hidden.rename(files).chmod(0o755)
    run.close("FINISHED")
    assert list(files.rglob(f"{run.run_id}/artifacts/a.txt"))


def test_a_server_that_goes_away_and_comes_back_gets_every_step_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    port = free_port()
    with mlflow_server(tmp_path, port=port) as uri:
        run = open_mlflow_run(TrackingConfig(tracking_uri=uri), run_name="demo", output=tmp_path / "run", resume=False)
        run.metrics({"loss": 1.0}, 1)
        run.flush()
    for step in range(2, 50):
        began = time.monotonic()
        run.metrics({"loss": 1.0 / step}, step)
        assert time.monotonic() - began < 5, "reporting waited for the server"
    run.flush()
    with mlflow_server(tmp_path, port=port):
        run.close("FINISHED")
        assert _steps(tmp_path / "server.db", run.run_id, "loss") == list(range(1, 50))
        with sqlite3.connect(tmp_path / "server.db", timeout=30) as connection:
            assert connection.execute("select status from runs").fetchall() == [("FINISHED",)]
    assert len([record for record in caplog.records if "the server is away" in record.message]) == 1


def test_a_run_that_begins_while_the_server_is_away_is_created_once_it_is_there(tmp_path: Path) -> None:
    port = free_port()
    config = TrackingConfig(tracking_uri=f"http://127.0.0.1:{port}")
    run = open_mlflow_run(config, run_name="demo", output=tmp_path / "run", resume=False)
    assert run.run_id == ""
    run.metrics({"loss": 1.0}, 1)
    with mlflow_server(tmp_path, port=port):
        run.close("FINISHED")
        assert run.run_id == read_run_file(tmp_path / "run").run_id != ""
        assert _steps(tmp_path / "server.db", run.run_id, "loss") == [1]
