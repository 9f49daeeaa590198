"""Each kind of server that launch/README.md names: a training is reported to it, its model comes back, and nothing is
lost.

The servers are killed in the middle of the training, and are there again later.
"""

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import soundfile

from ccts_dist.distributed import Ranks
from ccts_dist.records import DIMENSIONS
from ccts_dist.registry import load_student, pull_model, register
from ccts_dist.registry.promote import PromotionRequest, promote
from ccts_dist.tracking.mlflow_client import open_client
from ccts_dist.tracking.run_file import read_run_file
from ccts_dist.tracking.sync import sync
from tests.flow.tracking.postgres_server import postgres_server
from tests.helpers.models.plain_engine import train_plainly
from tests.helpers.processes.launching import ROOT, free_port
from tests.helpers.processes.running_training import num_steps
from tests.helpers.processes.small_runs import build_two_kinds, read_history, read_validations, write_run
from tests.helpers.servers.mlflow_server import mlflow_server
from tests.helpers.servers.s3_server import s3_server

NUM_STEPS = 48
KILL_AT = 12
PASSWORD = "recognisable Password-1"


@dataclass(kw_only=True)
class Kind:
    """A kind of server; ``uri`` is None while nobody answers."""

    uri: str
    start: Callable[[], AbstractContextManager[Any]]
    """The server for the length of a block; it is killed at its end, with what it keeps its runs in."""

    client: dict[str, str] = field(default_factory=dict)
    """What a client's environment needs."""

    files: Callable[[], list[str]] = list
    """Names of the artifacts, where the server keeps them."""


@contextmanager
def _postgres(folder: Path) -> Iterator[Kind]:
    with postgres_server() as database:
        port = free_port()

        @contextmanager
        def start() -> Iterator[None]:
            with mlflow_server(folder, port=port, store=database.address):
                yield
                database.kill()
            database.start()

        yield Kind(uri=f"http://127.0.0.1:{port}", start=start, files=lambda: _names(folder / "files"))


@contextmanager
def _basic_auth(folder: Path) -> Iterator[Kind]:
    config = folder / "basic_auth.ini"
    config.write_text(
        f"[mlflow]\ndefault_permission = NO_PERMISSIONS\ndatabase_uri = sqlite:///{folder / 'users.db'}\n"
        f"admin_username = admin\nadmin_password = {PASSWORD}\n"
        "authorization_function = mlflow.server.auth:authenticate_request_basic_auth\n",
        encoding="utf-8",
    )
    port = free_port()
    secrets = {"MLFLOW_AUTH_CONFIG_PATH": str(config), "MLFLOW_FLASK_SERVER_SECRET_KEY": "recognisable key"}

    def start() -> AbstractContextManager[Any]:
        return mlflow_server(folder, port=port, options=("--app-name", "basic-auth"), environment=secrets)

    yield Kind(
        uri=f"http://127.0.0.1:{port}",
        start=start,
        client={"MLFLOW_TRACKING_USERNAME": "admin", "MLFLOW_TRACKING_PASSWORD": PASSWORD},
        files=lambda: _names(folder / "files"),
    )


@contextmanager
def _s3(folder: Path) -> Iterator[Kind]:
    with s3_server(folder / "s3") as store:
        (folder / "empty").mkdir()
        store.upload(folder / "empty", "runs/artifacts")
        environment = store.environment() | {"MLFLOW_S3_ENDPOINT_URL": store.address}
        port = free_port()

        def start() -> AbstractContextManager[Any]:
            return mlflow_server(folder, port=port, files="s3://runs/artifacts", environment=environment)

        def files() -> list[str]:
            return sorted({path.rpartition("/")[2] for path in store.paths("PUT", "runs/artifacts/")})

        yield Kind(uri=f"http://127.0.0.1:{port}", start=start, files=files)


def _names(folder: Path) -> list[str]:
    return sorted({path.name for path in folder.rglob("*") if path.is_file()})


KINDS = {"postgres": _postgres, "basic auth": _basic_auth, "files in S3": _s3}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus, and a run that nobody disturbed, in a file."""
    place = tmp_path_factory.mktemp("servers")
    build_two_kinds(place)
    train_plainly(_config(place, "undisturbed", f"sqlite:///{place / 'mlflow.db'}"))
    return place


def _config(place: Path, name: str, uri: str) -> Path:
    return write_run(
        place / f"{name}.toml", place / "shards", place / "runs" / name,
        # Each checkpoint sends what waits.
        train={"epochs": 12, "max_steps": NUM_STEPS, "save_steps": 5},
        tracking={"backend": "mlflow", "tracking_uri": uri, "experiment_name": "servers",
            "parent_run_name": "table of servers"},
    )  # fmt: skip


def _check_reported(output: Path, uri: str, undisturbed: Path) -> None:
    """What the server has of each step and validation is what the undisturbed run wrote of it, once."""
    client, run_id = open_client(uri), read_run_file(output).run_id
    assert read_history(output) == read_history(undisturbed)
    for rows in (read_history(undisturbed), read_validations(undisturbed)):
        for key in rows[0].keys() & {"train/loss", "train/ccc_valence", "valid/loss", "epoch/train_loss_ccc"}:
            reported = [(metric.step, metric.value) for metric in client.get_metric_history(run_id, key)]
            assert sorted(reported) == [(row["step"], row[key]) for row in rows], key
    speeds = client.get_metric_history(run_id, "throughput/utterances_per_s")
    assert sorted(metric.step for metric in speeds) == list(range(1, NUM_STEPS + 1))
    run = client.get_run(run_id)
    assert run.info.status == "FINISHED"
    scores = json.loads((output / "summary.json").read_text())["test_scores"]
    for figure in ("ccc", "pearson", "spearman"):
        assert {name: run.data.metrics[f"test/{figure}_{name}"] for name in DIMENSIONS} == scores[figure]
    assert run.data.params["optim.learning_rate"] == "0.01"
    assert run.data.tags["data.shard_set_digest"]
    assert client.get_run(run.data.tags["mlflow.parentRunId"]).info.run_name == "table of servers"


def _check_model_comes_back(output: Path, uri: str, cache: Path) -> None:
    """Registered, promoted, pulled and asked, all over the wire; the answer is that of the model in the run folder."""
    place = output.parent.parent
    received = place / "received.wav"
    soundfile.write(received, [0.1, -0.2, 0.3, 0.0] * 2_000, 16_000)
    request = PromotionRequest(name="student", shards=str(place / "shards"), splits=("Development", "Test1"))
    version = register(output, "student", tracking_uri=uri)
    first = promote(request, ranks=Ranks(), tracking_uri=uri, cache=cache)
    assert (first.verdict, first.candidate) == ("first", f"student/{version}")
    pulled = pull_model("models:/student@champion", tracking_uri=uri, cache=cache)
    assert pulled.version == f"student/{version}"
    assert pulled.folder.is_relative_to(cache)
    expected = load_student(output / "best").predict([received])
    assert load_student(pulled.folder).predict([received]) == expected

    assert register(output, "student", tracking_uri=uri) != version
    again = promote(request, ranks=Ranks(), tracking_uri=uri, cache=cache)
    assert (again.verdict, again.champion, again.num_utterances) == ("not better", f"student/{version}", 24)
    assert pull_model("models:/student@champion", tracking_uri=uri, cache=cache).version == f"student/{version}"


def test_a_file_needs_no_server_and_has_all_of_a_run(place: Path, tmp_path: Path) -> None:
    uri, output = f"sqlite:///{place / 'mlflow.db'}", place / "runs" / "undisturbed"
    _check_reported(output, uri, output)
    _check_model_comes_back(output, uri, tmp_path / "cache")
    (artifacts,) = place.glob(f"mlruns/*/{read_run_file(output).run_id}/artifacts")
    kept = {path.relative_to(artifacts).as_posix() for path in artifacts.rglob("*") if path.is_file()}
    assert {"run.toml", "packages.txt", "summary.json", "plots/curves.png", "inputs/data.json"} <= kept


@pytest.mark.long
@pytest.mark.parametrize("kind", KINDS)
def test_a_server_that_is_killed_in_the_middle_of_a_training_has_all_of_it_afterwards(
    kind: str, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with ExitStack() as stack:
        server = stack.enter_context(KINDS[kind](tmp_path))
        for name, value in server.client.items():
            monkeypatch.setenv(name, value)
        monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
        name = kind.replace(" ", "-")
        output = place / "runs" / name
        before = ExitStack()
        before.enter_context(server.start())
        reached: list[int] = []

        def kill() -> None:
            while num_steps(output) < KILL_AT:
                time.sleep(0.002)
            before.close()
            reached.append(num_steps(output))

        killer = threading.Thread(target=kill)
        killer.start()
        train_plainly(_config(place, name, server.uri))
        killer.join()
        assert reached[0] < NUM_STEPS, "the server was killed too late"
        stack.enter_context(server.start())
        assert sync(output).num_refused == 0
        assert sync(output).num_sent == 0
        _check_reported(output, server.uri, place / "runs" / "undisturbed")
        _check_model_comes_back(output, server.uri, tmp_path / "cache")
        kept = server.files()
        assert {"run.toml", "packages.txt", "summary.json", "curves.png", "data.json", "model.safetensors"} <= {*kept}
        written = [path for path in output.rglob("*") if path.suffix in (".json", ".jsonl", ".toml")]
        assert written
        assert not [path for path in written if PASSWORD in path.read_text(encoding="utf-8")]


@pytest.mark.long
def test_a_server_that_asks_for_a_password_is_away_for_those_who_do_not_know_it(place: Path, tmp_path: Path) -> None:
    with _basic_auth(tmp_path) as kind, kind.start():
        predict = (sys.executable, "launch/predict.py", "--model", "models:/student@candidate")
        done = subprocess.run(
            [*predict, "--tracking-uri", kind.uri, "a.wav"], cwd=ROOT,
            env={**os.environ, "MLFLOW_TRACKING_USERNAME": "admin", "MLFLOW_TRACKING_PASSWORD": "wrong"},
            capture_output=True, text=True, check=False,
        )  # fmt: skip
    assert done.returncode == 1, done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert "not authenticated" in line.lower()
    assert "Traceback" not in done.stderr
