"""MLflow's tables in an empty SQLite file, made by its migrations once in a process and copied from then on.

There are sixty of them, and they take most of a second of a core. A process that is forked has the copy of the one it
came from. With ``CCTS_TESTS_MIGRATE=1`` in its environment it makes the tables itself, as a user's does: for tests of
the first use of a store.
"""

import os
import sqlite3
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

MIGRATE = {"CCTS_TESTS_MIGRATE": "1"}
"""Environment of a process that is to make its tables by MLflow's migrations."""


def copy_tables() -> None:
    """Have MLflow take the copy in this process, where it would make tables in an empty SQLite file."""
    from mlflow.store.db import utils
    from mlflow.store.model_registry import sqlalchemy_store as registry

    migrate = utils._initialize_tables
    if hasattr(migrate, "tables"):
        return

    @lru_cache(maxsize=1)
    def tables() -> bytes:
        with TemporaryDirectory(prefix="ccts-tables-") as folder:
            file = Path(folder) / "empty.db"
            engine = utils.create_sqlalchemy_engine_with_retry(f"sqlite:///{file}")
            migrate(engine)
            engine.dispose()
            return file.read_bytes()

    def initialize(engine: Any) -> None:
        ours = engine.dialect.name == "sqlite" and engine.url.database and utils._is_empty_database(engine)
        if not ours or os.environ.get("CCTS_TESTS_MIGRATE"):
            migrate(engine)
            return
        with engine.connect() as connection:
            _copy(tables(), connection.connection.driver_connection)

    initialize.tables = tables  # type: ignore[attr-defined]
    utils._initialize_tables = registry._initialize_tables = initialize
    # Loading all migrations to see which is the last takes a tenth of a second, at each start of a store.
    utils._get_latest_schema_revision = lru_cache(maxsize=1)(utils._get_latest_schema_revision)


def use_a_store(folder: Path) -> None:
    """Make the copy, and use a store once, for processes that will be forked from this one.

    SQLAlchemy works out how objects and tables belong together at the first use of a store: two seconds of a core more.
    """
    from mlflow.entities import Metric, Param, RunTag
    from mlflow.store.model_registry.sqlalchemy_store import SqlAlchemyStore as Registry
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore as Runs

    from ccts_dist.tracking.mlflow_client import open_client
    from ccts_dist.tracking.uri import sqlite_uri

    environment = dict(os.environ)
    client = open_client(sqlite_uri(folder / "mlflow.db"))
    experiment = client.create_experiment("a")
    run_id = client.create_run(experiment).info.run_id
    client.log_batch(run_id, metrics=[Metric("a", 1.0, 0, 1)], params=[Param("a", "b")], tags=[RunTag("a", "b")])
    client.set_terminated(run_id)
    assert [run.data.metrics for run in client.search_runs([experiment])] == [{"a": 1.0}]
    client.create_registered_model("a")
    for store in (Runs, Registry):  # no connection is for two processes
        for engine in store._engine_map.values():
            engine.dispose()
        store._engine_map.clear()
    os.environ.clear()
    os.environ.update(environment)


def _copy(tables: bytes, store: Any) -> None:
    source = sqlite3.connect(":memory:")
    source.deserialize(tables)
    source.backup(store)
    source.close()
