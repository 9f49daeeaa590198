"""A killed build's lock goes; one of a build that may be under way stays."""

import os
import time
from pathlib import Path

import pytest

from ccts_dist.distributed import Ranks
from ccts_dist.train.compiled import OLDEST_BUILD_S, compiled_folder, forget_dead_builds


def lock(path: Path, age_s: float) -> Path:
    path.parent.mkdir(parents=True)
    path.touch()
    os.utime(path, (time.time() - age_s,) * 2)
    return path


@pytest.mark.parametrize("under", ["", "py311_cpu"], ids=["folder of one's own", "torch's default"])
def test_old_lock_is_removed_and_a_fresh_one_stays(tmp_path: Path, under: str, capsys: pytest.CaptureFixture[str]):
    old = lock(tmp_path / under / "deepspeed_shm_comm" / "lock", OLDEST_BUILD_S + 60)
    fresh = lock(tmp_path / under / "deepspeed_fresh" / "lock", OLDEST_BUILD_S - 60)
    other = lock(tmp_path / under / "my_kernel" / "lock", 1e6)
    forget_dead_builds(tmp_path, Ranks())
    assert not old.exists()
    assert fresh.exists()
    assert other.exists(), "not DeepSpeed's"
    assert str(old) in capsys.readouterr().err


def test_only_one_rank_of_a_host_removes_anything(tmp_path: Path):
    old = lock(tmp_path / "deepspeed_shm_comm" / "lock", 1e6)
    forget_dead_builds(tmp_path, Ranks(local_rank=1))
    assert old.exists()


def test_folder_is_the_one_torch_would_use(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    assert compiled_folder() == tmp_path
    monkeypatch.delenv("TORCH_EXTENSIONS_DIR")
    assert compiled_folder().name == "torch_extensions"
