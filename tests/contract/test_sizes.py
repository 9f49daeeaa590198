"""Functions, files and folders that one can take in at a glance."""

import ast
from collections import Counter
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
IGNORED = [".git", *(ROOT / ".gitignore").read_text(encoding="utf-8").split()]


def is_ignored(path: Path) -> bool:
    """True for what git leaves alone; a pattern that begins with a slash is of the root alone."""
    patterns = [pattern for pattern in IGNORED if not pattern.startswith("/") or path.parent == ROOT]
    return any(fnmatch(path.name, pattern.strip("/")) for pattern in patterns)


def files_of(folder: Path) -> Iterator[Path]:
    """The repository's files, by folder; links to folders are not followed."""
    for path in sorted(folder.iterdir()):
        if path.is_dir() and not path.is_symlink() and not is_ignored(path):
            yield from files_of(path)
        elif not is_ignored(path):
            yield path


FILES = list(files_of(ROOT))
MODULES = [path for path in FILES if path.suffix == ".py"]


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def test_there_are_folders_and_modules():
    assert {".ci/run", "README.md", "ccts_dist/train/run.py", "launch/runs/demo/cts.toml"} <= {*map(name_of, FILES)}
    assert len(MODULES) > 500


def test_folders_have_at_most_16_files():
    """The README of a folder and ``py.typed`` included."""
    num_files = Counter(name_of(path.parent) for path in FILES)
    assert {folder: number for folder, number in num_files.items() if number > 16} == {}


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
