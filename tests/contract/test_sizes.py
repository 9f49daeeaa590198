"""Functions, files and folders that one can take in at a glance."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = sorted(
    path
    for top in ("ccts_dist", "tests/unit", "tests/contract", "tests/helpers")
    for path in (ROOT / top, *(ROOT / top).rglob("*"))
    if path.is_dir() and path.name != "__pycache__"
)
MODULES = sorted(path for top in ("ccts_dist", "tests") for path in (ROOT / top).rglob("*.py"))


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def test_there_are_folders_and_modules():
    assert {"ccts_dist", "ccts_dist/train", "tests/unit/train"} <= {name_of(path) for path in FOLDERS}
    assert len(MODULES) > 500


@pytest.mark.parametrize("folder", FOLDERS, ids=name_of)
def test_folder_has_at_most_16_modules(folder: Path):
    assert len(list(folder.glob("*.py"))) <= 16


def test_modules_have_at_most_400_lines():
    assert [name_of(path) for path in MODULES if len(path.read_text(encoding="utf-8").splitlines()) > 400] == []


def test_functions_have_at_most_60_lines():
    long = []
    for path in MODULES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                num_lines = (node.end_lineno or node.lineno) - node.lineno + 1
                long += [f"{name_of(path)}: {node.name}"] if num_lines > 60 else []
    assert long == []
