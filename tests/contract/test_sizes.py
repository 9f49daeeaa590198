"""Functions, files and folders that one can take in at a glance."""

import ast
from collections import Counter

from tests.helpers.repository import FILES, MODULES, name_of


def test_there_are_folders_and_modules():
    assert {".ci/run", "README.md", "ccts_dist/train/run.py", "launch/runs/demo/cts.toml"} <= {*map(name_of, FILES)}
    assert len(MODULES) > 500


def test_folders_have_at_most_16_files():
    """The README of a folder and ``py.typed`` included."""
    num_files = Counter(name_of(path.parent) for path in FILES)
    assert {folder: number for folder, number in num_files.items() if number > 16} == {}


def test_modules_and_documents_have_at_most_400_lines():
    read = [*MODULES, *(path for path in FILES if path.suffix == ".md" and path.name != "CHANGELOG.md")]
    assert [name_of(path) for path in read if len(path.read_text(encoding="utf-8").splitlines()) > 400] == []


def test_functions_have_at_most_60_lines():
    long = []
    for path in MODULES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                num_lines = (node.end_lineno or node.lineno) - node.lineno + 1
                long += [f"{name_of(path)}: {node.name}"] if num_lines > 60 else []
    assert long == []
