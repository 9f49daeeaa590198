"""Runs at a real MLflow server, with writers that are killed and a server that goes away."""

import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from ccts_dist.config import TrackingConfig
from ccts_dist.tracking.mlflow_run import open_mlflow_run
from ccts_dist.tracking.run_file import read_run_file
from tests.flow.mlflow_server import free_port, mlflow_server

WRITER = """
import sys, time
from pathlib import Path
from ccts_dist.config import TrackingConfig
from ccts_dist.tracking import open_tracking

run = open_tracking(TrackingConfig(uri=sys.argv[1]), run_name="demo", output=Path(sys.argv[2]), resume=True)
for step in range(1, 100_000):
    run.metrics({"train/loss": 1 / step, "train/norm": 2.0}, step)
    if step % 7 == 0:
        run.metrics({"valid/loss": 1 / step}, step)
    if step % 50 == 0:
        run.flush()
        print(step, flush=True)
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


def _write_until_killed(uri: str, output: Path, lines: int, *, after_s: float) -> None:
    writer = subprocess.Popen(
        [sys.executable, "-c", WRITER, uri, str(output)], stdout=subprocess.PIPE, text=True, stderr=subprocess.DEVNULL
    )
    assert writer.stdout is not None
    for _ in range(lines):
        assert writer.stdout.readline(), "the writer ended by itself"
    time.sleep(after_s)
    writer.send_signal(signal.SIGKILL)
    assert writer.wait() == -signal.SIGKILL
    writer.stdout.close()


def test_no_step_is_there_twice_however_often_the_writer_is_killed(store: tuple[str, Path], tmp_path: Path) -> None:
    uri, database = store
    output = tmp_path / "run"
    _write_until_killed(uri, output, 2, after_s=0.011)
    run_id = read_run_file(output).run_id
    reached = len(_steps(database, run_id, "train/loss"))
    assert reached >= 100
    _write_until_killed(uri, output, 5, after_s=0.023)
    assert read_run_file(output).run_id == run_id
    for key, first, stride in (("train/loss", 1, 1), ("train/norm", 1, 1), ("valid/loss", 7, 7)):
        steps = _steps(database, run_id, key)
        assert steps == [first + stride * number for number in range(len(steps))], key
    assert len(_steps(database, run_id, "train/loss")) > reached


def test_a_server_that_goes_away_and_comes_back_gets_every_step_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    port = free_port()
    with mlflow_server(tmp_path, port=port) as uri:
        run = open_mlflow_run(TrackingConfig(uri=uri), run_name="demo", output=tmp_path / "run", resume=False)
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
    assert not (tmp_path / "run" / "unsent.jsonl").exists()
    assert len([record for record in caplog.records if "the server is away" in record.message]) == 1


def test_a_run_that_begins_while_the_server_is_away_is_created_once_it_is_there(tmp_path: Path) -> None:
    port = free_port()
    config = TrackingConfig(uri=f"http://127.0.0.1:{port}")
    run = open_mlflow_run(config, run_name="demo", output=tmp_path / "run", resume=False)
    assert run.run_id == ""
    run.metrics({"loss": 1.0}, 1)
    with mlflow_server(tmp_path, port=port):
        run.close("FINISHED")
        assert run.run_id == read_run_file(tmp_path / "run").run_id != ""
        assert _steps(tmp_path / "server.db", run.run_id, "loss") == [1]
