"""What forked commands find ready is what they would make: tables of MLflow, and forecasts of their own model."""

import sqlite3
from pathlib import Path

import pytest
from transformers import HubertConfig

from ccts_dist.config import ModelConfig
from ccts_dist.config.reader import parse_model
from ccts_dist.model.emotion import EncoderConfigs
from ccts_dist.tracking.sqlite_store import make_store
from tests.helpers.processes.small_runs import SPEECH
from tests.ready_store import MIGRATE, copy_tables
from tests.remembered import _remembered


def model(**changes: int) -> tuple[ModelConfig, EncoderConfigs]:
    """Made anew, as each process does."""
    return parse_model({"embedding_dim": 8, "speech": SPEECH}), EncoderConfigs(speech=HubertConfig(**changes))


def test_forecast_is_made_once_of_each_model_and_shape(tmp_path: Path) -> None:
    asked = []

    def forecast(config: ModelConfig, encoders: EncoderConfigs, *, samples: int) -> int | None:
        asked.append((config, encoders, samples))
        return None if samples == 3 else len(asked)

    one, other = _remembered(forecast, tmp_path), _remembered(forecast, tmp_path)
    assert one(*model(), samples=1) == other(*model(), samples=1) == 1
    assert one(*model(hidden_size=24), samples=1) == 2
    assert one(*model(), samples=2) == 3
    assert one(*model(), samples=3) is other(*model(), samples=3) is None
    assert len(asked) == 4


@pytest.mark.integration
def test_copied_tables_are_those_that_migrations_make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copy_tables()
    make_store(tmp_path / "copied.db")
    for name, value in MIGRATE.items():
        monkeypatch.setenv(name, value)
    make_store(tmp_path / "migrated.db")
    copied, migrated = (_told(tmp_path / name) for name in ("copied.db", "migrated.db"))
    assert copied == migrated
    assert len(migrated[0]) > 50


def _told(store: Path) -> tuple[list[str], ...]:
    """Tables and indexes, the revision, and the experiment that each store begins with.

    SQLAlchemy keeps the constraints of a table that it copies in a set: two migrations write them in different orders.
    """
    queries = (
        "select type, name, tbl_name, sql from sqlite_master",
        "select version_num from alembic_version",
        "select experiment_id, name, artifact_location, lifecycle_stage from experiments",
    )
    with sqlite3.connect(store) as connection:
        return tuple(sorted(str(tuple(map(_in_order, row))) for row in connection.execute(query)) for query in queries)


def _in_order(value: object) -> object:
    return sorted(line.strip(" \t,") for line in value.splitlines()) if isinstance(value, str) else value
