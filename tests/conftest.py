"""Tiers of tests; shapes and types of ``ccts_dist`` signatures, which are checked while tests run, and only then."""

import os
from pathlib import Path

import pytest
from hypothesis import settings

from tests.checked import check_signatures
from tests.tiers import EXAMPLES, TIERS, is_in, may_have, tier_of

# Before torch: several tests run at once, and threads that spin for one another's cores took twice the time of one.
os.environ.setdefault("OMP_NUM_THREADS", "1")

NUMERIC = ("losses", "model", "loader", "records", "scoring", "teacher")
"""Packages whose signatures the fast tier checks: checking all of them doubles the time that imports take."""

for _tier, _count in EXAMPLES.items():
    # Shared machines are slow at times; how long an example takes is measured in tests/bench, never asserted.
    settings.register_profile(_tier, deadline=None, max_examples=_count)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--tier", choices=TIERS, help="run the tests of one tier alone: see tests/tiers.py")


def pytest_configure(config: pytest.Config) -> None:
    tier = config.getoption("--tier")
    settings.load_profile(tier or "integration")
    modules = [f"ccts_dist.{name}" for name in NUMERIC] if tier == "fast" else "ccts_dist"
    check_signatures(modules)


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    tier = config.getoption("--tier")
    if tier is None or collection_path.suffix != ".py" or not collection_path.name.startswith("test_"):
        return None
    return True if not may_have(collection_path, tier) else None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        if tier_of(item) is None and "gpu" not in item.path.parts:
            raise pytest.UsageError(f"{item.nodeid}: its folder has no tier. Give it one in tests/tiers.py.")
    tier = config.getoption("--tier")
    if tier is not None:
        others = [item for item in items if not is_in(item, tier)]
        items[:] = [item for item in items if is_in(item, tier)]
        config.hook.pytest_deselected(items=others)
