"""Examples in docstrings give what they show."""

import doctest
from importlib import import_module
from pathlib import Path

import pytest

import ccts_dist

ROOT = Path(ccts_dist.__file__).parent
WITH_EXAMPLES = sorted(path for path in ROOT.rglob("*.py") if ">>> " in path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("path", WITH_EXAMPLES, ids=lambda path: str(path.relative_to(ROOT)))
def test_examples_of_a_module(path: Path):
    module = import_module(".".join(("ccts_dist", *path.relative_to(ROOT).with_suffix("").parts)))
    result = doctest.testmod(module)
    assert result.attempted > 0
    assert result.failed == 0
