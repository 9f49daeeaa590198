"""First light, rehearsed whole on the CPU at small size, from the packing of shards and references to the table.

Its parts are forked, and so is what they start.
"""

import json
import subprocess
from collections.abc import Mapping, Sequence
from io import BufferedWriter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.flow.benches.forked_parts import MODULES, run
from tests.gpu import first_light, supervision
from tests.gpu.first_light import PARTS, main
from tests.helpers.processes.forked import SHARED, Forked, server_address
from tests.helpers.processes.launching import environment

pytestmark = pytest.mark.long

NEEDS_A_GPU = {
    "A": {"collectives of NCCL"},
    "B": {"tf32: student", "tf32: GRU", "tf32: filter bank"},
    "D": {"out of memory is one line"},
    "F": {"matrix product in bf16", "host waits of a step", "zero2: memory against the forecast"},
    "H": {"memory over many lengths, expandable segments"},
}
"""Items that are skipped here, among others; what is not named runs."""

RUNS = {
    "A": {"collectives of gloo", "engine under zero0, fp32", "engine under zero3_offload, fp32"},
    "B": {"fp32: student", "fp32: teacher with text", "bf16: two micro-batches"},
    "C": {"fp32, math, recomputed True", "bf16, as torch chooses: gradient of recomputed layers"},
    "D": {"fp32: zero3 writes the same bits", "fp32: zero0 goes on", "SIGTERM, exit code 75, resumed"},
    "E": {"two ranks, zero1", "two ranks, zero2", "two ranks, zero3"},
    "F": {"forecast of memory", "profile of three steps", "lengths exact, cuDNN attention off"},
    "G": {"bare torch", "bare torch, compiled layers", "transformers Trainer", "ours over the bare loop"},
    "H": {"checkpoint", "resume", "teacher cache", "memory over many lengths, fixed segments"},
}


def start(command: Sequence[str], *, cwd: Path, env: Mapping[str, str], stdout: BufferedWriter, **_: Any) -> Forked:
    """A part, in a session of its own."""
    before, module = command[:3], command[3]
    wrapped = ["tests.flow.benches.forked_parts"] if module in MODULES else []
    shared = {**env, SHARED: server_address()}
    return Forked([*before, *wrapped, *command[3:]], cwd=cwd, env=shared, stdout=Path(stdout.name))


def test_every_part_runs_on_a_cpu_and_none_fails(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(supervision, "subprocess", SimpleNamespace(**{**vars(subprocess), "Popen": start}))
    monkeypatch.setattr(first_light, "subprocess", SimpleNamespace(**{**vars(subprocess), "run": run}))
    for name, value in environment().items():
        monkeypatch.setenv(name, value)
    code = main(["--device", "cpu", "--small", "--out", str(tmp_path / "out")])
    printed = capfd.readouterr().out
    assert code == 0, printed[-6000:]
    whole = json.loads((tmp_path / "out" / "first_light.json").read_text())
    assert [part["part"] for part in whole["parts"]] == [part.letter for part in PARTS]
    for part in whole["parts"]:
        assert json.loads((tmp_path / "out" / f"{part['part']}.json").read_text()) == part
        statuses = {item["name"]: item["status"] for item in part["items"]}
        assert part["status"] == "passed"
        assert {statuses[name] for name in RUNS[part["part"]]} == {"passed"}
        skipped = {item["name"]: item["reason"] for item in part["items"] if item["status"] == "skipped"}
        assert {skipped[name] for name in NEEDS_A_GPU.get(part["part"], ())} <= {"cpu: not applicable"}
    text = (tmp_path / "out" / "first_light.md").read_text()
    assert text in printed
    assert all(f"| {part.letter} {part.title} |" in text for part in PARTS)
