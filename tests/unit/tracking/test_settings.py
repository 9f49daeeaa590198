"""Where runs are kept, what a run folder remembers, and tracking that is off."""

from pathlib import Path

import pytest

from ccts_dist.config import TrackingConfig
from ccts_dist.errors import ConfigError
from ccts_dist.redaction import without_credentials
from ccts_dist.tracking import NoTracking, Tracking, open_tracking
from ccts_dist.tracking.run_file import TrackedRun, read_run_file, write_run_file
from ccts_dist.tracking.uri import (
    artifact_location,
    name_another_store,
    resolve_tracking_uri,
    sqlite_file,
)


@pytest.fixture(autouse=True)
def _no_address_in_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)


def test_without_any_setting_runs_go_to_a_file_in_the_working_directory_by_its_absolute_path(tmp_path: Path) -> None:
    assert resolve_tracking_uri("") == f"sqlite:///{tmp_path}/mlflow.db"


def test_the_environment_comes_before_the_default_and_the_run_file_before_the_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://server:5000")
    assert resolve_tracking_uri("") == "http://server:5000"
    assert resolve_tracking_uri("http://other:5000") == "http://other:5000"


def test_a_relative_sqlite_path_is_made_absolute_and_an_absolute_one_stays(tmp_path: Path) -> None:
    assert resolve_tracking_uri("sqlite:///runs/a.db") == f"sqlite:///{tmp_path}/runs/a.db"
    assert resolve_tracking_uri("sqlite:////data/a.db") == "sqlite:////data/a.db"


@pytest.mark.parametrize("uri", ["mlruns", "/data/mlruns", "file:///data/mlruns"])
def test_a_folder_is_refused_because_it_keeps_no_aliases(uri: str) -> None:
    with pytest.raises(ConfigError, match="keeps no model aliases"):
        resolve_tracking_uri(uri)


def test_options_of_an_sqlite_address_are_no_part_of_its_file() -> None:
    assert sqlite_file("sqlite:////data/a.db?timeout=5") == Path("/data/a.db")
    assert sqlite_file("http://server:5000") is None


def test_remedy_for_a_store_that_lacks_something_names_the_option_and_the_demos_address(tmp_path: Path) -> None:
    words = "name another store with --tracking-uri or MLFLOW_TRACKING_URI"
    assert name_another_store(resolve_tracking_uri("")) == words
    (tmp_path / "demo").mkdir()
    (tmp_path / "demo" / "mlflow.db").touch()
    demo = f"sqlite:///{tmp_path}/demo/mlflow.db"
    assert name_another_store(resolve_tracking_uri("")) == f"{words}; the demo's is --tracking-uri {demo}"
    assert name_another_store(demo) == words, "it is there that something is missing"


def test_files_of_an_sqlite_store_lie_beside_it_and_a_server_decides_itself() -> None:
    assert artifact_location("sqlite:////data/a.db", "speech emotion") == "file:///data/mlruns/speech_emotion"
    assert artifact_location("http://server:5000", "ccts") is None


def test_passwords_are_not_written_down() -> None:
    assert without_credentials("postgresql://me:secret@db:5432/mlflow") == "postgresql://db:5432/mlflow"
    assert without_credentials("postgresql://me:se/cret@db:5432/mlflow") == "postgresql://db:5432/mlflow"
    assert without_credentials("sqlite:////data/a.db") == "sqlite:////data/a.db"


def test_a_run_folder_remembers_its_run_without_the_password(tmp_path: Path) -> None:
    output = tmp_path / "new" / "run"
    write_run_file(output, TrackedRun(tracking_uri="http://me:secret@server:5000", experiment="ccts", run_id="abc"))
    assert read_run_file(output) == TrackedRun(tracking_uri="http://server:5000", experiment="ccts", run_id="abc")
    assert [path.name for path in output.iterdir()] == ["tracking.json"]


def test_a_resumed_run_is_looked_for_where_it_was_unless_an_address_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    stored = TrackedRun(tracking_uri="sqlite:////old/place/mlflow.db", experiment="ccts", run_id="abc")
    assert stored.uri("") == "sqlite:////old/place/mlflow.db"
    assert stored.uri("http://given:5000") == "http://given:5000"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://server:5000")
    assert stored.uri("") == "http://server:5000"


def test_a_folder_that_was_never_tracked_has_no_run(tmp_path: Path) -> None:
    assert read_run_file(tmp_path) == TrackedRun()


@pytest.mark.parametrize("content", ["", "[]", '{"run_id": "abc"}', "\N{SNOWMAN}"])
def test_a_run_file_of_another_kind_is_refused_by_name(tmp_path: Path, content: str) -> None:
    (tmp_path / "tracking.json").write_text(content, encoding="utf-8")
    with pytest.raises(ConfigError, match=r"tracking\.json: not what tracking writes there"):
        read_run_file(tmp_path)


def test_tracking_that_is_off_takes_everything_and_leaves_nothing(tmp_path: Path) -> None:
    tracking: Tracking = open_tracking(TrackingConfig(backend="none"), run_name="a", output=tmp_path, resume=False)
    assert isinstance(tracking, NoTracking)
    tracking.params({"a": 1})
    tracking.metrics({"loss": 1.0}, 0)
    tracking.tags({"a": "b"})
    tracking.artifact(tmp_path / "absent")
    tracking.inputs(shard_set_digest="abc", splits={"Train": 1})
    tracking.flush()
    tracking.close("FINISHED")
    assert tracking.run_id == ""
    assert list(tmp_path.iterdir()) == []
