"""One test's experiment in a real SQLite store of MLflow."""

import sqlite3
from dataclasses import replace
from pathlib import Path
from typing import Any

from ccts_dist.config import TrackingConfig
from ccts_dist.tracking import open_tracking
from ccts_dist.tracking.mlflow_run import MlflowRun


class Store:
    """One test's experiment, read without MLflow."""

    def __init__(self, database: Path, output: Path, experiment: str) -> None:
        self.database, self.output = database, output
        self.config = TrackingConfig(tracking_uri=f"sqlite:///{database}", experiment_name=experiment)

    def open(self, *, resume: bool = False, run_name: str = "demo") -> MlflowRun:
        tracking = open_tracking(self.config, run_name=run_name, output=self.output, resume=resume)
        assert isinstance(tracking, MlflowRun)
        return tracking

    def ask(self, query: str, *values: Any) -> list[tuple[Any, ...]]:
        with sqlite3.connect(self.database) as connection:
            return connection.execute(query, values).fetchall()

    def tags(self, run_id: str) -> dict[str, str]:
        return dict(self.ask("select key, value from tags where run_uuid = ?", run_id))

    def params(self, run_id: str) -> dict[str, str]:
        return dict(self.ask("select key, value from params where run_uuid = ?", run_id))

    def steps(self, run_id: str, key: str) -> list[int]:
        query = "select step from metrics where run_uuid = ? and key = ? order by step"
        return [step for (step,) in self.ask(query, run_id, key)]

    def status(self, run_id: str) -> str:
        return self.ask("select status from runs where run_uuid = ?", run_id)[0][0]


def never_read(store: Store, steps: range, *, resume: bool = False) -> None:
    """Report a server that is not there of some steps, as a process that is then killed."""
    dead = replace(store.config, tracking_uri="http://127.0.0.1:9")
    run = open_tracking(dead, run_name="demo", output=store.output, resume=resume)
    assert isinstance(run, MlflowRun)
    run.params({"seed": 1})
    plot = store.output / "plot.txt"
    plot.write_text("curve", encoding="utf-8")
    run.artifact(plot, "plots")
    for step in steps:
        run.metrics({"loss": 1.0 / step}, step)
    run._events.close(0.0)
    run._files.close(0.0)
