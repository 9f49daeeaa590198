"""A store for the tests of this folder."""

from pathlib import Path

import pytest

from tests.helpers.processes.tracking_store import Store


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One SQLite file for all tests, since creating its tables takes seconds; each test has its own experiment."""
    return tmp_path_factory.mktemp("store") / "mlflow.db"


@pytest.fixture
def store(database: Path, tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return Store(database, tmp_path / "run", request.node.name)
