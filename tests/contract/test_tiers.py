"""Every test has one tier, and every tier is run by a target of its own, and by CI."""

import re
from fnmatch import fnmatch
from pathlib import Path

import pytest

from tests.helpers.processes.launching import ROOT
from tests.tiers import FOLDERS, TIERS, examples, folder_tier, may_have, tier_of

BY_HAND = {"gpu", "bench"}
"""Folders whose programs are started by hand: no machine of CI has a GPU, and none is quiet enough to be timed."""

TARGETS = [("fast", "test"), ("integration", "test-integration"), ("long", "test-long")]
BOTH = "test-rest"
"""The target of the tiers that are not fast, which CI runs in one go."""


def recipe(target: str) -> str:
    """The commands of a target of the Makefile."""
    found = re.search(rf"^{target}:.*\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert found, target
    return found[1]


def test_every_folder_with_tests_has_a_tier() -> None:
    folders = {path.parent.relative_to(ROOT / "tests").parts[0] for path in (ROOT / "tests").rglob("test_*.py")}
    assert folders - BY_HAND == set(FOLDERS)
    assert set(FOLDERS.values()) <= set(TIERS)


@pytest.mark.parametrize(("tier", "target"), [*TARGETS, ("integration", BOTH), ("long", BOTH)])
def test_every_tier_is_run_by_its_target_which_names_each_place_of_its_tests(tier: str, target: str) -> None:
    words = recipe(target)
    assert f"--tier {tier}" in words
    given = re.findall(r"(?<!=)\btests(?:/\w+)?(?= |\n)", words)
    found = (ROOT / "tests").rglob("test_*.py")
    paths = [path for path in found if path.relative_to(ROOT / "tests").parts[0] not in BY_HAND]
    for path in paths:
        if may_have(path, tier):
            assert any(path.is_relative_to(ROOT / folder) for folder in given), f"{path}: not run by {target}"


def test_pytest_goes_into_every_folder_with_tests(pytestconfig: pytest.Config) -> None:
    folders = {path.parent.relative_to(ROOT / "tests") for path in (ROOT / "tests").rglob("test_*.py")}
    passed_over = pytestconfig.getini("norecursedirs")  # by default "build" is one of them
    assert [
        (folder, rule) for folder in folders for part in folder.parts for rule in passed_over if fnmatch(part, rule)
    ] == []


def test_ci_calls_the_targets_and_the_one_of_the_readme_first() -> None:
    called = re.findall(r"^make (\S+)$", (ROOT / ".ci" / "run").read_text(), re.MULTILINE)
    assert called == ["test", "check", BOTH]
    assert [tier for tier, _ in TARGETS] == list(TIERS)


def test_what_two_targets_run_of_the_long_tests_one_runs_too() -> None:
    assert recipe("test-long").replace("--tier long", "--tier integration --tier long", 1) == recipe(BOTH)


@pytest.mark.long
def test_a_mark_goes_before_the_folder(request: pytest.FixtureRequest) -> None:
    assert tier_of(request.node) == "long"
    assert folder_tier(Path(__file__)) == "fast"


def test_the_folder_decides_where_there_is_no_mark(request: pytest.FixtureRequest) -> None:
    assert tier_of(request.node) == "fast"


def test_a_test_outside_the_folders_has_no_tier(tmp_path: Path) -> None:
    assert folder_tier(tmp_path / "test_it.py") is None


def test_number_of_examples_follows_the_tier(request: pytest.FixtureRequest) -> None:
    number = {"fast": 12, "integration": 60, "long": 120}
    expected = max((number[tier] for tier in request.config.getoption("--tier")), default=60)
    assert examples(60).max_examples == expected
