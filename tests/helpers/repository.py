"""The files of this repository."""

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
    """Files in a folder and below it; links to folders are not followed."""
    for path in sorted(folder.iterdir()):
        if path.is_dir() and not path.is_symlink() and not is_ignored(path):
            yield from files_of(path)
        elif not is_ignored(path):
            yield path


FILES = list(files_of(ROOT))
MODULES = [path for path in FILES if path.suffix == ".py"]


def name_of(path: Path) -> str:
    """The path from the root on."""
    return str(path.relative_to(ROOT))
