"""The gate study at a small size: killed, run again, and once more for nothing; every stage a real one, forked."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ccts_dist.errors import StageError
from ccts_dist.report.command import build_parser, gate_study_of
from ccts_dist.report.gate_study.forked import run_forked
from ccts_dist.report.gate_study.plan import TRAIN
from ccts_dist.report.gate_study.study import run_gate_study
from ccts_dist.report.stages import Stage
from tests.flow.report.forked_gates import PARTS, few_cells
from tests.helpers.processes.forked import Forked
from tests.helpers.processes.launching import ROOT, environment

pytestmark = pytest.mark.long


def options(folder: Path) -> list[str]:
    """Of ``launch/reproduce.py``."""
    sets = ("--set", "train.epochs=1", "--set", "batch.global_batch_size=16", "--set", "batch.micro_batch_size=16")
    return ["--table", "gate", "--seeds", "3", "--utterances", "480", *sets, "--out", str(folder)]


def stamps(folder: Path) -> dict[str, int]:
    """What each stage that is done left, with the moment when it did."""
    return {path.stem: path.stat().st_mtime_ns for path in folder.glob("seed3/stages/*.json")}


def kill_in_its_midst(folder: Path) -> None:
    """Begin, and end it as a machine that goes down would, once the teacher is trained."""
    command = [sys.executable, "-m", "tests.flow.report.forked_gates", *options(folder)]
    driver = Forked(command, cwd=ROOT, env=environment(), stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 600
    while "few-teacher-audible" not in stamps(folder):
        assert driver.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    driver.kill()
    assert driver.wait(30) == -signal.SIGKILL


def test_killed_study_goes_on_and_its_gates_reject_what_they_are_meant_to(tmp_path: Path, monkeypatch, capsys):
    folder = tmp_path / "study"
    kill_in_its_midst(folder)
    before = stamps(folder)
    few_cells(monkeypatch)
    study = gate_study_of(build_parser().parse_args(options(folder)))
    text = run_gate_study(study)
    after = stamps(folder)
    cells = [cell for part in PARTS for cell in part]
    assert {cell.name for cell in cells} | {"corpus", "shards-audible", "few-teacher-audible-cache"} <= set(after)
    assert {name: after[name] for name in before} == before, "what was done is not done again"
    assert "oracle - random" in text
    assert len((folder / "runs.csv").read_text().splitlines()) == 1 + len(cells)
    facts = json.loads((folder / "seed3" / "facts-audible.json").read_text())["few-audible"]
    share, rejected = float(facts["rejected"]), {}
    for cell in cells:
        if cell.gate:
            summary = json.loads((study.run_folder(3, cell) / "summary.json").read_text())
            rejected[cell.gate] = 1 - summary["distilled_fraction"]
            counted = json.loads((study.run_folder(3, cell) / "rejected.json").read_text())
            if cell.gate == "oracle":
                assert counted == {"off": 1.0, "sound": 0.0}
    assert 0.1 < share < 0.4
    assert rejected == pytest.approx(dict.fromkeys(rejected, share), abs=0.1)
    capsys.readouterr()
    assert run_gate_study(study) == text
    assert stamps(folder) == after
    assert "done before" in capsys.readouterr().err


def test_stage_that_fails_is_named_and_its_log_has_the_reason(tmp_path: Path, monkeypatch):
    few_cells(monkeypatch)
    log = tmp_path / "speech.log"
    with pytest.raises(StageError, match=r"^speech: ended with exit code 2\. Its whole output is in .*speech\.log"):
        run_forked(Stage(name="speech", command=(TRAIN, "none.toml")), log, environment())
    assert "none.toml" in log.read_text()
