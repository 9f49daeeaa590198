"""Commands that are started without standard streams, or in a folder that is gone."""

import subprocess
import sys
from pathlib import Path

import pytest

from ccts_dist.errors import run_main

COMMAND = """
import os, sys
from ccts_dist.errors import run_main
def main(argv):
    with open(sys.argv[1], "w") as file:
        print("a line")
        print("a line", file=sys.stderr)
        sys.stdout.flush()
        for number in (1, 2):
            os.write(number, b"a remark of a C library")
        file.write(f"its own, and {sys.stdin.read()!r} of stdin")
    os.system("echo of a child")
    return 3
raise SystemExit(run_main(main))
"""


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_streams_change_neither_files_nor_the_exit_code(closed: str, tmp_path: Path):
    out = tmp_path / "out"
    words = [sys.executable, "-c", COMMAND, str(out)]
    done = subprocess.run(["sh", "-c", f'exec "$@" {closed}', "sh", *words], stdin=subprocess.DEVNULL,
                          capture_output=True, text=True, timeout=60, check=False)  # fmt: skip
    assert done.returncode == 3, done.stderr
    assert out.read_text() == "its own, and '' of stdin"
    assert "Traceback" not in done.stderr
    assert ("of a child" in done.stdout) == (">&-" not in closed.replace("2>&-", ""))


def test_a_folder_that_was_removed_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    folder = tmp_path / "gone"
    folder.mkdir()
    monkeypatch.chdir(folder)
    folder.rmdir()
    assert run_main(lambda _: pytest.fail("nothing works there")) == 2
    assert capsys.readouterr().err == (
        "error: the working folder is gone or cannot be entered (No such file or directory). Change to another one.\n"
    )
