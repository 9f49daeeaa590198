"""Parent runs, and sending later what a server missed, in a real SQLite store."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ccts_dist.errors import ConfigError, TrackingError
from ccts_dist.tracking.mlflow_client import open_client
from ccts_dist.tracking.sync import sync
from tests.helpers.processes.tracking_store import Store, never_read

FIGURES = [
    {"test/ccc_valence": 0.25, "train/loss": 1.0},
    {"test/ccc_valence": 0.5, "test/ccc_joy": 0.75, "test/ccc_activation": 0.125},
]


def test_parent_tells_the_results_of_all_its_runs_and_ends_with_the_last(store: Store) -> None:
    store.config = replace(store.config, parent_run_name="table of results")
    children = []
    for number, figures in enumerate(FIGURES):
        store.output = store.output.with_name(f"run{number}")
        run = store.open(run_name=f"row | {number}")
        children.append(run.run_id)
        run.metrics(figures, 7)
        run.close("FINISHED" if number else "FAILED")
    parent = store.tags(run.run_id)["mlflow.parentRunId"]
    lines = store.tags(parent)["mlflow.note.content"].splitlines()
    assert lines[0].startswith(
        "CCC of each target on the test splits. Highest: activation 0.125 (row / 1), valence 0.500 (row / 1), "
        "joy 0.750 (row / 1). [As a list of runs](#/experiments/"
    )
    links = [f"({lines[0].rpartition('(')[2].partition('?')[0]}/{child})" for child in children]
    assert lines[2:6] == [
        "| run | status | activation | valence | joy |",
        "| --- | --- | ---: | ---: | ---: |",
        f"| [row / 0]{links[0]} | failed | - | 0.250 | - |",
        f"| [row / 1]{links[1]} | finished | 0.125 | 0.500 | 0.750 |",
    ]
    assert store.tags(run.run_id)["mlflow.runType"] == "evaluation", "MLflow unfolds the parents of such runs"
    client = open_client(store.config.tracking_uri)
    table = Path(client.download_artifacts(parent, "results.csv")).read_text().splitlines()
    assert table == [
        "run,run_id,status,activation,valence,joy",
        f"row | 0,{children[0]},failed,,0.25,",
        f"row | 1,{children[1]},finished,0.125,0.5,0.75",
    ]
    assert lines[-1].endswith(f"(get-artifact?path=results.svg&run_uuid={parent})")
    assert Path(client.download_artifacts(parent, "results.svg")).read_text().count('<g id="line2d') >= 3
    (experiment,) = store.ask("select experiment_id from runs where run_uuid = ?", parent)[0]
    view = json.loads(client.get_experiment(str(experiment)).tags["mlflow.sharedViewState.ccts-results"])
    assert "metrics.`test/ccc_joy`" in json.loads(view["state"])["selectedColumns"]
    (ended,) = store.ask("select end_time from runs where run_uuid = ?", parent)
    assert ended == store.ask("select end_time from runs where run_uuid = ?", run.run_id)[0]


def test_runs_of_one_table_are_listed_under_one_parent_that_the_first_of_them_makes(store: Store) -> None:
    """Its name may hold anything; a start that goes on makes no other."""
    name = "the 'table' of \N{SNOWMAN}"
    store.config = replace(store.config, parent_run_name=name)
    children = []
    for number in range(2):
        store.output = store.output.with_name(f"run{number}")
        run = store.open(run_name=f"row {number}")
        run.close("KILLED")
        store.open(resume=True).close("FINISHED")
        children.append(run.run_id)
    parents = {store.tags(child)["mlflow.parentRunId"] for child in children}
    assert len(parents) == 1
    (parent,) = parents
    assert store.ask("select name, status from runs where run_uuid = ?", parent) == [(name, "FINISHED")]
    query = "select count(*) from runs join experiments using (experiment_id) where experiments.name = ?"
    assert store.ask(query, store.config.experiment_name) == [(3,)]


def test_jobs_that_make_a_parent_at_once_agree_on_the_one_that_began_first(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.config = replace(store.config, parent_run_name="table")
    client = open_client(store.config.tracking_uri)
    make, others = client.create_run, []

    def make_late(self: Any, experiment_id: str, **more: Any) -> Any:
        """Another job is a moment earlier."""
        if more["run_name"] == "table" and not others:
            others.append(make(experiment_id, **more, start_time=1).info.run_id)
        return make(experiment_id, **more)

    monkeypatch.setattr(type(client), "create_run", make_late)
    run = store.open()
    run.close("FINISHED")
    assert store.tags(run.run_id)["mlflow.parentRunId"] == others[0]
    query = "select count(*) from runs where name = 'table' and lifecycle_stage = 'active'"
    assert store.ask(query) == [(1,)]


def test_sync_while_the_server_is_still_away_keeps_all_and_fails_in_one_line(store: Store) -> None:
    never_read(store, range(1, 4))
    with pytest.raises(TrackingError, match=r"http://127.0.0.1:9 is away: .* 5 of 5 events of .* are kept"):
        sync(store.output)


def test_sync_where_nothing_was_tracked_is_the_users_mistake(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "absent"):
        with pytest.raises(ConfigError, match="no tracking/ with a tracked run in it"):
            sync(folder)


def test_sync_beside_a_training_is_refused(store: Store) -> None:
    run = store.open()
    run.metrics({"loss": 1.0}, 1)
    run.flush()
    run.metrics({"loss": 1.0}, 2)
    with pytest.raises(ConfigError, match="a training is under way in it, which sends by itself"):
        sync(store.output)
    run.close("FINISHED")
    assert store.steps(run.run_id, "loss") == [1, 2]
