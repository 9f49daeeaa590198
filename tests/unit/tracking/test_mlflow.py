"""Runs in MLflow, in a real SQLite store."""

import json
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from ccts_dist.config import TrackingConfig
from ccts_dist.errors import ConfigError
from ccts_dist.records import Condition
from ccts_dist.tracking import open_tracking
from ccts_dist.tracking.mlflow_client import large_transfers, open_client
from ccts_dist.tracking.mlflow_run import MlflowRun
from ccts_dist.tracking.run_file import read_run_file
from ccts_dist.tracking.spooling.spooled_run import begin_run, spooled_runs
from ccts_dist.tracking.sync import Synced, sync
from tests.helpers.processes.tracking_store import Store, never_read


def test_what_was_reported_is_there_after_closing(store: Store) -> None:
    run = store.open()
    run.params({"seed": 1, "model": {"targets": ["valence"], "dropout": 0.5}, "long": "x" * 7000})
    run.metrics({"train/loss": 0.5, "train/norm": float("nan")}, 3)
    run.tags({"note": "first"})
    plot = store.output / "plot.txt"
    plot.write_text("curve", encoding="utf-8")
    run.artifact(plot, "plots")
    run.close("FINISHED")
    params = store.params(run.run_id)
    assert (params["seed"], params["model.targets"], params["model.dropout"]) == ("1", '["valence"]', "0.5")
    assert len(params["long"]) == 6000
    assert store.steps(run.run_id, "train/loss") == [3]
    assert store.steps(run.run_id, "train/norm") == [3]
    assert store.tags(run.run_id)["note"] == "first"
    assert store.status(run.run_id) == "FINISHED"
    place = Path(
        store.ask("select artifact_uri from runs where run_uuid = ?", run.run_id)[0][0].removeprefix("file://")
    )
    assert (place / "plots" / "plot.txt").read_text(encoding="utf-8") == "curve"
    assert place.is_relative_to(store.database.parent / "mlruns")


def test_the_run_folder_names_its_run_as_soon_as_it_is_open(store: Store) -> None:
    run = store.open()
    assert read_run_file(store.output).run_id == run.run_id != ""
    run.close("FINISHED")


def test_inputs_name_digests_splits_and_condition(store: Store) -> None:
    run = store.open()
    condition = Condition(
        targets=("valence",), w=(1.0,), b=(0.0,), residual_std=(0.1,), num_rows=(10,), splits=("Train",)
    )
    run.inputs(shard_set_digest="abc", splits={"Train": 10}, cache_digest="def", condition=condition)
    run.close("FINISHED")
    tags = store.tags(run.run_id)
    assert (tags["data.shard_set_digest"], tags["data.cache_digest"]) == ("abc", "def")
    data = next(store.database.parent.glob(f"mlruns/*/{run.run_id}/artifacts/inputs/data.json"))
    assert json.loads(data.read_text(encoding="utf-8"))["condition"]["residual_std"] == [0.1]


def test_data_sets_source_and_description_stand_where_mlflows_pages_look_for_them(store: Store) -> None:
    run = store.open()
    splits = {"Train": 10, "Test1": 2}
    for _ in range(2):  # as a resumed run does
        run.inputs(shard_set_digest="a" * 64, splits=splits, cache_digest="c" * 64, corpus="MSP-Podcast 1.12",
                   shards="https://user:secret@host/shards", cache="cache")  # fmt: skip
    run.description("**A student**")
    run.close("FINISHED")
    found = open_client(store.config.tracking_uri).get_run(run.run_id)
    sets = {one.dataset.name: one for one in found.inputs.dataset_inputs}
    assert set(sets) == {"MSP-Podcast 1.12", "teacher cache"}
    shards, cache = sets["MSP-Podcast 1.12"], sets["teacher cache"]
    assert (shards.dataset.digest, shards.tags[0].value) == ("a" * 36, "training")
    assert json.loads(shards.dataset.source) == {"uri": "https://host/shards"}
    assert json.loads(shards.dataset.profile) == {"splits": splits, "utterances": 12}
    assert (cache.dataset.digest, cache.tags[0].value) == ("c" * 36, "distillation")
    tags = store.tags(run.run_id)
    assert tags["mlflow.note.content"] == "**A student**"
    assert tags["mlflow.user"]
    assert tags["mlflow.source.name"].endswith(Path(sys.argv[0]).name)


def test_a_resumed_run_goes_on_and_holds_no_step_twice(store: Store) -> None:
    first = store.open()
    for step in range(1, 8):
        first.metrics({"train/loss": 1.0 / step}, step)
    first.metrics({"valid/loss": 0.5}, 5)
    first.close("KILLED")
    second = store.open(resume=True)
    assert second.run_id == first.run_id
    second.flush()
    assert store.status(first.run_id) == "RUNNING"
    for step in range(4, 12):
        second.metrics({"train/loss": 2.0 / step}, step)
    second.metrics({"valid/loss": 0.4}, 10)
    second.close("FINISHED")
    assert store.steps(first.run_id, "train/loss") == list(range(1, 12))
    assert store.steps(first.run_id, "valid/loss") == [5, 10]
    assert store.status(first.run_id) == "FINISHED"


def test_a_step_reported_twice_within_one_run_counts_once(store: Store) -> None:
    run = store.open()
    run.metrics({"loss": 1.0}, 1)
    run.metrics({"loss": 2.0}, 1)
    run.flush()
    run.metrics({"loss": 3.0}, 1)
    run.close("FINISHED")
    assert store.steps(run.run_id, "loss") == [1]


def test_a_setting_that_changed_on_resuming_becomes_a_tag(store: Store) -> None:
    first = store.open()
    first.params({"data.num_workers": 1, "seed": 7})
    first.close("KILLED")
    second = store.open(resume=True)
    second.params({"data.num_workers": 4, "seed": 7, "new": "x"})
    second.close("FINISHED")
    assert store.params(first.run_id) == {"data.num_workers": "1", "seed": "7", "new": "x"}
    assert store.tags(first.run_id)["changed.data.num_workers"] == "4"


def test_without_resume_a_folder_gets_a_new_run(store: Store) -> None:
    first = store.open()
    first.close("FINISHED")
    second = store.open()
    second.close("FINISHED")
    assert first.run_id != second.run_id == read_run_file(store.output).run_id


def test_a_run_that_was_deleted_at_the_server_is_begun_anew_and_states_from_where(
    store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    first = store.open()
    first.close("KILLED")
    open_client(store.config.tracking_uri).delete_run(first.run_id)
    second = store.open(resume=True)
    second.close("FINISHED")
    assert second.run_id != first.run_id
    assert store.tags(second.run_id)["ccts_dist.continues"] == first.run_id
    assert f"has no run {first.run_id} any more" in caplog.text


def test_many_settings_are_sent_in_calls_that_mlflow_takes(store: Store) -> None:
    run = store.open()
    run.params({f"key{number}": number for number in range(250)})
    run.close("FINISHED")
    assert len(store.params(run.run_id)) == 250


def test_an_absent_file_is_left_out_and_put_aside_with_its_reason(store: Store) -> None:
    run = store.open()
    run.artifact(store.output / "absent.png")
    run.metrics({"loss": 1.0}, 1)
    run.close("FINISHED")
    assert store.steps(run.run_id, "loss") == [1]
    (line,) = (store.output / "tracking/0001/files-refused.jsonl").read_text(encoding="utf-8").splitlines()
    assert "absent.png is not there" in line


def test_a_server_that_is_never_there_stops_nothing_and_what_was_meant_for_it_is_kept(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    began = time.monotonic()
    dead = "http://127.0.0.1:9"
    spooled = begin_run(tmp_path, run_name="demo", experiment="ccts", parent="", tracking_uri=dead)
    run = MlflowRun(uri=dead, run=spooled, output=tmp_path, close_s=0.5)
    run.params({"seed": 1})
    for step in range(1000):
        run.metrics({"loss": float("inf")}, step)
    run.flush()
    run.close("FINISHED")
    run.close("FINISHED")
    assert time.monotonic() - began < 10
    assert "1002 events did not reach the server" in caplog.text
    assert f"python launch/sync.py {tmp_path}" in caplog.text
    assert not (tmp_path / "tracking.json").exists()


def test_what_no_server_read_is_sent_later_in_order_and_nothing_twice(store: Store) -> None:
    """Two starts without a server, which repeat steps; the folder is moved before its run is sent."""
    never_read(store, range(1, 8))
    never_read(store, range(4, 12), resume=True)
    (spooled,) = spooled_runs(store.output)
    assert spooled.run_id == ""
    store.output = store.output.rename(store.output.with_name("moved"))
    printed: list[str] = []
    done = sync(store.output, uri=store.config.tracking_uri, report=printed.append)
    # Of each start a setting and a file, eleven steps, and that the second one went on.
    assert done == Synced(num_sent=2 + 2 + 11 + 1, num_refused=0)
    tracked = read_run_file(store.output)
    assert store.steps(tracked.run_id, "loss") == list(range(1, 12))
    assert store.params(tracked.run_id) == {"seed": "1"}
    assert list(store.database.parent.glob(f"mlruns/*/{tracked.run_id}/artifacts/plots/plot.txt"))
    assert f"16 events for run {tracked.run_id} at {store.config.tracking_uri}" in printed[0]
    assert sync(store.output, uri=store.config.tracking_uri) == Synced(num_sent=0, num_refused=0)
    third = store.open(resume=True)
    assert third.run_id == tracked.run_id
    third.metrics({"loss": 9.0}, 11)
    third.metrics({"loss": 9.0}, 12)
    third.close("FINISHED")
    assert store.steps(tracked.run_id, "loss") == list(range(1, 13))
    assert store.status(tracked.run_id) == "FINISHED"


def test_a_run_that_a_killed_process_made_at_the_server_and_could_not_note_is_found_again(store: Store) -> None:
    first = store.open()
    first.close("KILLED")
    (spooled,) = spooled_runs(store.output)
    replace(spooled, run_id="").write()
    (store.output / "tracking.json").unlink()
    second = store.open(resume=True)
    second.close("FINISHED")
    assert second.run_id == first.run_id


def test_sending_again_what_the_server_has_adds_nothing(store: Store) -> None:
    """As after a kill between the server's answer and the note of it."""
    run = store.open()
    for step in range(1, 6):
        run.metrics({"loss": 1.0 / step, "not a number": float("nan")}, step)
    run.close("KILLED")
    (store.output / "tracking/0001/events-sent.json").unlink()
    done = sync(store.output)
    assert done.num_sent == 11
    assert store.steps(run.run_id, "loss") == store.steps(run.run_id, "not a number") == list(range(1, 6))


def test_a_run_ends_when_it_ended_and_not_when_that_was_sent(store: Store) -> None:
    before = time.time_ns() // 1_000_000
    dead = replace(store.config, tracking_uri="http://127.0.0.1:9")
    spooled = begin_run(
        store.output, run_name="a", experiment=dead.experiment_name, parent="", tracking_uri=dead.tracking_uri
    )
    MlflowRun(uri=dead.tracking_uri, run=spooled, output=store.output, close_s=0.0).close("FINISHED")
    ended = time.time_ns() // 1_000_000
    time.sleep(0.01)
    sync(store.output, uri=store.config.tracking_uri)
    query = "select start_time, end_time from runs where run_uuid = ?"
    ((start, end),) = store.ask(query, read_run_file(store.output).run_id)
    assert before <= start <= end <= ended


def test_a_spooled_run_of_another_kind_is_refused_by_name(store: Store) -> None:
    store.open().close("FINISHED")
    (store.output / "tracking/0001/run.json").write_text("[]", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"run\.json: not what tracking writes there"):
        store.open(resume=True)


def test_a_start_without_resume_leaves_the_earlier_run_alone(store: Store) -> None:
    never_read(store, range(1, 4))
    second = store.open()
    second.metrics({"loss": 7.0}, 1)
    second.close("FINISHED")
    assert store.steps(second.run_id, "loss") == [1]
    assert sync(store.output, uri=store.config.tracking_uri).num_sent == 5
    assert store.steps(second.run_id, "loss") == [1]
    assert read_run_file(store.output).run_id == second.run_id
    names = store.ask("select count(*) from runs join experiments using (experiment_id) where experiments.name = ?",
                      store.config.experiment_name)  # fmt: skip
    assert names == [(2,)]


def test_an_address_that_mlflow_does_not_know_is_the_users_mistake(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="of no kind that MLflow knows"):
        open_tracking(TrackingConfig(tracking_uri="ftp://server"), run_name="a", output=tmp_path, resume=False)


def test_a_database_whose_driver_is_missing_is_the_users_mistake(tmp_path: Path) -> None:
    config = TrackingConfig(tracking_uri="postgresql://me:secret@127.0.0.1:9/mlflow")
    with pytest.raises(ConfigError, match=r"postgresql://127.0.0.1:9/mlflow' needs the Python package 'psycopg'"):
        open_tracking(config, run_name="a", output=tmp_path, resume=False)


def test_an_experiment_that_was_deleted_is_refused_before_training(store: Store) -> None:
    store.open().close("FINISHED")
    client = open_client(store.config.tracking_uri)
    experiment = client.get_experiment_by_name(store.config.experiment_name)
    assert experiment is not None
    client.delete_experiment(experiment.experiment_id)
    with pytest.raises(ConfigError, match="refuses experiment"):
        store.open()


def test_large_transfers_are_patient_and_leave_the_settings_as_they_were(monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "33")
    with large_transfers():
        assert os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] == "5"
        assert os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] == "33", "a user's own setting stays"
    assert os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] == "0"
