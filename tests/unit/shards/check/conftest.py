"""Sound shard sets and teacher caches, and copies of them to damage."""

import shutil
from pathlib import Path

import pytest

from tests.helpers.examples.sound_sets import build_sound


@pytest.fixture(scope="session")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``shards``, ``cache`` and ``merged``, to be copied."""
    return build_sound(tmp_path_factory.mktemp("sound"))


@pytest.fixture
def root(sound: Path, tmp_path: Path) -> Path:
    shutil.copytree(sound / "shards", tmp_path / "shards")
    return tmp_path / "shards"
