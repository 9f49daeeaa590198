"""Audio readers under changed files, in a process of their own: see ``tests/helpers/faults/fuzz_audio.py``."""

import os
import subprocess
import sys
from datetime import date
from pathlib import Path

import pytest

SECONDS = float(os.environ.get("CCTS_FUZZ_S", "10"))
"""Ten minutes are a thorough run."""

FIRST = int(os.environ.get("CCTS_FUZZ_SEED", date.today().toordinal() * 1_000_000))
"""Other inputs each day."""


@pytest.mark.long
def test_changed_audio_gives_audio_or_words_within_a_gigabyte(tmp_path: Path):
    command = [
        sys.executable,
        "-X",
        "faulthandler",
        "-m",
        "tests.helpers.faults.fuzz_audio",
        str(SECONDS),
        str(FIRST),
        str(tmp_path),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{done.stderr[-3000:]}\nexit {done.returncode}; the input is in {tmp_path}"
    print(done.stdout)
    assert int(done.stdout.split()[0]) > 0
