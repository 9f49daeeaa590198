"""Tiers of tests: how long one waits for them decides when they run.

- ``fast``: what a newcomer runs, `make test`: unit and contract tests, and one whole way on two ranks;
- ``integration``: real ranks and whole commands, `make test-integration`;
- ``long``: kills, clusters, servers, tables, fuzzing, `make test-long`; it repeats the property tests of all tiers with
  many more examples.

A test belongs to the tier of its folder, unless it, its class or its file is marked with the name of another.
"""

import re
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

ROOT = Path(__file__).resolve().parent
TIERS = ("fast", "integration", "long")
FOLDERS = {"unit": "fast", "contract": "fast", "ranks": "integration", "flow": "integration", "cluster": "long"}
"""Tier of each folder's tests; tests/gpu and tests/bench are started by hand."""

EXAMPLES = {"fast": 20, "integration": 100, "long": 200}
"""Examples of a property test that names no number."""


def examples(usual: int, **more: Any) -> settings:
    """Decorator of a property test: ``usual`` examples, of which the fast tier takes a part and the long one more.

    Args:
        more: other settings of hypothesis.
    """
    return settings(max_examples=max(5, usual * settings().max_examples // EXAMPLES["integration"]), **more)


def with_long(fast: Collection[Any], every: Iterable[Any]) -> list[Any]:
    """Parameters of a test, of which those that are not in ``fast`` run in the long tier.

    For encoders: one of each mechanism states in the fast tier what the others repeat.
    """
    return [
        one if one in fast else pytest.param(*(one if isinstance(one, tuple) else (one,)), marks=pytest.mark.long)
        for one in every
    ]


def tier_of(item: pytest.Item) -> str | None:
    """Tier of a test; None for one in a folder that has none.

    Raises:
        pytest.UsageError: one mark, or several at the same place, that name more than one tier.
    """
    for node in reversed(item.listchain()):
        marked = {mark.name for mark in node.own_markers} & set(TIERS)
        if len(marked) > 1:
            raise pytest.UsageError(f"{node.nodeid}: is marked {' and '.join(sorted(marked))}; a test has one tier.")
        if marked:
            return marked.pop()
    return folder_tier(item.path)


def folder_tier(path: Path) -> str | None:
    """Tier of the tests in a file that are not marked."""
    return FOLDERS.get(path.relative_to(ROOT).parts[0]) if path.is_relative_to(ROOT) else None


def may_have(path: Path, tier: str) -> bool:
    """False where no test of a file can be of the tier; spares workers the file's imports."""
    if folder_tier(path) == tier:
        return True
    named = r"\bmark\.long\b|\bwith_long\b|\bgiven\b" if tier == "long" else rf"\bmark\.{tier}\b"
    return re.search(named, path.read_text(encoding="utf-8")) is not None


def is_in(item: pytest.Item, tier: str) -> bool:
    """True for a test that a run of the tier takes."""
    repeated = tier == "long" and getattr(getattr(item, "obj", None), "is_hypothesis_test", False)
    return repeated or tier_of(item) == tier
