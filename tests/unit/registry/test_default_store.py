"""A registered model that is looked up where no store is: each command names the option, and the demo's address.

``evaluate.py``, ``probe.py`` and ``cache_teacher.py`` open their shards before, and then ask in the same way.
"""

import importlib.util
from pathlib import Path

import pytest

from ccts_dist.errors import RegistryError, run_main
from ccts_dist.registry import resolve_model

ROOT = Path(__file__).parents[3]
MODEL = "models:/demo-cts@candidate"

COMMANDS = {
    "predict": ["--model", MODEL, "a.wav"],
    "export": ["--model", MODEL, "--format", "onnx", "--out", "export"],
    "serve": [MODEL, "--port", "0"],
    "register": ["--promote", "--name", "demo-cts", "--shards", "demo/shards", "--splits", "Test1"],
}


@pytest.fixture(autouse=True)
def demo_store(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    """The address of a demo's store in the working directory, which holds no other."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "demo").mkdir()
    (tmp_path / "demo" / "mlflow.db").touch()
    return f"sqlite:///{tmp_path}/demo/mlflow.db"


def test_store_that_does_not_exist_is_named_and_not_made(tmp_path: Path):
    with pytest.raises(RegistryError, match=rf"^{MODEL}: not in the registry at sqlite:///.*/mlflow\.db, a file that"):
        resolve_model(MODEL)
    assert not (tmp_path / "mlflow.db").exists()


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_names_the_option_and_the_address_to_paste(
    command: str, demo_store: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
):
    (tmp_path / "a.wav").touch()
    spec = importlib.util.spec_from_file_location(command, ROOT / "launch" / f"{command}.py")
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    assert run_main(script.main, COMMANDS[command]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {MODEL}: not in the registry at sqlite:///{tmp_path}/mlflow.db")
    assert (
        f"name another store with --tracking-uri or MLFLOW_TRACKING_URI; the demo's is --tracking-uri {demo_store}."
        in line
    )
