"""A password of a tracking address, and one of the environment: in no output, run folder, store or model."""

import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest

from tests.helpers.processes.launching import ROOT, inner_launcher, run_forked
from tests.helpers.processes.small_runs import build_two_kinds, write_run

pytestmark = pytest.mark.long

PASSWORD = "S3cret/w\N{LATIN SMALL LETTER O WITH DIAERESIS}rd@9 %x"
TOKEN = "tok-0123456789abcdef"
KEY = "wJalrXUtnFEMI/K7MDENG"
AT_ONCE = {"MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "0", "MLFLOW_HTTP_REQUEST_BACKOFF_JITTER": "0"}
"""Registering asks five times more where nobody answers, and would wait for a minute in between."""

FORMS = {PASSWORD, quote(PASSWORD, safe=""), quote(PASSWORD), TOKEN, KEY, quote(KEY, safe="")}


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("secrets")
    build_two_kinds(folder)
    return folder / "shards"


def _check(name: str, text: str) -> None:
    for form in FORMS:
        assert form.lower() not in text.lower(), f"{name} has {form!r}:\n{text[-3000:]}"


def _files(folder: Path) -> Iterator[Path]:
    yield from (path for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize(
    "address",
    [
        f"http://alice:{quote(PASSWORD, safe='')}@127.0.0.1:9",
        f"http://127.0.0.1:9/?token={TOKEN}",
        f"http://alice:{PASSWORD}@127.0.0.1:9",
    ],
    ids=["escaped", "option", "not escaped"],
)
def test_no_secret_is_in_outputs_run_folder_store_or_model(address: str, shards: Path, tmp_path: Path):
    output, store = tmp_path / "run", f"sqlite:///{tmp_path}/mlflow.db"
    config = write_run(
        tmp_path / "run.toml", shards, output,
        train={"max_steps": 3, "deepspeed": str(ROOT / "ds_configs/zero2.json")},
        tracking={"backend": "mlflow", "tracking_uri": address},
    )  # fmt: skip
    secrets = {"MLFLOW_TRACKING_URI": "", "MLFLOW_TRACKING_TOKEN": TOKEN, "AWS_SECRET_ACCESS_KEY": KEY}
    refused = PASSWORD in address

    def run(expected: int, *command: str, env: dict[str, str] | None = None) -> None:
        done = run_forked(command, env=secrets | AT_ONCE | (env or {}), cwd=tmp_path)
        _check(" ".join(command[-4:]), done.stdout + done.stderr)
        assert "Traceback" not in done.stderr, done.stderr[-3000:]
        assert done.returncode == expected, done.stdout[-1000:] + done.stderr[-3000:]

    train = [*inner_launcher(1), str(ROOT / "launch/train.py"), "--config", str(config)]
    run(2 if refused else 0, *train)
    model = str(output if not refused else tmp_path / "absent")
    register = [sys.executable, str(ROOT / "launch/register.py"), "--checkpoint", model, "--name", "x"]
    run(2 if refused else 1, *register, "--tracking-uri", address)
    predict = [sys.executable, str(ROOT / "launch/predict.py"), "--model", "models:/x/1", "a.wav"]
    run(2 if refused else 1, *predict, env={"MLFLOW_TRACKING_URI": address})
    if not refused:
        run(0, sys.executable, str(ROOT / "launch/sync.py"), str(output), "--tracking-uri", store)
        run(0, *register, "--tracking-uri", store)
        assert list((tmp_path / "mlruns").rglob("run.toml"))
    config.unlink()
    for path in _files(tmp_path):
        _check(str(path), path.read_bytes().decode("utf-8", errors="replace"))
