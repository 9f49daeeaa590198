"""Accounts that have no passwd entry, no HOME, or one that cannot be written to."""

import getpass
import os
import pwd
import tempfile
from pathlib import Path

import pytest

from ccts_dist.process.account import complete_account, user_cache

NAMES = ("LOGNAME", "USER", "LNAME", "USERNAME", "HOME", "XDG_CACHE_HOME")


@pytest.fixture(autouse=True)
def nobody(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A number alone: no entry, no variables."""

    def unknown(number: int) -> None:
        raise KeyError(f"getpwuid(): uid not found: {number}")

    for name in NAMES:
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.setattr(pwd, "getpwuid", unknown)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()


def test_number_without_entry_gets_a_name_and_a_home_of_its_own(tmp_path: Path):
    complete_account()
    assert getpass.getuser() == f"uid{os.getuid()}"
    home = tmp_path / "tmp" / f"ccts-dist-{os.getuid()}"
    assert Path.home() == home
    assert home.stat().st_mode & 0o777 == 0o700
    assert user_cache() == home / ".cache"


def test_home_that_is_not_there_counts_as_none(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("HOME", str(tmp_path / "gone"))
    complete_account()
    assert Path.home().parent == tmp_path / "tmp"


def test_name_and_home_that_are_there_stay(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("LOGNAME", "alice")
    complete_account()
    assert (Path.home(), getpass.getuser()) == (tmp_path, "alice")
    assert "USER" not in os.environ


def test_cache_goes_elsewhere_where_the_home_is_read_only(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != tmp_path)  # root may write anywhere
    assert user_cache() == tmp_path / "tmp" / f"ccts-dist-{os.getuid()}"
    assert Path.home() == tmp_path
    monkeypatch.setenv("XDG_CACHE_HOME", "/data/cache")
    assert user_cache() == Path("/data/cache")


@pytest.mark.parametrize("kind", ["link", "writable by all"])
def test_folder_that_another_account_may_have_planted_is_not_used(kind: str, tmp_path: Path):
    planted = tmp_path / "tmp" / f"ccts-dist-{os.getuid()}"
    if kind == "link":
        (tmp_path / "elsewhere").mkdir()
        planted.symlink_to(tmp_path / "elsewhere")
    else:
        planted.mkdir()
        planted.chmod(0o777)
    complete_account()
    assert Path.home() != planted
    assert Path.home().parent == tmp_path / "tmp"
