"""The demo at a small size: every command in order under the real launcher, then the same again for nothing, and the
commands that it ends with."""

import os
import shlex
import subprocess
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest

from ccts_dist.errors import StageError
from ccts_dist.report.demo import SYSTEMS, next_commands, run_demo
from ccts_dist.report.stages import Stage, run_stages
from tests.flow.report.forked_stages import fork_stages
from tests.helpers.processes.launching import ROOT, free_port
from tests.helpers.servers.mlflow_server import wait_until_healthy

UTTERANCES = 120


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """The demo's run files with one epoch each, in a folder of their own."""
    folder = tmp_path / "runs"
    folder.mkdir()
    for name in SYSTEMS:
        text = (Path("launch/runs/demo") / f"{name}.toml").read_text()
        text = text.replace('"demo/', f'"{tmp_path}/demo/')
        epochs = next(line for line in text.splitlines() if line.startswith("epochs = "))
        (folder / f"{name}.toml").write_text(text.replace(epochs, "epochs = 1"))
    return folder


@pytest.mark.long
def test_demo_ends_with_its_table_and_reuses_what_is_there(tmp_path: Path, runs: Path, capfd, monkeypatch):
    fork_stages(monkeypatch)
    folder = tmp_path / "demo"
    table = run_demo(folder, num_utterances=UTTERANCES, runs=runs)
    for words in SYSTEMS.values():
        assert words in table
    assert "activation" in table
    printed = capfd.readouterr().err
    assert "registered models:/demo-cts/1, alias candidate" in printed
    assert "SPOKEN_01_" in printed, "the registered student read a recording"
    assert f"{'ranks':24} 2 on the CPU, since no GPU is found" in printed
    for left in ("corpus/Labels/labels_consensus.csv", "shards/manifest.json", "cache/condition.json", "mlflow.db"):
        assert (folder / left).is_file()
    for name in SYSTEMS:
        assert (folder / "runs" / name / "best" / "model.safetensors").is_file()
    logs = {path: path.stat().st_mtime_ns for path in (folder / "logs").iterdir()}
    assert len(logs) == 9
    assert run_demo(folder, num_utterances=UTTERANCES, runs=runs) == table
    assert {path: path.stat().st_mtime_ns for path in (folder / "logs").iterdir()} == logs, "nothing was to be done"
    assert capfd.readouterr().err.count("done before") == 9
    check_next_commands(folder, table, tmp_path)


def check_next_commands(folder: Path, ending: str, scratch: Path) -> None:
    """Paste what the demo ends with, in an environment that nobody has activated."""
    environment = {name: value for name, value in os.environ.items() if name != "MLFLOW_TRACKING_URI"}
    environment |= {"PATH": "/usr/bin:/bin", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    page, evaluation, prediction = (shlex.join(words) for words in next_commands(folder).values())
    for command in (page, evaluation, prediction):
        assert f"\n  {command}" in ending
    for command in (evaluation, prediction):
        done = subprocess.run(
            ["sh", "-c", command], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300, check=False
        )
        assert done.returncode == 0, done.stderr[-4000:]
    assert "SPOKEN_" in done.stdout, "the recording is predicted"
    assert "demo-cts" in (folder / "evaluation" / "report.html").read_text(encoding="utf-8")
    with mlflow_page(page, environment, scratch) as address, urllib.request.urlopen(address + EXPERIMENTS) as answer:
        assert b'"ccts-demo"' in answer.read()


EXPERIMENTS = "/api/2.0/mlflow/experiments/get-by-name?experiment_name=ccts-demo"


@contextmanager
def mlflow_page(command: str, environment: Mapping[str, str], scratch: Path) -> Iterator[str]:
    """The address at which a command serves MLflow's page, on a port that is free."""
    port, log = free_port(), scratch / "page.log"
    with log.open("wb") as file:
        server = subprocess.Popen(
            [*shlex.split(command), "--port", str(port), "--workers", "1"],
            cwd=ROOT, env=environment, stdout=file, stderr=file, start_new_session=True,
        )  # fmt: skip
    try:
        wait_until_healthy(server, port, log)
        yield f"http://127.0.0.1:{port}"
    finally:
        os.killpg(server.pid, 9)
        server.wait()


def test_failing_stage_is_named_with_its_log_and_what_was_done_stays_done(tmp_path: Path, capfd):
    marker = tmp_path / "marker"
    good = Stage(name="good", command=("sh", "-c", f"echo once >> {marker}"))
    bad = Stage(name="bad", command=("sh", "-c", "echo the reason; exit 3"))
    for _ in range(2):
        with pytest.raises(StageError, match=r"bad: ended with exit code 3\. .*bad\.log"):
            run_stages([good, bad], tmp_path, environment={})
    assert marker.read_text() == "once\n"
    assert (tmp_path / "logs" / "bad.log").read_text() == "the reason\n"


def test_stage_is_run_again_when_its_command_or_an_input_has_changed(tmp_path: Path, capfd):
    reported, marker = tmp_path / "input", tmp_path / "marker"

    def run(command: str) -> int:
        stage = Stage(name="stage", command=("sh", "-c", command), inputs=(reported,))
        run_stages([stage], tmp_path, environment={})
        return len(marker.read_text().splitlines())

    reported.write_text("a")
    assert run(f"echo x >> {marker}") == 1
    assert run(f"echo x >> {marker}") == 1
    reported.write_text("b")
    assert run(f"echo x >> {marker}") == 2
    assert run(f"echo y >> {marker}") == 3
