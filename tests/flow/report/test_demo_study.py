"""The demo study at a small size: killed, run again, and once more for nothing; every command a real one, forked."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from ccts_dist.report.command import build_parser, study_of
from ccts_dist.report.study.plan import AT_OTHER_SHARES, AT_THE_FIRST_SHARE
from ccts_dist.report.study.study import run_study
from tests.flow.report.forked_stages import fork_stages
from tests.helpers.processes.forked import Forked
from tests.helpers.processes.launching import ROOT, environment, run_forked

pytestmark = pytest.mark.long

CHAINS = {
    "wrong10": ("shards",),
    "wrong10/seed17": AT_THE_FIRST_SHARE,
    "wrong50": ("shards",),
    "wrong50/seed17": AT_OTHER_SHARES,
}
NUM_STAGES = sum(map(len, CHAINS.values()))


def options(folder: Path) -> list[str]:
    """Of ``launch/reproduce.py``."""
    return [
        "--table", "demo", "--seeds", "17", "--corrupt-transcripts", "50", "10", "--jobs", "2", "--utterances", "120",
        "--set", "train.epochs=1", "--out", str(folder),
    ]  # fmt: skip


def run(folder: Path, capsys: pytest.CaptureFixture[str]) -> tuple[str, str]:
    """Its tables, and what was reported on the way."""
    table = run_study(study_of(build_parser().parse_args(options(folder))))
    return table, capsys.readouterr().err


def stamps(folder: Path) -> dict[str, int]:
    """What each stage that is done left, with the moment when it did."""
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in folder.rglob("stages/*.json")}


def kill_in_its_midst(folder: Path) -> None:
    """Begin, and end it as a machine that goes down would, once a chain has something to keep."""
    command = [sys.executable, "-m", "tests.flow.report.forked_stages", *options(folder)]
    driver = Forked(command, cwd=ROOT, env=environment(), stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 900
    while len(stamps(folder)) < 3:
        assert driver.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    itself = psutil.Process(driver.pid)
    itself.suspend()  # so that it starts nothing more
    for process in (*itself.children(recursive=True), itself):
        process.kill()
    assert driver.wait(30) == -signal.SIGKILL


def test_killed_study_goes_on_and_ends_with_tables_picture_and_every_run(tmp_path: Path, monkeypatch, capsys):
    folder = tmp_path / "study"
    kill_in_its_midst(folder)
    before = stamps(folder)
    assert 3 <= len(before) < NUM_STAGES
    fork_stages(monkeypatch)
    table, printed = run(folder, capsys)
    after = stamps(folder)
    assert set(after) == {f"{chain}/stages/{name}.json" for chain, names in CHAINS.items() for name in names}
    assert {name: after[name] for name in before} == before, "what was done is not done again"
    assert f"study: {NUM_STAGES} of {NUM_STAGES} stages" in printed
    assert table.strip() == (folder / "study.md").read_text().strip()
    reported = json.loads((folder / "study.json").read_text())
    runs = {(one["percent"], one["seed"], one["system"]) for one in reported["runs"]}
    assert runs == {
        (int(chain[5:7]), 17, name)
        for chain, names in CHAINS.items()
        for name in names
        if name not in ("shards", "cache")
    }
    # 76 % of 120 train, and of these 91 a tenth or a half are wrong.
    assert {(one["percent"], one["num_wrong"], one["num_right"]) for one in reported["gate_counts"]} == {
        (10, 9, 82),
        (50, 46, 45),
    }
    for one in reported["gate_counts"]:
        fraction = next(
            run["distilled_fraction"] for run in reported["runs"]
            if (run["percent"], run["seed"], run["system"]) == (one["percent"], one["seed"], "cts")
        )  # fmt: skip
        assert (one["wrong_rejected"] + one["right_rejected"]) / 91 == pytest.approx(1 - fraction), (
            "as training counted it"
        )
    picture = (folder / "study.svg").read_bytes()
    assert b"<svg" in picture
    again, printed = run(folder, capsys)
    assert again == table
    assert printed.count("done before") == NUM_STAGES
    assert stamps(folder) == after
    (folder / "study.svg").unlink()
    collected = run_forked([sys.executable, "launch/reproduce.py", *options(folder), "--report-only"])
    assert collected.returncode == 0, collected.stderr
    assert collected.stdout.strip() == table.strip()
    assert (folder / "study.svg").read_bytes() == picture
