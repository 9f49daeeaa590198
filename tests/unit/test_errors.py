"""How commands begin and end."""

import errno
import gc
import os
import subprocess
import sys
from pathlib import Path

import pyarrow
import pytest
from safetensors import SafetensorError

from ccts_dist import errors
from ccts_dist.errors import ConfigError, PeerLostError, gc_paused, run_main, without_controls
from ccts_dist.ranks import rank_facts


def test_collector_rests_during_imports_and_not_after_them_even_if_one_fails():
    before = gc.get_freeze_count()
    with gc_paused():
        assert not gc.isenabled()
    assert gc.isenabled()
    assert gc.get_freeze_count() > before
    with pytest.raises(ImportError), gc_paused():
        raise ImportError("no such module")
    assert gc.isenabled()


def test_rank_that_lost_its_peers_reports_so_itself(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setenv("RANK", "3")

    def main(_: list[str] | None) -> int:
        raise PeerLostError("rank 0 has not come")

    assert run_main(main) == 1
    assert capsys.readouterr().err == "error: rank 0 has not come\n"


def test_rank_of_a_launcher_that_has_gone_reports_what_was_left_over(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "1")
    monkeypatch.setattr(errors, "_SPEAK_S", 0.01)
    assert run_main(lambda _: rank_facts().rank) == 2
    assert "RANK = 1 and WORLD_SIZE = 1: the rank must be below the number of ranks" in capsys.readouterr().err


def test_path_that_no_file_system_takes_is_one_line(capsys: pytest.CaptureFixture[str]):
    assert run_main(lambda _: Path("x" * 5_000).is_dir()) == 2
    assert capsys.readouterr().err == (
        f"error: {'x' * 80}...: is longer than a name or a path may be. Give a shorter one.\n"
    )


def test_control_characters_do_not_reach_a_terminal():
    assert without_controls("a\x1b[2Jb\x9bc\u2028\u202ed\udce9\té\u3000") == (
        "a\\x1b[2Jb\\x9bc\\u2028\\u202ed\\udce9\\x09é\u3000"
    )
    assert without_controls("a\nb", keep="\n") == "a\nb"


def _wrapped() -> ConfigError:
    error = ConfigError("o: cannot be written (No space left on device). Name another folder.")
    error.__cause__ = OSError(errno.ENOSPC, "No space left on device")
    return error


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device", "o/a.npy"),
        OSError(errno.EDQUOT, "Disk quota exceeded"),
        OSError(errno.EROFS, "Read-only file system"),
        SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
        pyarrow.ArrowInvalid("[errno 28] No space left on device"),
        _wrapped(),
    ],
    ids=repr,
)
def test_full_disk_is_one_line_and_one_exit_code_whatever_met_it(error: Exception, capsys: pytest.CaptureFixture[str]):
    def main(_: list[str] | None) -> int:
        raise error

    assert run_main(main) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert "cannot be written" in line
    assert ("o/a.npy: " in line) == (getattr(error, "filename", None) is not None)


def test_error_of_another_kind_keeps_its_traceback():
    def main(_: list[str] | None) -> int:
        raise FileNotFoundError(errno.ENOENT, "No such file or directory", "o")

    with pytest.raises(FileNotFoundError):
        run_main(main)


def test_stop_by_ctrl_c_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)

    def main(_: list[str] | None) -> int:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt) as stopped:
        run_main(main)
    sys.excepthook(stopped.type, stopped.value, stopped.tb)
    assert capsys.readouterr().err == "stopped by Ctrl-C; what was finished is kept\n"


@pytest.mark.parametrize("lines", [1, 100_000])
def test_command_whose_output_nobody_reads_ends_without_a_word(lines: int):
    program = (
        "from ccts_dist.errors import run_main\n"
        f"raise SystemExit(run_main(lambda argv: [print('x') for _ in range({lines})] and 0))\n"
    )
    reader, writer = os.pipe()
    os.close(reader)
    try:
        done = subprocess.run([sys.executable, "-c", program], stdout=writer, stderr=subprocess.PIPE, text=True)
    finally:
        os.close(writer)
    assert (done.returncode, done.stderr) == (1, "")


def test_pipe_that_breaks_elsewhere_stays_a_bug():
    def main(argv: list[str] | None) -> int:
        raise BrokenPipeError("of a socket")

    with pytest.raises(BrokenPipeError, match="of a socket"):
        run_main(main)
