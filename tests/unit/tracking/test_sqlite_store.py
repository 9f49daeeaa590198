"""The default store: an SQLite file that is whole or not there, in a folder of any name."""

import os
from pathlib import Path

import pytest
from sqlalchemy.engine import make_url

from ccts_dist.errors import ConfigError, RegistryError
from ccts_dist.registry import resolve_model
from ccts_dist.tracking import sqlite_store
from ccts_dist.tracking.fetch_run import fetch_run
from ccts_dist.tracking.sqlite_store import is_store, make_store
from ccts_dist.tracking.uri import artifact_location, resolve_tracking_uri, sqlite_file, sqlite_uri

ODD = ("a%20b", "a?b", "a#b c", "50%", "a%3Fb?c=d&e", "\N{SNOWMAN}")


@pytest.mark.parametrize("name", ODD)
def test_folder_of_any_name_holds_the_default_store(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    folder = tmp_path / name
    folder.mkdir()
    monkeypatch.chdir(folder)
    uri = resolve_tracking_uri("")
    assert make_url(uri).database == str(folder / "mlflow.db"), "SQLAlchemy opens another file"
    assert sqlite_file(uri) == folder / "mlflow.db"
    assert resolve_tracking_uri(uri) == uri, "an address that is stored and read again is another"
    location = artifact_location(uri, "ccts")
    assert location == (folder / "mlruns" / "ccts").as_uri()


def test_options_of_an_sqlite_address_stay_behind_its_escaped_file(tmp_path: Path):
    uri = f"{sqlite_uri(tmp_path / 'a?b.db')}?timeout=5"
    assert resolve_tracking_uri(uri) == uri == f"sqlite:///{tmp_path}/a%3Fb.db?timeout=5"


def test_store_that_fails_half_way_leaves_nothing_and_the_next_process_makes_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    file = tmp_path / "mlflow.db"

    def fail(unfinished: Path, _: Path) -> None:
        unfinished.write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(sqlite_store, "_make_tables", fail)
    with pytest.raises(KeyboardInterrupt):
        make_store(file)
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr(sqlite_store, "_make_tables", lambda unfinished, _: unfinished.write_bytes(b"whole"))
    make_store(file)
    assert file.read_bytes() == b"whole"
    assert list(tmp_path.iterdir()) == [file]


def test_store_that_another_process_has_made_meanwhile_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    file = tmp_path / "mlflow.db"

    def be_late(unfinished: Path, _: Path) -> None:
        unfinished.write_bytes(b"mine")
        file.write_bytes(b"theirs")

    monkeypatch.setattr(sqlite_store, "_make_tables", be_late)
    make_store(file)
    assert file.read_bytes() == b"theirs"
    assert list(tmp_path.iterdir()) == [file]


def test_file_system_without_hard_links_gets_its_store_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def refuse(*_: object) -> None:
        raise PermissionError("no hard links here")

    monkeypatch.setattr(os, "link", refuse)
    monkeypatch.setattr(sqlite_store, "_make_tables", lambda unfinished, _: unfinished.write_bytes(b"whole"))
    make_store(tmp_path / "mlflow.db")
    assert (tmp_path / "mlflow.db").read_bytes() == b"whole"


def test_empty_file_is_no_store_to_look_anything_up_in_and_stays_empty(tmp_path: Path):
    file = tmp_path / "mlflow.db"
    file.touch()
    assert not is_store(file)
    uri = sqlite_uri(file)
    with pytest.raises(RegistryError, match="a file that is not there or empty"):
        resolve_model("models:/emotion@champion", tracking_uri=uri)
    with pytest.raises(ConfigError, match="there is no file"):
        fetch_run("runs:/abc", tracking_uri=uri)
    assert file.stat().st_size == 0
