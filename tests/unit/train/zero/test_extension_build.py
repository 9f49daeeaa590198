"""A killed build of DeepSpeed's library goes; one that may be under way stays; processes take turns."""

import os
import platform
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ccts_dist.errors import BuildError
from ccts_dist.train.zero.extension_build import OLDEST_BUILD_S, compile_once, extension_folder, one_build_at_a_time
from tests.helpers.processes.forked import Forked
from tests.helpers.processes.launching import ROOT, environment, run_forked

BUILD = [sys.executable, "-c", "from ccts_dist.train.zero.engine import compile_for_ranks; compile_for_ranks()"]


def lock(path: Path, age_s: float) -> Path:
    path.parent.mkdir(parents=True)
    path.touch()
    os.utime(path, (time.time() - age_s,) * 2)
    return path


@pytest.mark.parametrize("under", ["", "py311_cpu"], ids=["folder of one's own", "torch's default"])
def test_old_build_is_removed_and_a_fresh_one_stays(tmp_path: Path, under: str, capsys: pytest.CaptureFixture[str]):
    old = lock(tmp_path / under / "deepspeed_shm_comm" / "lock", OLDEST_BUILD_S + 60)
    fresh = lock(tmp_path / under / "deepspeed_fresh" / "lock", OLDEST_BUILD_S - 60)
    other = lock(tmp_path / under / "my_kernel" / "lock", 1e6)
    with one_build_at_a_time(tmp_path):
        assert not old.parent.exists()
    assert fresh.exists()
    assert other.exists(), "not DeepSpeed's"
    assert str(old.parent) in capsys.readouterr().err


@pytest.mark.parametrize(("host", "stays"), [(platform.node(), False), ("another", True)])
def test_build_whose_holder_was_killed_is_removed_at_once_but_not_another_hosts(tmp_path: Path, host: str, stays: bool):
    fresh = lock(tmp_path / "deepspeed_shm_comm" / "lock", 1.0)
    (tmp_path / "deepspeed.turn").write_text(host)
    with one_build_at_a_time(tmp_path):
        assert fresh.exists() == stays
    assert (tmp_path / "deepspeed.turn").read_bytes() == b"", "this one finished"


@pytest.mark.parametrize(("written_s_ago", "stays"), [(60.0, True), (0.5, False)], ids=["loaded", "built"])
def test_library_that_a_killed_start_only_loaded_stays(tmp_path: Path, written_s_ago: float, stays: bool):
    """A kill while a library is loaded would else cost the next start a minute of compiling."""
    mark = lock(tmp_path / "deepspeed_shm_comm" / "lock", 5.0)
    (library := mark.with_name("deepspeed_shm_comm.so")).touch()
    os.utime(library, (time.time() - written_s_ago,) * 2)
    (tmp_path / "deepspeed.turn").write_text(platform.node())
    with one_build_at_a_time(tmp_path):
        assert not mark.exists()
        assert library.exists() == stays


def test_a_build_waits_for_another_and_leaves_it_alone(tmp_path: Path):
    reported = tmp_path / "told"
    waiting = (
        "import sys, pathlib; from ccts_dist.train.zero.extension_build import one_build_at_a_time\n"
        "print('begun', flush=True)\n"
        f"with one_build_at_a_time(pathlib.Path({str(tmp_path)!r})): pathlib.Path({str(reported)!r}).touch()"
    )
    with one_build_at_a_time(tmp_path):
        under_way = lock(tmp_path / "deepspeed_shm_comm" / "lock", 0.0)
        second = subprocess.Popen([sys.executable, "-c", waiting], cwd=ROOT, stdout=subprocess.PIPE)
        assert second.stdout is not None
        with second.stdout:
            second.stdout.readline()
        time.sleep(0.5)
        assert not reported.exists()
        assert under_way.exists()
        under_way.unlink()
    assert second.wait(60) == 0
    assert reported.exists()


def test_folder_that_cannot_be_written_is_left_to_torch(tmp_path: Path):
    (tmp_path / "file").touch()
    with one_build_at_a_time(tmp_path / "file" / "under"):
        pass
    assert os.listdir(tmp_path) == ["file"]


def test_compiler_that_fails_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def load() -> None:
        raise RuntimeError("Error building extension 'deepspeed_shm_comm'\nand a page of words")

    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    with pytest.raises(BuildError, match=r"Error building extension 'deepspeed_shm_comm'\. It needs g\+\+"):
        compile_once("deepspeed_shm_comm", load)


def test_folder_is_the_one_torch_would_use(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    assert extension_folder() == tmp_path
    monkeypatch.delenv("TORCH_EXTENSIONS_DIR")
    assert extension_folder().name == "torch_extensions"


@pytest.mark.long
def test_start_that_is_killed_while_it_compiles_stops_no_later_one(tmp_path: Path):
    env = {"TORCH_EXTENSIONS_DIR": str(tmp_path)}
    built = tmp_path / "deepspeed_shm_comm"
    first = Forked(BUILD, cwd=ROOT, env=environment(env), stdout=subprocess.DEVNULL)
    waited_until = time.monotonic() + 240
    while not (built / "build.ninja").exists():
        assert first.poll() is None, "it compiled before it could be killed"
        assert time.monotonic() < waited_until
        time.sleep(0.01)
    os.killpg(first.pid, signal.SIGKILL)
    assert first.wait(30) == -signal.SIGKILL
    assert (built / "lock").exists(), "the kill came in the middle"
    second = run_forked(BUILD, env=env, timeout_s=400)
    assert second.returncode == 0, second.stderr
    assert "removed, a build that was killed had left it" in second.stderr
    assert (built / "deepspeed_shm_comm.so").exists()
    third = run_forked(BUILD, env=env, timeout_s=400)
    assert third.returncode == 0, third.stderr
    assert "compiling" not in third.stderr
