"""The gate study with few cells, its stages forked from the tests' own server.

``python -m tests.flow.report.forked_gates ...`` is ``launch/reproduce.py ...`` of that kind.
"""

import runpy
from types import SimpleNamespace

import pytest

from ccts_dist.report.gate_study import forked, plan, study
from ccts_dist.report.gate_study.plan import Cell
from tests.helpers.processes.forked import ForkedProcess
from tests.helpers.processes.launching import ROOT, environment

HEARD = {"labels": "few", "errors": "audible", "term": "prediction"}
PARTS = (
    (Cell(labels="few"), Cell(labels="few", errors="audible"), Cell(**HEARD, gate="random as oracle")),
    (Cell(**HEARD, gate="oracle"), Cell(**HEARD, gate="confidence")),
)


def few_cells(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the study train no others, in processes that the tests' server forks."""
    monkeypatch.setattr(plan, "PARTS", PARTS)
    context = SimpleNamespace(Process=ForkedProcess, set_forkserver_preload=lambda _: None)
    known = {**vars(forked.multiprocessing), "get_context": lambda _: context}
    monkeypatch.setattr(forked, "multiprocessing", SimpleNamespace(**known))
    monkeypatch.setattr(study, "ENVIRONMENT", environment())


if __name__ == "__main__":
    few_cells(pytest.MonkeyPatch())
    runpy.run_path(str(ROOT / "launch" / "reproduce.py"), run_name="__main__")
