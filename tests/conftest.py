"""Tiers of tests; shapes and types of ``ccts_dist`` signatures, which are checked while tests run, and only then."""

import os
import sys
from pathlib import Path

import pytest
from hypothesis import settings

from tests.checked import check_signatures
from tests.ready_store import copy_tables
from tests.tiers import EXAMPLES, TIERS, is_in, may_have, tier_of

# Before torch: several tests run at once, and threads that spin for one another's cores took twice the time of one.
os.environ.setdefault("OMP_NUM_THREADS", "1")

NUMERIC = ("losses", "model", "loader", "records", "scoring", "teacher")
"""Packages whose signatures the fast tier checks: checking all of them doubles the time that imports take."""

for _tier, _count in EXAMPLES.items():
    # Shared machines are slow at times; how long an example takes is measured in tests/bench, never asserted.
    settings.register_profile(_tier, deadline=None, max_examples=_count)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--tier", action="append", choices=TIERS, default=[],
        help="run the tests of one tier alone, or of several where it is given again: see tests/tiers.py",
    )  # fmt: skip


def pytest_configure(config: pytest.Config) -> None:
    tiers = config.getoption("--tier")
    settings.load_profile(max(tiers, key=EXAMPLES.__getitem__) if tiers else "integration")
    modules = [f"ccts_dist.{name}" for name in NUMERIC] if tiers == ["fast"] else "ccts_dist"
    check_signatures(modules)
    if tiers and config.getoption("numprocesses", None) and not hasattr(config, "workerinput"):
        from tests.helpers.processes.forked import share_server  # after check_signatures

        share_server()


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    tiers = config.getoption("--tier")
    if not tiers or collection_path.suffix != ".py" or not collection_path.name.startswith("test_"):
        return None
    return True if not any(may_have(collection_path, tier) for tier in tiers) else None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        if tier_of(item) is None and "gpu" not in item.path.parts:
            raise pytest.UsageError(f"{item.nodeid}: its folder has no tier. Give it one in tests/tiers.py.")
    if tiers := config.getoption("--tier"):
        chosen = {item for item in items if any(is_in(item, tier) for tier in tiers)}
        config.hook.pytest_deselected(items=[item for item in items if item not in chosen])
        items[:] = [item for item in items if item in chosen]


@pytest.fixture(scope="session", autouse=True)
def _ready_store(request: pytest.FixtureRequest) -> None:
    """Where MLflow is used at all: none of the fast tests makes a store in the tests' own process."""
    if "mlflow" in sys.modules and request.config.getoption("--tier") != ["fast"]:
        copy_tables()
